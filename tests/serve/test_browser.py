"""The page in a real browser: what it shows, its keys, its widths and colours, and a silent console."""

import io

import numpy as np
import pytest
from PIL import Image

from tests import browser
from tests.serve.conftest import NASTY, png

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium here")
SETTLED = "!['', 'Searching.'].includes(document.getElementById('status').textContent)"
SHOWN = "[...document.querySelectorAll('#list .card')].map((card) => card.dataset.uid)"
LIVE = "document.getElementById('viewer').classList.contains('live')"


@pytest.fixture(scope="module")
def chromium():
    with browser.opened() as tab:
        yield tab


@pytest.fixture
def tab(chromium):
    """A tab whose console must have said nothing at the end."""
    chromium.look()
    chromium.go("about:blank")
    chromium.said.clear()
    yield chromium
    chromium.run("0")
    assert chromium.said == []


@pytest.fixture
def page(tab, searching):
    tab.go(searching.server.address)
    tab.until(SETTLED)
    yield tab
    tab.go("about:blank")  # before the server ends: pictures may still be coming


def choose(tab, name, value):
    """A value for a control, as if a person had chosen it."""
    changed = "dispatchEvent(new Event('change', {bubbles: true}))"
    tab.run(f"(() => {{ const one = document.getElementById('{name}'); one.value = '{value}'; one.{changed}; }})()")


def shown(tab):
    tab.until(SETTLED)
    return tab.run(SHOWN)


def test_a_text_is_searched_and_an_object_opened_closed_and_compared(page, searching):
    page.press("/")
    assert page.run("document.activeElement.id") == "q"
    page.type("a green tree")
    page.press("Enter")
    page.until("location.hash.includes('q=a+green+tree')")
    wanted = searching.uids(q="a green tree")
    page.until(f"JSON.stringify({SHOWN}) === JSON.stringify({wanted})")
    page.press("Escape")
    page.press("ArrowRight")
    page.press("ArrowRight")
    assert page.run("document.activeElement.dataset.uid") == wanted[1]
    page.press("Enter")
    page.until(LIVE)
    assert page.run("document.getElementById('position').textContent") == "2 of 3"
    page.press("ArrowRight")
    page.until(f"document.getElementById('facts').textContent.includes('{wanted[2]}')")
    page.press("Escape")
    page.until(f"!document.getElementById('detail').open && document.activeElement.dataset.uid === '{wanted[2]}'")
    page.click("#list .card")
    page.until("document.getElementById('detail').open")
    page.click("#like")
    page.until(f"location.hash.includes('like={wanted[0]}')")
    assert shown(page)[0] == wanted[0]
    page.run("history.back()")
    page.until("location.hash.includes('q=a+green+tree')")


def test_texts_of_the_data_are_texts(page):
    page.run("location.hash = 'uid=a'")
    page.run("location.reload()")
    page.until(LIVE)
    assert page.run("document.getElementById('caption').textContent") == f"a red mug {NASTY}"
    assert page.run("document.querySelectorAll('[onerror], [style], #detail a[href^=javascript]').length") == 0
    assert NASTY in page.run("document.title")
    assert NASTY in page.run("document.getElementById('facts').textContent")
    assert page.run("document.querySelectorAll('#renders img').length") == 4
    assert page.run("document.querySelectorAll('#mesh img').length") == 3


def test_a_splat_turns_by_keys_and_touch_and_the_wheel_scrolls_the_page(page):
    page.click("#list .card")
    page.until(LIVE)
    page.run("document.querySelector('#viewer canvas').focus()")

    def seen():
        x, y, width, height = page.run(
            "(() => { const b = document.querySelector('#viewer canvas').getBoundingClientRect();"
            " return [b.x, b.y, b.width, b.height]; })()"
        )
        page.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        whole = Image.open(io.BytesIO(page.picture())).convert("RGB")
        return np.asarray(whole.crop((int(x), int(y), int(x + width), int(y + height)))).copy()

    before = seen()
    page.press("ArrowLeft")
    turned = seen()
    assert (before != turned).any()
    assert page.run("document.getElementById('position').textContent").startswith("1 of")
    page.wheel("#viewer canvas", 300)
    page.until("document.getElementById('detail').scrollTop > 0")
    page.run("document.getElementById('detail').scrollTop = 0")
    page.wheel("#viewer canvas", 300, modifiers=2)
    page.until("document.getElementById('detail').scrollTop === 0")
    assert (seen() != turned).any()
    page.run("document.getElementById('viewer').scrollIntoView({block: 'center'})")
    before = seen()
    x, y = page.middle("#viewer canvas")
    for kind, moved in (("touchStart", 0), ("touchMove", 20), ("touchMove", 60), ("touchEnd", None)):
        points = [] if moved is None else [{"x": x + moved, "y": y}]
        page.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)
    assert (seen() != before).any()
    assert page.run("getComputedStyle(document.querySelector('#viewer canvas')).touchAction") == "pan-y"


