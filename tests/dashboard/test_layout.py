"""How the pages lie on screens and on paper: nothing cut off, broken in a word, out of its column or too faint to see."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from addresses import NAMES
from playwright.sync_api import Page

pytestmark = pytest.mark.slow

_UNFOLD = "document.querySelectorAll('details').forEach(part => part.open = true)"
_STICKING_OUT = """() => [...document.querySelectorAll('.panel')].flatMap(panel => {
    const edge = panel.getBoundingClientRect().right + 1;
    return [...panel.querySelectorAll('*')]
        .filter(part => !part.parentElement.closest('.scroll, svg, .unseen') && part.getBoundingClientRect().right > edge)
        .map(part => part.textContent.slice(0, 40));
})"""
_UNEVEN_ROWS = """() => {
    const cells = row => [...row.cells].filter(cell => getComputedStyle(cell).display === 'table-cell')
        .reduce((sum, cell) => sum + cell.colSpan, 0);
    return [...document.querySelectorAll('table')].flatMap(table => [...table.rows]
        .filter(row => getComputedStyle(row).display === 'table-row' && cells(row) !== cells(table.tHead.rows[0]))
        .map(row => row.textContent.slice(0, 40)));
}"""
#: Each row of a table: the cells that say a number, where its visible links lead, and all that it says.
_ROWS = """() => [...document.querySelectorAll('tbody tr, tfoot tr')].map(row => ({
    figures: [...row.querySelectorAll('td')].map(cell => cell.innerText.replace(/\\s/g, ''))
        .filter(text => /[0-9]/.test(text)),
    links: [...row.querySelectorAll('a')].filter(link => link.getClientRects().length).map(link => link.href),
    text: row.innerText.replace(/\\s/g, ''),
}))"""
_FAINT_BARS = """() => {
    const rgb = text => text.match(/[0-9.]+/g).map(Number);
    const light = colour => colour.slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = rgb(getComputedStyle(document.querySelector('.chart')).backgroundColor);
    return [...document.querySelectorAll('.bars.wide .slot path:not(.hit)')].filter(bar => {
        const style = getComputedStyle(bar), seen = style.opacity * style.fillOpacity;
        const shown = rgb(style.fill).map((v, i) => v * seen + behind[i] * (1 - seen));
        const [high, low] = [light(shown), light(behind)].sort((a, b) => b - a);
        return (high + 0.05) / (low + 0.05) < 3;
    }).map(bar => bar.getAttribute('class'));
}"""


@pytest.mark.parametrize("name", NAMES)
def test_nothing_scrolls_sideways(open_page: Callable[..., Page], name: str) -> None:
    """From a phone to a desk, all unfolded, a page is as wide as the screen, and nothing leaves its panel."""
    page = open_page(name, viewport={"width": 360, "height": 740})
    page.evaluate(_UNFOLD)
    for width in (360, 600, 641, 768, 861, 1021):
        page.set_viewport_size({"width": width, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, width
        assert page.evaluate(_STICKING_OUT) == [], width


@pytest.mark.parametrize("name", NAMES)
def test_figures_stand_under_their_headings(open_page: Callable[..., Page], name: str) -> None:
    """On every screen and on paper each row of a table has as many cells, where it has any in columns, as its head."""
    page = open_page(name)
    page.evaluate(_UNFOLD)
    for width, medium in [(360, "screen"), (641, "screen"), (768, "screen"), (1000, "screen"), (1200, "screen"),
                          (703, "print"), (965, "print"), (1032, "print")]:  # fmt: skip
        page.set_viewport_size({"width": width, "height": 740})
        page.emulate_media(media=medium)  # type: ignore[arg-type]
        assert page.evaluate(_UNEVEN_ROWS) == [], (width, medium)


@pytest.mark.parametrize("name", ["overview", "overview in weeks", "a value of a tag"])
def test_one_chart_is_shown(open_page: Callable[..., Page], name: str) -> None:
    """Whatever the width, the chart is there once: the narrow one up to 640 pixels, the wide one above."""
    page = open_page(name)
    for width in (320, 640, 641, 768, 860, 861, 1200):
        page.set_viewport_size({"width": width, "height": 740})
        assert [page.locator(f"svg.bars.{kind}").is_visible() for kind in ("narrow", "wide")] == [width <= 640, width > 640]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_bar_can_be_seen(open_page: Callable[..., Page], scheme: str) -> None:
    """Each colour of the chart, also in the bar of the day that is not over, is 3:1 or more against what is behind it."""
    page = open_page("overview", color_scheme=scheme)
    assert page.locator(".wide .so-far path:not(.hit)").count() > 0
    assert page.evaluate(_FAINT_BARS) == []


def test_all_pages_are_in_the_bar(open_page: Callable[..., Page]) -> None:
    """On a tablet the whole navigation is in sight; where it scrolls, it does so only to show the page one is on."""
    for name in ("overview", "pricing"):
        page = open_page(name, viewport={"width": 768, "height": 740})
        assert page.evaluate("(nav => nav.scrollWidth - nav.clientWidth)(document.querySelector('.top nav'))") <= 0
    for name, moved in (("overview", False), ("models", False), ("pricing", True)):
        page = open_page(name, viewport={"width": 360, "height": 740})
        assert (page.evaluate("document.querySelector('.top nav').scrollLeft") > 0) == moved, name
        box = page.locator("nav a[aria-current]").bounding_box()
        assert box
        assert 0 <= box["x"] <= 360 - box["width"]


@pytest.mark.parametrize("width", [360, 768, 1200])
def test_commands_are_whole(open_page: Callable[..., Page], width: int) -> None:
    """No word of a command is broken, what is copied is the command, and the button stands beside it."""
    page = open_page("quality", viewport={"width": width, "height": 740}, permissions=["clipboard-read", "clipboard-write"])
    page.evaluate(_UNFOLD)
    assert page.locator(".to-copy:visible").count() > 0
    for box in page.locator(".to-copy:visible").all():
        code, button = box.locator("code").bounding_box(), box.locator("button").bounding_box()
        assert code
        assert button
        assert 0 <= button["x"] - code["x"] - code["width"] <= 8
        assert abs(button["y"] - code["y"]) <= 8
        words = [word for word in box.locator("code span").all() if len(word.inner_text()) < 30]
        assert all((word.bounding_box() or {"height": 99})["height"] < 30 for word in words)
    page.locator(".copy").first.click()
    assert page.evaluate("navigator.clipboard.readText()").startswith("flask llm-cost ")


@pytest.mark.parametrize("name", NAMES)
def test_it_prints(open_page: Callable[..., Page], name: str) -> None:
    """On paper a page is black on white, with its charts and tables, without controls that paper does not have."""
    page = open_page(name, color_scheme="dark")
    drawn = page.locator("svg.wide").count()
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert not [item for item in page.locator("form button, nav a, .files a").all() if item.is_visible()]
    assert all(item.is_visible() for item in page.locator("h1").all())
    assert not drawn or page.locator("svg.wide").is_visible()
    assert page.pdf().startswith(b"%PDF")


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_cut_off_on_paper(open_page: Callable[..., Page], name: str) -> None:
    """On A4 with its margins every table is there to its last column, wide ones across; the day is said."""
    page = open_page(name, viewport={"width": 703, "height": 1000})
    if page.locator(".pivot, .calls, .models").count():
        page.set_viewport_size({"width": 1032, "height": 700})
    page.emulate_media(media="print")
    page.evaluate("document.querySelectorAll('.behind').forEach(part => part.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth + 1")
    cut = "[...document.querySelectorAll('.scroll')].filter(part => part.scrollWidth > part.clientWidth + 1).length"
    assert page.evaluate(cut) == 0
    frames = page.locator(".frame:has(.paper)")
    assert all(re.search(r"as of \d+ [A-Z][a-z]{2} 20\d\d \d\d:\d\d", frame.inner_text()) for frame in frames.all())


@pytest.mark.parametrize(
    ("name", "width", "parts"),
    [
        ("overview", 360, ".shares tbody th a"),
        ("overview filtered", 360, ".chips span"),
        ("calls", 360, ".when time, .tag a"),
        ("calls", 768, ".when time, .tag a"),
        ("calls", 1000, ".when time, .tag a"),
    ],
)
def test_names_break_between_their_words(open_page: Callable[..., Page], name: str, width: int, parts: str) -> None:
    """No name, time or filter is broken within a word of fourteen letters or less."""
    page = open_page(name, viewport={"width": width, "height": 740})
    broken = """parts => [...document.querySelectorAll(parts)].flatMap(link => {
        const found = [];
        for (const node of link.childNodes) {
            if (node.nodeType !== Node.TEXT_NODE) continue;
            const range = document.createRange();
            for (const word of node.textContent.matchAll(/[^\\s]+/g)) {
                range.setStart(node, word.index);
                range.setEnd(node, word.index + word[0].length);
                if (range.getClientRects().length > 1) found.push(link.textContent);
            }
        }
        return found;
    })"""
    assert page.locator(parts).count() > 2
    assert page.evaluate(broken, parts) == []


@pytest.mark.parametrize(
    "name",
    ["overview", "models", "calls", "calls filtered", "tags", "values of a tag", "a value of a tag", "budgets", "quality",
     "pricing", "pricing at length", "call"],
)  # fmt: skip
def test_no_figure_is_lost(open_page: Callable[..., Page], name: str) -> None:
    """What a wide window shows of a row, its figures and its links, is in sight at 200% zoom, on a tablet and on a phone."""
    page = open_page(name, viewport={"width": 1280, "height": 900})
    page.evaluate(_UNFOLD)
    rows = page.evaluate(_ROWS)
    assert sum(len(row["figures"]) for row in rows) > 1
    for width in (640, 360, 700, 801, 861, 1000, 1090):
        page.set_viewport_size({"width": width, "height": 740})
        for row, shown in zip(rows, page.evaluate(_ROWS), strict=True):
            assert [figure for figure in row["figures"] if figure not in shown["text"]] == [], (width, shown["text"])
            assert set(row["links"]) <= set(shown["links"]), (width, shown["text"])


@pytest.mark.parametrize("name", ["overview", "explore", "models", "quality", "pricing", "budgets"])
def test_twice_the_size_is_still_whole(open_page: Callable[..., Page], name: str) -> None:
    """At 200% zoom of a window of 1280 pixels nothing is cut off or scrolls sideways."""
    page = open_page(name, viewport={"width": 640, "height": 450}, device_scale_factor=2)
    assert page.evaluate("document.documentElement.scrollWidth") <= 640
