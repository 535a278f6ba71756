"""Errors: of the run, of its configuration, of one object."""


class ClipgsError(Exception):
    """The run cannot go on (configuration, disk, a damaged file). Its text is one line for the person who reads it."""


class UsageError(ClipgsError):
    """The command or the configuration is wrong: exit code 2."""


class ObjectError(Exception):
    """One object's own fault. Its text is one plain sentence, and becomes the error of the object's row."""


def describe_error(error: BaseException) -> str:
    """`Class: first sentence`, as it stands in a row of a table."""
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text[:300]}"
