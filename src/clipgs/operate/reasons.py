"""Why Snakemake would run a job, or runs none, in plain words: it gives files, and parameters as JSON."""

import ast
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path, PurePath

from clipgs.stages import differences

# What a run can be asked for.
TARGETS = ("triplets", "features", "train", "evaluate", "baselines", "ablations", "report")

_PARAMS = re.compile(r"before: (.*?) now: (.*)", re.DOTALL)
# Keys of the settings of a rule that are no settings of the user.
_WORDS = {
    "version": "this version of clipgs makes it differently",
    "labels": "labels changed",
    "captions": "the file of captions changed",
    "curation": "the selection of objects changed",
    "excluded": "objects were excluded or taken in again",
    "files": "the model's files changed",
    "shown": "the table of the ablations changed",
    "retry": "failed objects are tried again",
}
_MOST_KEYS = 3


def why(reason: str, files: Iterable[str]) -> str:
    """Snakemake's reason of a job that makes these files, in a few words."""
    words = list(dict.fromkeys(_words(reason)))
    # Lost files are forced, because Snakemake does not miss them (`clipgs.workflow.Run.lost`).
    lost = "forced" in words and not all(map(os.path.exists, files))
    return "missing" if lost or "missing" in words else "; ".join(words) or "asked for"


def _words(reason: str) -> Iterator[str]:
    for part in re.split(r"; (?=[A-Z])", reason):
        name, _, rest = part.partition(": ")
        if name == "Params have changed since last execution":
            yield _changed(rest)
        elif name == "Missing output files":
            yield "missing"
        elif name == "Incomplete output files":
            yield "not finished by an earlier run"
        elif name == "Updated input files":
            yield f"newer input: {_folders(rest)}"
        elif name == "Input files updated by another job":
            yield f"new {_folders(rest)}"
        elif part == "Set of input files has changed since last execution":
            yield "other input files than before"
        elif part == "Code has changed since last execution":
            yield "its command changed"
        elif part == "Forced execution":
            yield "forced"
        elif part:
            yield name.lower()


def _folders(files: str) -> str:
    """`points, views` for files of a run's output."""
    names = (PurePath(file).parent.name or file for file in files.split(", "))
    return ", ".join(sorted(set(names)))


def _changed(text: str) -> str:
    match = _PARAMS.search(text)
    try:
        before, now = (json.loads(ast.literal_eval(side.strip())) for side in match.groups())  # type: ignore[union-attr]
    except (AttributeError, ValueError, SyntaxError, TypeError):
        return "settings changed"  # several files of the job were made with different ones
    words = [_WORDS.get(words.split()[0].split(".")[0], words) for words in differences(before, now)]
    more = len(words) - _MOST_KEYS
    return ", ".join(words[:_MOST_KEYS]) + (f" and {more} more" if more > 0 else "") or "settings changed"


def plainly(error: str, arguments: Sequence[str], targets: Sequence[str] = TARGETS) -> str:
    """One line for an error of Snakemake about what the user typed; empty for any other.

    Args:
        error: its text.
        arguments: Snakemake's command line.
        targets: the names that the workflow has for them.
    """
    from clipgs.core.lists import did_you_mean

    if match := re.search(r"No rule to produce (\S+)", error):
        near = did_you_mean(match[1], targets)
        return (
            f"nothing makes {match[1]}{near or ';'} the targets are {', '.join(targets)}, and every file of the output"
        )
    if "load_configfile" in error or "onfig file" in error:
        return _unreadable(arguments)
    return ""


def _unreadable(arguments: Sequence[str]) -> str:
    """What is wrong with the first of the run's configuration files that cannot be read."""
    from clipgs.config import PROJECT_FILE, read_layers
    from clipgs.core.errors import UsageError

    given: list[str] = []
    for place, word in enumerate(arguments):
        if (option := re.match(r"--configfiles?(?:=(.+))?$", word)) is not None:
            rest = takewhile(lambda word: not word.startswith("-"), arguments[place + 1 :])
            given = [option[1]] if option[1] else list(rest)
    for file in [PROJECT_FILE] * Path(PROJECT_FILE).exists() + given:
        try:
            read_layers(file)
        except UsageError as error:
            hint = "; words behind --configfile name files, so targets come before it" if file in TARGETS else ""
            return f"{error}{hint}"
    return ""
