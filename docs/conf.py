"""How Sphinx makes these pages a site: `make docs`. Nothing of it is fetched when a page is read."""

import argparse
import os
import sys
from pathlib import Path

from sphinx.application import Sphinx

_HERE = Path(__file__).parent
sys.path.insert(0, str(_HERE.parent / "src"))

from clipgs import cli, config  # noqa: E402 (of this checkout)
from clipgs.stages import STAGES  # noqa: E402

project = "clipgs"
html_title = "clipgs"
copyright = "the clipgs authors, Apache-2.0"  # Sphinx has chosen the name
extensions = ["myst_parser", "sphinx.ext.napoleon", "autoapi.extension"]
exclude_patterns = ["conf.py"]

# Pages are written as for GitHub: its anchors of headings, and its tables and lists.
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

# Docstrings are read from the source, so that torch need not be loaded.
autoapi_dirs = ["../src/clipgs"]
# Reading all packages takes a minute: only those that reference/api.md names are read.
_READ = ("encoder", "splats", "triplets")
_PACKAGES = sorted(folder.name for folder in (_HERE.parent / "src" / "clipgs").iterdir() if folder.is_dir())
autoapi_ignore = [f"*/clipgs/{name}/*" for name in _PACKAGES if name not in _READ]
autoapi_ignore += ["*/splats/fitting/*", "*/splats/rasterizer/*"]
autoapi_generate_api_docs = False  # reference/api.md names what is public
autoapi_python_class_content = "class"
autoapi_options = ["members"]
autoapi_member_order = "bysource"
autoapi_add_toctree_entry = False
suppress_warnings = ["autoapi.python_import_resolution"]  # the other packages
add_module_names = False
default_role = "literal"  # of single backticks in docstrings
napoleon_use_rtype = False
napoleon_use_ivar = True  # an attribute that is described twice is no error

html_theme = "furo"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False


def _commands() -> str:
    """`--help` of every command, those that are no stages first."""
    os.environ["COLUMNS"] = "84"  # as wide as a page
    (commands,) = (one for one in cli.parser()._actions if isinstance(one, argparse._SubParsersAction))
    parts = []
    for title, shown in (("Commands", commands.choices.keys() - STAGES.keys()), ("Stages", STAGES.keys())):
        parts.append(f"## {title}")
        parts += [
            f"### clipgs {name}\n\n```text\n{parser.format_help()}```"
            for name, parser in commands.choices.items()
            if name in shown
        ]
    return "\n\n".join(parts)


# Pages that end with what the code says.
_WRITTEN = {"reference/configuration": config.to_markdown, "reference/commands": _commands}


def _complete(app: Sphinx, page: str, source: list[str]) -> None:
    if page in _WRITTEN:
        source[0] += f"\n{_WRITTEN[page]()}"


def setup(app: Sphinx) -> None:
    app.connect("source-read", _complete)