def test_a_splat_under_the_mouse_turns_in_its_card(page):
    page.look(still=False)
    page.point("#list li:nth-child(2) .picture")
    page.until("document.querySelector('#list li:nth-child(2) .turning.live')")
    page.point("#list li:nth-child(1) .picture")
    page.until("document.querySelector('#list li:nth-child(1) .turning.live')")
    page.point("#title")
    page.until("!document.querySelector('.turning')")
    page.click("#list li:nth-child(2) .picture")
    page.until("document.getElementById('detail').open")


def test_filters_orders_and_words(page):
    choose(page, "by", "words")
    page.run("document.getElementById('q').focus()")
    page.type("mug")
    page.until(f"JSON.stringify({SHOWN}) === '[\"a\"]'")
    for name, value, wanted in (
        ("category", "tree", []),
        ("category", "", ["a"]),
        ("psnr_max", "35", []),
        ("psnr_max", "", ["a"]),
    ):
        choose(page, name, value)
        page.until(f"JSON.stringify({SHOWN}) === JSON.stringify({wanted})")
    page.click("#filters [type=reset]")
    assert shown(page) == ["a"]


def test_a_picture_is_searched_by(page, searching, tmp_path):
    (tmp_path / "query.png").write_bytes(png((10, 200, 10)))
    page.choose("#picture", tmp_path / "query.png")
    page.until("!document.getElementById('asked').hidden && document.querySelectorAll('#list .small').length === 3")
    wanted = searching.uids(png((10, 200, 10)))
    page.until(f"JSON.stringify({SHOWN}) === JSON.stringify({wanted})")
    assert page.run("document.getElementById('asked-text').textContent") == "query.png"
    page.click("#asked-clear")
    page.until("document.getElementById('asked').hidden")


def test_failures_are_listed_and_marked_objects_become_commands(page):
    page.click("#tab-failures")
    page.until("document.querySelectorAll('#list li').length === 2")
    assert f"ObjectError: {NASTY}" in page.run("document.getElementById('list').textContent")
    assert page.run("document.querySelectorAll('#list img').length") == 1
    page.click("[data-mark=d]")
    page.click("#tab-objects")
    page.until("document.querySelectorAll('#list li').length === 3")
    page.run("document.querySelector('[data-uid=\"-b_\"]').focus()")
    page.press("x")
    page.run("document.getElementById('reason').focus()")
    page.type('it\'s "bad"')
    wanted = "clipgs exclude --reason 'it'\\''s \"bad\"' -- d -b_"
    assert page.run("document.getElementById('lines').value") == wanted
    page.click("#copy")
    page.until("document.getElementById('copy').textContent !== 'Copy'")
    page.click("#unmark")
    assert page.run("document.getElementById('tray').hidden")


def test_without_a_run_words_are_searched(tab, client):
    tab.go(client.server.address)
    tab.until(SETTLED)
    assert tab.run("document.getElementById('by').disabled && document.getElementById('picture-label').hidden")
    tab.run("document.getElementById('q').focus()")
    tab.type("tree")
    tab.press("Enter")
    tab.until(f"JSON.stringify({SHOWN}) === '[\"-b_\"]'")
    tab.click("#list .card")
    tab.until(LIVE)
    assert tab.run("document.getElementById('like').disabled")
    tab.go("about:blank")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window_and_colours_follow_the_system(page, width, dark):
    page.look(width, 844, dark)
    parts = ["html", "body", "header", "main", "dialog[open]", "#tray"]
    wide = f"Math.max(...{parts}.map((name) => document.querySelector(name)).filter(Boolean)"
    wide += ".map((one) => one.getBoundingClientRect().right))"
    page.click("#list input")
    assert page.run("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.run(wide) <= width
    page.click("#tab-failures")
    page.until("document.querySelectorAll('#list li').length === 2")
    assert page.run("document.documentElement.scrollWidth <= window.innerWidth")
    page.click("#tab-objects")
    page.until("document.querySelectorAll('#list li').length === 3")
    page.click("#list .card")
    page.until(LIVE)
    assert page.run("(() => { const d = document.getElementById('detail'); return d.scrollWidth <= d.clientWidth; })()")
    assert page.run(wide) <= width
    ground = page.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(one) for one in ground[4:-1].split(",")) < 200) == dark
