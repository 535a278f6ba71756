"""The `clipgs` command as a process of its own."""

import os
import sys

from clipgs.core.processes import PARENT, end_with


class _NoPandas:
    """Makes imports of pandas fail, as if it were not installed."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'", name=name)


def command() -> int:
    """`clipgs.cli.main`, with a pyarrow that does not import pandas.

    pyarrow imports pandas when it first gets a list, to ask whether that is a pandas series: two seconds in every job.
    """
    if parent := os.environ.pop(PARENT, None):
        end_with(int(parent))
    sys.meta_path.insert(0, _NoPandas)
    import pyarrow

    pyarrow.array([0])
    sys.meta_path.remove(_NoPandas)
    from clipgs.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(command())
