# The two commands: `make demo` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

PYTHON ?= python3
UV := uv==0.13.9
BIN := .venv/bin
# Rules call `clipgs` by name, so the environment comes first in PATH.
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"
# What OpenGL draws with where there is no display; Debian 12, 13 and Ubuntu 22.04, 24.04 name them so.
OPENGL := libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri

.PHONY: help .venv demo test test-gpu docs lint format config lock bench clean

help:  ## these lines
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

.venv: .venv/.stamp  ## the environment alone: locked versions, and OpenGL's EGL libraries

# An environment that still runs is brought up to date; any other is made anew.
.venv/.stamp: pyproject.toml requirements.lock
	@command -v "$(PYTHON)" > /dev/null || {
	  echo "make: no $(PYTHON) here. Install Python 3.11 or newer (Debian, Ubuntu: sudo apt-get install -y python3 python3-venv) or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
	  echo "make: $(PYTHON) is $$("$(PYTHON)" -V 2>&1), clipgs needs Python 3.11 or newer. Name one: make PYTHON=python3.12" >&2; exit 1; }
	if ! $(BIN)/python -m pip --version > /dev/null 2>&1; then
	  version=$$("$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
	  if ! "$(PYTHON)" -c 'import ensurepip, venv' 2> /dev/null; then
	    echo "make: $(PYTHON) comes without its venv module, which is the package python$$version-venv" >&2
	    [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null &&
	      apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y "python$$version-venv" > /dev/null || {
	      echo "make: install it, then run make again: sudo apt-get install -y python$$version-venv" >&2; exit 1; }
	  fi
	  "$(PYTHON)" -m venv --clear .venv
	fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(UV)"
	extras=docs,hf,slurm,test; if command -v nvidia-smi > /dev/null; then extras=gpu,$$extras; fi
	# Compiled once, and not in every job where Python may not write (PYTHONDONTWRITEBYTECODE, another user's folder).
	echo "make: installing into .venv, once: several minutes, most of them for torch"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -c requirements.lock -e ".[$$extras]"
	$(BIN)/python -m compileall -q src
	if ! $(BIN)/python -m clipgs.operate.doctor opengl > /dev/null 2>&1; then
	  if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
	    # Only what is lacking: an OpenGL that is there but does not work is the machine's owner's to upgrade.
	    echo "make: no OpenGL through EGL yet: installing $(OPENGL)"
	    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-upgrade --no-install-recommends $(OPENGL) > /dev/null; } || true
	  fi
	  $(BIN)/python -m clipgs.operate.doctor opengl > /dev/null || {
	    echo "make: meshes cannot be drawn until OpenGL's EGL libraries are there; run: sudo apt-get install -y $(OPENGL)" >&2; }
	fi
	touch $@

demo: .venv  ## 24 triplets of built-in objects, an encoder trained on them, and a report to look at
	@$(RUN) snakemake --cores all report

test: lint  ## every test, and the linters
	@$(RUN) pytest -q --numprocesses logical --maxprocesses 4 --dist loadfile --durations=10

test-gpu: .venv  ## the tests that need a CUDA GPU
	@$(RUN) pytest -q -m gpu

docs: .venv  ## the documentation as a site, in site/
	@$(RUN) python -m sphinx -W --keep-going -q -b html docs site
	echo "site/index.html"

lint: .venv  ## ruff, snakefmt, snakemake --lint, mypy
	@export $(RUN)
	ruff check
	ruff format --check
	snakefmt --check Snakefile workflow
	snakemake --lint
	mypy src

format: .venv  ## lay the code out
	@export $(RUN)
	ruff check --fix
	ruff format
	snakefmt Snakefile workflow

config: .venv  ## config.yaml from the code, below the lines that it begins with
	@sed '/^$$/q' config.yaml > config.yaml.part
	$(BIN)/clipgs config --recipe demo >> config.yaml.part
	mv config.yaml.part config.yaml

lock: .venv  ## requirements.lock from pyproject.toml; a version that still fits stays
	@$(BIN)/uv pip compile pyproject.toml --all-extras --universal --fork-strategy fewest --python-version 3.11 \
	  --no-emit-index-url --no-header --no-annotate --quiet -o requirements.lock

bench: .venv  ## measure; figures go to benchmarks/results
	@for file in benchmarks/*.py; do $(RUN) python "$$file"; done

clean:  ## remove the environment and every cache; results stay
	@rm -rf .venv .pytest_cache .ruff_cache site src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
