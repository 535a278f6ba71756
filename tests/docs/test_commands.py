"""What the documentation tells a reader to type works: every command is planned, parsed or found."""

import argparse
import ast
import contextlib
import io
import os
import re
import shlex
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from clipgs import cli
from clipgs import config as configuration
from tests.catalog.objaverse_tree import write_objaverse
from tests.conftest import CHECKOUT
from tests.splats.balls import random_gaussians

PAGES = [CHECKOUT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")] + sorted(
    (CHECKOUT / "docs").rglob("*.md")
)
SETTINGS = sorted([*(CHECKOUT / "configs").glob("*.yaml"), *(CHECKOUT / "profiles").glob("*/*")])
README_LINES = 120
# Stands in the place of what is the reader's own, so that what the documentation names can be planned offline.
OFFLINE = {
    "cache": "cache",
    "catalog": {
        "folder": {"path": "meshes", "manifest": None},
        "modelnet": {"path": "ModelNet40"},
        "objaverse": {"root": "objaverse"},
        "splats": {"path": "splats"},
    },
    "caption": {"cap3d": "cap3d.csv"},
}
DEMO_MESHES = "~/.cache/clipgs/procedural/version-*/"  # what a reader has after `make demo`


class Block(NamedTuple):
    """A code block of a page: its language, empty for a plain one, and its text."""

    page: str
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced and the indented code blocks of a page."""
    name, text = str(page.relative_to(CHECKOUT)), page.read_text()
    fence = re.compile(r"^```([\w{}-]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    found = [Block(name, language, body) for language, body in fence.findall(text)]
    indented = re.compile(r"(?:^|(?<=\n\n))((?: {4}.*\n+)+)")
    found += [Block(name, "", body) for body in indented.findall(fence.sub("\n", text))]
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]
# The files of settings that pages show, by name: the first line of their blocks is `# NAME.yaml`.
SHOWN = {
    match[1]: yaml.safe_load(block.text)
    for block in BLOCKS
    if block.language == "yaml" and (match := re.match(r"# (\w+\.yaml)\n", block.text))
}


def commands() -> dict[tuple[str, ...], str]:
    """Each command of the plain blocks to the page that first names it; `a && b` is two."""
    found: dict[tuple[str, ...], str] = {}
    for block in BLOCKS:
        if block.language not in ("", "sh", "bash"):
            continue
        for line in block.text.splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                found.setdefault(tuple(words[:end]), block.page)
                words = words[end + 1 :]
    return found


def commented() -> dict[tuple[str, ...], str]:
    """Each command in the comments of profiles and overlays to the file that first names it."""
    found: dict[tuple[str, ...], str] = {}
    for file in SETTINGS:
        for line in re.findall(r"^#.*?(?:\s{2,}|: )((?:snakemake|clipgs|sbatch) .*)$", file.read_text(), re.MULTILINE):
            found.setdefault(tuple(shlex.split(line, comments=True)), str(file.relative_to(CHECKOUT)))
    return found


COMMANDS = commands()
COMMENTED = commented()
RULES = {
    name
    for file in (CHECKOUT / "Snakefile", *(CHECKOUT / "workflow" / "rules").glob("*.smk"))
    for name in re.findall(r"^\s*(?:rule|checkpoint) (\w+):", file.read_text(), re.MULTILINE)
}
MAKE = set(re.findall(r"^([\w.-]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder like a checkout after `cp configs/folder.yaml mine.yaml`, with a few objects of every source."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("Snakefile", "config.yaml", "configs", "envs", "profiles", "workflow"):
        (folder / name).symlink_to(CHECKOUT / name)
    for name, settings in SHOWN.items():
        (folder / name).write_text(yaml.safe_dump(settings))
    (folder / "mine.yaml").write_text((CHECKOUT / "configs" / "folder.yaml").read_text())
    (folder / "meshes").mkdir()
    (folder / "meshes" / "a-red-chair.off").write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
    off = folder / "ModelNet40" / "chair" / "train" / "chair_0001.off"
    off.parent.mkdir(parents=True)
    off.write_text((folder / "meshes" / "a-red-chair.off").read_text())
    write_objaverse(folder / "objaverse" / "hf-objaverse-v1", 4)
    (folder / "splats").mkdir()
    random_gaussians(20).save(folder / "splats" / "a-red-chair.ply")
    (folder / "cap3d.csv").write_text("uid,a caption\n")
    (folder / "offline.yaml").write_text(yaml.safe_dump(OFFLINE))
    (folder / "OUTPUT").mkdir()
    (folder / "OUTPUT" / "run.yaml").write_text((folder / "mine.yaml").read_text())
    return folder


def plan(words: list[str], folder: Path) -> None:
    """Runs Snakemake with -n in this process, in the folder, without what only a reader has."""
    import snakemake.cli

    if "--configfile" in words:  # later files win
        words.insert(words.index("--configfile") + 2, "offline.yaml")
    else:
        words += ["--configfile", "offline.yaml"]
    if "conda" in words and find_spec("conda") is None:
        at = words.index("--software-deployment-method")
        del words[at : at + 2]
    text, place, environment = io.StringIO(), os.getcwd(), dict(os.environ)
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text), pytest.raises(SystemExit) as end:
            snakemake.cli.main([*words, "-n", "--quiet", "all"])
    finally:
        os.chdir(place)
        os.environ.clear()
        os.environ.update(environment)
    assert end.value.code in (0, None), text.getvalue()[-3000:]


def parse(words: list[str]) -> argparse.Namespace:
    """The command as `clipgs` reads it."""
    text = io.StringIO()
    try:
        with contextlib.redirect_stderr(text):
            return cli.parser().parse_args(words)
    except SystemExit:
        pytest.fail(text.getvalue())


def there(name: str) -> None:
    """The checkout has the file, or a reader has made it before."""
    made = name in SHOWN or name in ("OUTPUT/run.yaml", "chair.ply") or name.startswith(DEMO_MESHES)
    assert made or (CHECKOUT / name).exists(), f"{name} is not there"


def check_pip(words: list[str]) -> None:
    """`pip install -e FOLDER[EXTRAS]`: this checkout, and extras that it has."""
    match = re.fullmatch(r"\.(?:\[([\w,]+)\])?", words[-1])
    assert words[:2] == ["install", "-e"], words
    assert match, words
    extras = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set((match[1] or "").split(",")) - {""} <= set(extras)


def check_python(words: list[str]) -> None:
    """A script of the checkout, and options that stand in it."""
    there(words[0])
    text = (CHECKOUT / words[0]).read_text()
    for option in words[1:]:
        assert not option.startswith("--") or f'"{option}"' in text, option


def check_make(words: list[str]) -> None:
    """Targets of the Makefile."""
    assert set(words) <= MAKE, sorted(set(words) - MAKE)


# What is no command of ours: only the files that it takes from the checkout are looked for.
FOREIGN = {
    "cp": lambda words: there(words[0]),
    "mv": lambda words: None,
    "ln": lambda words: None,
    "sbatch": lambda words: [there(word) for word in words],
    "$EDITOR": lambda words: [there(word) for word in words],
    "echo": lambda words: None,
    "mkdir": lambda words: None,
    ".": lambda words: check_make([words[0].split("/")[0]]),  # . .venv/bin/activate
    "pip": check_pip,
    "python": check_python,
    "make": check_make,
}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_of_the_documentation_works(words, folder):
    name, *rest = words
    if name == "snakemake":
        plan(rest, folder)
    elif name == "clipgs":
        options = parse(rest)
        for file in getattr(options, "config", None) or ():
            there(file)
    elif name in FOREIGN:
        FOREIGN[name](rest)
    else:
        pytest.fail(f"{COMMANDS[words]}: {' '.join(words)}: this test does not know {name}")


def check_names(words: list[str]) -> None:
    """The files and targets that a command names are there; nothing is planned."""
    for option in ("--configfile", "--profile", "--workflow-profile"):
        if option in words:
            there(words[words.index(option) + 1])
    for word in words:
        if re.fullmatch(r"[a-z_]+", word):
            assert word in RULES, f"the workflow has no target {word}"


@pytest.mark.parametrize("words", COMMENTED, ids=" ".join)
def test_a_command_in_a_comment_names_what_is_there(words):
    name, *rest = words
    if name == "snakemake":
        check_names(rest)
    elif name == "clipgs":
        target = getattr(parse(rest), "target", None)
        assert target is None or target in RULES
    else:
        FOREIGN[name](rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_within_a_sentence_has_a_known_name(page):
    text = re.sub(r"^(```.*?^```$|    .*?$)", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    subcommands = next(
        action.choices for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    known = {"clipgs": set(subcommands), "make": MAKE, "snakemake": RULES}
    for name, word in re.findall(r"`(clipgs|make|snakemake) ([.a-z][\w.-]*)", text):
        assert word in known[name], f"{page.name}: {name} {word}"


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language == "python"], ids=lambda block: block.page
)
def test_python_in_the_documentation_compiles_and_its_names_are_there(block):
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert all(find_spec(name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = import_module(node.module or "")
            for name in node.names:
                if not hasattr(module, name.name):  # or it is a module of the package
                    import_module(f"{node.module}.{name.name}")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "clipgs":
            assert hasattr(import_module("clipgs"), node.attr), node.attr


@pytest.mark.parametrize("name", SHOWN)
def test_settings_that_a_page_shows_are_valid(name):
    configuration.check(SHOWN[name], name)


def test_every_block_is_of_a_language_that_is_checked():
    assert {block.language for block in BLOCKS} <= {"", "sh", "bash", "python", "text", "yaml", "{eval-rst}"}
    assert len(COMMANDS) > 25


def test_the_hooks_before_a_commit_run_what_make_lint_runs():
    hooks = yaml.safe_load((CHECKOUT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    lines = {line.strip() for line in recipe[1].splitlines() if not line.startswith("\t@")}
    assert lines
    assert lines <= {hook["entry"].removeprefix(".venv/bin/") for hook in hooks}


def test_the_readme_is_short():
    assert len((CHECKOUT / "README.md").read_text().splitlines()) < README_LINES


@pytest.mark.parametrize("page", [*PAGES, CHECKOUT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_no_table_is_cut(page):
    for table in re.findall(r"(?:^\|.*\n?)+", page.read_text(), re.MULTILINE):
        head, rule, *rows = [*table.splitlines(), "", ""][: max(2, table.count("\n"))]
        assert re.fullmatch(r"\|( -+ \|)+", rule), f"{page.name}: rows without a head: {head}"
        for row in (rule, *rows):
            assert row.count("|") == head.count("|"), f"{page.name}: another number of cells: {row}"


@pytest.mark.parametrize("page", [*PAGES, CHECKOUT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            heads = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, target


def words_of_messages() -> str:
    """All texts in the package and the workflow, with {} for what is filled in."""
    texts = [file.read_text() for folder in ("workflow", "profiles") for file in (CHECKOUT / folder).rglob("*.*")]
    for file in (CHECKOUT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_the_messages_of_troubleshooting_are_ours():
    ours = words_of_messages()
    told = re.findall(r"^\| (`.*?) \| ", (CHECKOUT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(told) > 40
    for cell in told:
        if "Snakemake)" in cell or cell.startswith("`invalid choice"):  # Snakemake's own
            continue
        for message in re.findall(r"`([^`]+)`", cell):
            words = re.sub(r"\b(STAGE S|TARGET|FILE|MODEL|N|(HTTP )?40\d)\b|…", "{}", message).split()
            size = min(3, len(words))  # messages are put together: three words in a row tell one
            runs = [" ".join(words[at : at + size]) for at in range(len(words) - size + 1)]
            assert any(run in ours for run in runs), message
