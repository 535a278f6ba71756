"""Errors: of the run, of its configuration, of one object; and what to type next."""

import errno
import os
import shlex

RUN_ARGUMENTS = "CLIPGS_RUN_ARGUMENTS"  # in the environment: Snakemake's arguments that name this run

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class ClipgsError(Exception):
    """The run cannot continue (configuration, disk, a damaged file). Its text is one line for the user."""


class UsageError(ClipgsError):
    """The command or the configuration is wrong: exit code 2."""


class SourceMissing(UsageError):
    """The source of the objects is not there as a whole: no folder, no manifest, or nothing in it."""


class ObjectError(Exception):
    """An error of one object. Its text is one plain sentence, and becomes the error of the object's row."""


def describe_error(error: BaseException) -> str:
    """`Class: first sentence`, as a row of a table has it."""
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text[:300]}"


def advice(error: OSError, setting: str = "output") -> str:
    """What a person can do about a disk's error, to be added to its text: `; free some space ...`, or nothing.

    `setting` is the key of the configuration that names the folder.
    """
    return {
        errno.ENOSPC: f"; free some space or choose another `{setting}`",
        errno.EDQUOT: f"; your quota is used up: free some space or choose another `{setting}`",
        errno.EACCES: f"; choose a folder for `{setting}` that you may write",
        errno.EROFS: f"; choose a folder for `{setting}` that you may write",
    }.get(error.errno or 0, "")


def snakemake(*words: object) -> str:
    """The command that makes something of this run, with the user's own files: `snakemake triplets --configfile f`."""
    return " ".join(
        ["snakemake", *(shlex.quote(str(word)) for word in words), *filter(None, [os.environ.get(RUN_ARGUMENTS)])]
    )
