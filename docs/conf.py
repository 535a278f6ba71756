"""How Sphinx makes these pages a site: `make docs`. Nothing of it is fetched when a page is read."""

from pathlib import Path

project = "clipgs"
html_title = "clipgs"
copyright = "the clipgs authors, Apache-2.0"  # Sphinx has chosen the name
extensions = ["myst_parser", "sphinx.ext.napoleon", "autoapi.extension"]
exclude_patterns = ["conf.py"]

# Pages are written as for GitHub: its anchors of headings, and its tables and lists.
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

# Docstrings are read from the source, so that neither torch nor anything else of clipgs need be installed.
autoapi_dirs = ["../src/clipgs"]
# Reading all packages takes a minute: only those that reference/api.md names are read.
_READ = ("encoder", "splats", "triplets")
_PACKAGES = sorted(folder.name for folder in (Path(__file__).parent.parent / "src" / "clipgs").iterdir() if folder.is_dir())
autoapi_ignore = [f"*/clipgs/{name}/*" for name in _PACKAGES if name not in _READ]
autoapi_ignore += ["*/splats/fitting/*", "*/splats/rasterizer/*"]
autoapi_generate_api_docs = False  # reference/api.md names what is public
autoapi_python_class_content = "class"
autoapi_options = ["members"]
autoapi_add_toctree_entry = False
suppress_warnings = ["autoapi.python_import_resolution"]  # the other packages
add_module_names = False
default_role = "literal"  # of single backticks in docstrings
napoleon_use_rtype = False

html_theme = "furo"
html_copy_source = False
html_show_sphinx = False
