#!/usr/bin/env bash
# Snakemake runs this in the new environment, from the working directory. CLIPGS_CHECKOUT names the checkout where that is another folder.
set -euo pipefail
python -m pip install --no-deps --editable "${CLIPGS_CHECKOUT:-$PWD}"
