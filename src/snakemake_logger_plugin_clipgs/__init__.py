"""`snakemake --logger clipgs`: Snakemake finds its logger plugins by the name of a package."""

from clipgs.operate.screen import Screen as LogHandler

__all__ = ["LogHandler"]
