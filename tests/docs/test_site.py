"""The documentation as a site: it builds without a warning, holds what the code says, and is read without a network."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from clipgs import config as configuration
from clipgs.cli import parser
from tests.browser import CHROMIUM, opened
from tests.conftest import CHECKOUT


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site, as `make docs` builds it."""
    for name in ("autoapi", "furo", "myst_parser", "sphinx"):
        pytest.importorskip(name, reason="the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    (words,) = re.findall(r"python -m (sphinx .*) site$", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    done = subprocess.run([sys.executable, "-m", *words.split(), folder], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stderr == ""
    return folder


def test_every_page_is_in_the_site_and_in_its_menu(site):
    menu = (site / "index.html").read_text()
    for page in (CHECKOUT / "docs").rglob("*.md"):
        name = page.relative_to(CHECKOUT / "docs").with_suffix(".html")
        assert (site / name).exists()
        assert f'href="{name}"' in menu or name == Path("index.html"), name


def test_every_key_and_every_command_has_a_place(site):
    text = (site / "reference" / "configuration.html").read_text()
    missing = [key for key in configuration.setting_names() if f'id="confval-{key}"' not in text]
    assert missing == []
    text = (site / "reference" / "commands.html").read_text()
    commands = next(action.choices for action in parser()._actions if isinstance(action.choices, dict))
    assert [name for name in commands if f"usage: clipgs {name} " not in text] == []


def test_the_documented_names_are_those_that_are_exported(site):
    import clipgs

    text = (CHECKOUT / "docs" / "reference" / "api.md").read_text()
    assert set(re.findall(r"^## clipgs\.(\w+)$", text, re.MULTILINE)) == set(clipgs.__all__) - {"__version__"}


def test_a_page_fetches_nothing(site):
    fetched = re.compile(
        r'<(?:script|img|iframe)[^>]* src="(?:https?:)?//|<link[^>]* href="(?:https?:)?//|@import|url\(http'
    )
    for file in [*site.rglob("*.html"), *site.rglob("*.css")]:
        assert fetched.search(file.read_text()) is None, file


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_no_page_is_wider_than_the_window_and_none_complains(site, width):
    with opened() as tab:
        tab.look(width=width)
        for page in sorted(site.rglob("*.html")):
            tab.go(page.as_uri())
            assert tab.run("document.documentElement.scrollWidth") <= width, page
            assert [said for said in tab.said if said[0] in ("error", "exception")] == [], page
