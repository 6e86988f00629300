"""The pages in a real browser: no violation of the policy, no sideways scrolling, no script needed, nothing hard to read."""

from __future__ import annotations

import gzip
import random
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from addresses import PAGES
from axe_playwright_python.sync_playwright import Axe
from flask import Flask
from ledger_rows import add_call
from mounted_app import PREFIX, MountedApp
from playwright.sync_api import Browser, Page, sync_playwright
from werkzeug.serving import make_server

from flask_llm_cost import track
from flask_llm_cost.dashboard.rendering import asset

pytestmark = pytest.mark.slow

_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
_OF_COLOURS = {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}
_UNFOLD = "document.querySelectorAll('details').forEach(part => part.open = true)"
_STICKING_OUT = """() => [...document.querySelectorAll('.panel')].flatMap(panel => {
    const edge = panel.getBoundingClientRect().right + 1;
    return [...panel.querySelectorAll('*')]
        .filter(part => !part.parentElement.closest('.scroll, svg, .unseen') && part.getBoundingClientRect().right > edge)
        .map(part => part.textContent.slice(0, 40));
})"""
_BUDGETS = [
    {"name": "everything", "limit": "500", "period": "month"},
    {"name": "per_tenant", "limit": "2", "period": "day", "per": "tenant_id", "action": "block"},
    {"name": "tokens", "limit": "90000000", "unit": "tokens", "period": "week"},
]
_LONG = "a_feature_with_a_name_that_is_much_longer_than_anybody_thought_it_would_ever_be"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """An app being served, with two months of calls of every kind; its address, and its pages by name."""
    path = tmp_path_factory.mktemp("site") / "ledger.db"
    app = MountedApp(
        Flask("site"), f"sqlite:///{path}", tables=True, LLM_COST_TIMEZONE="Europe/Berlin", LLM_COST_BUDGETS=_BUDGETS
    )
    app.mount(guard=None)
    app.mount("/mine", guard=None, name="mine", scope=lambda: {"tenant_id": "t1"})
    app.mount("/new", guard=None, name="new", scope=lambda: {"tenant_id": "nobody"})
    dice = random.Random(1)
    now = datetime.now(UTC)
    with app.app.app_context():
        session = app.database.session
        for n in range(700):
            tags = {
                "feature": dice.choice(["chat", "ocr", _LONG, *"abcdefgh"]),
                "tenant_id": f"t{n % 12}",
                "user_id": f"u{n % 90}",
            }
            tags = {key: value for key, value in tags.items() if dice.random() > 0.05}
            cost = None if n % 17 == 0 else f"{dice.lognormvariate(-2, 1.5):.6f}"
            outcome = dice.choice(["ok"] * 9 + ["interrupted"])
            model = dice.choice(["gpt-4o", "claude-sonnet-4-6", "accounts/fireworks/models/" + "very-long-model-name-" * 4])
            call_id = add_call(
                session,
                now - timedelta(hours=n * 2),
                cost,
                tags=tags,
                model=model,
                outcome=outcome,
                items=[("input", 1000, "2.5", "0.0025"), ("output", 200, "10", "0.002")] if cost else (),
                first_token_ms=300,
                provider_response_id="chatcmpl-1234567890",
            )
        session.commit()
        for tenant in ("t1", "t2", _LONG):
            track("openai", model="gpt-4o", usage={"input": 900_000}, tags={"tenant_id": tenant, "feature": "chat"})
        assert app.costs.flush(20)
    server = make_server("127.0.0.1", 0, app.app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    pages = {name: PREFIX + address for name, address in PAGES.items()} | {
        "overview in weeks": f"{PREFIX}/?from=2024-06-01&to={now:%Y-%m-%d}",
        "overview filtered": f"{PREFIX}/?range=30d&model=gpt-4o&tag.feature={_LONG}&untagged=team",
        "scoped": "/mine/",
        "scoped quality": "/mine/data-quality",
        "calls filtered": f"{PREFIX}/calls?range=90d&tag.feature={_LONG}&limit=10",
        "call": f"{PREFIX}/calls/{call_id}",
        "pricing at length": f"{PREFIX}/pricing?search=gpt-4o",
        "first run": "/new/",
        "empty": f"{PREFIX}/?from=2020-01-01&to=2020-01-31",
        "not understood": f"{PREFIX}/?foo=1",
    }
    yield f"http://127.0.0.1:{server.port}", pages
    server.shutdown()
    thread.join()
    server.server_close()
    app.close()


@pytest.fixture
def open_page(browser: Browser, site: tuple[str, dict[str, str]]) -> Iterator[Callable[..., Page]]:
    contexts = []

    def open_page(name: str, **options: Any) -> Page:
        address, pages = site
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.goto(address + pages[name])
        return page

    yield open_page
    for context in contexts:
        context.close()


NAMES = [
    *PAGES, "overview in weeks", "overview filtered", "scoped", "scoped quality", "calls filtered", "call", "first run",
    "empty", "not understood",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_policy_is_kept(browser: Browser, site: tuple[str, dict[str, str]], name: str) -> None:
    """The browser reports no violation of the strict policy, no error, and no request to anywhere else."""
    address, pages = site
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script(
        "window.violations = []; document.addEventListener('securitypolicyviolation', e => "
        "window.violations.push(e.violatedDirective + ' ' + e.blockedURI))"
    )
    errors: list[str] = []
    requested: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requested.append(request.url))
    page.goto(address + pages[name])
    assert page.evaluate("window.violations") == []
    assert errors == []
    assert all(url.startswith(address) for url in requested)
    assert page.evaluate("document.styleSheets.length") == 1
    assert page.evaluate("getComputedStyle(document.body).marginTop") == "0px"
    context.close()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_scrolls_sideways(open_page: Callable[..., Page], name: str) -> None:
    """On a phone, a tablet and between, all unfolded, a page is as wide as the screen, and nothing leaves its panel."""
    page = open_page(name, viewport={"width": 360, "height": 740})
    page.evaluate(_UNFOLD)
    for width in (360, 600, 768):
        page.set_viewport_size({"width": width, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(_STICKING_OUT) == []


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_hard_to_read(open_page: Callable[..., Page], name: str) -> None:
    """axe-core finds nothing serious or critical, light and dark, with every part unfolded, on a desk and a phone.

    In the dark every rule about colours is tried again, and nothing but colours is another.
    """
    page = open_page(name, bypass_csp=True)
    page.evaluate(_UNFOLD)
    for width in (1200, 360):
        page.set_viewport_size({"width": width, "height": 800})
        for scheme, rules in (("light", _RULES), ("dark", _OF_COLOURS)):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            found = Axe().run(page, options={"runOnly": rules, "resultTypes": ["violations"]})
            problems = [
                (item["id"], item["impact"], [node["target"] for node in item["nodes"]][:3])
                for item in found.response["violations"]
                if item["impact"] in ("serious", "critical")
            ]
            assert problems == [], (width, scheme)


def test_all_works_without_javascript(open_page: Callable[..., Page], site: tuple[str, dict[str, str]]) -> None:
    """With scripts off one can change the range and the dimension, follow a bar to its day and its calls, and open one."""
    page = open_page("overview", java_script_enabled=False)
    page.select_option("select[name=range]", "30d")
    page.select_option("select[name=by]", "model")
    page.click(".auto button")
    assert "range=30d" in page.url
    assert "by=model" in page.url
    page.locator("svg.wide a.slot").last.click()
    assert "from=" in page.url
    page.locator(".facts a").first.click()
    assert "/calls?" in page.url
    page.locator("table.calls th a").first.click()
    assert page.locator("#bill").is_visible()
    page.goto(site[0] + f"{PREFIX}/calls?range=90d")
    page.locator("details.filters summary").click()
    page.fill("input[name='tag.tenant_id']", "t1")
    page.click("button.apply")
    assert "tag.tenant_id=t1" in page.url
    assert page.locator("table.calls tbody tr").count() > 0
    page.click("a[rel=next]")
    assert "after=" in page.url
    page.click("a[rel=prev]")
    assert "before=" in page.url


def test_own_dates_appear_when_asked_for(open_page: Callable[..., Page]) -> None:
    """The two dates are there once the range is one's own, and are sent; a named range ignores them."""
    page = open_page("overview", java_script_enabled=False)
    assert not page.locator("input[name=from]").first.is_visible()
    page.select_option("select[name=range]", "custom")
    page.fill("input[name=from]", "2026-01-01")
    page.fill("input[name=to]", "2026-01-31")
    page.click(".auto button")
    assert page.locator("h1").inner_text().startswith("No calls")
    page.select_option("select[name=range]", "90d")
    page.click(".auto button")
    assert "90 days" in page.locator("h1").inner_text()


def test_a_keyboard_reaches_everything(open_page: Callable[..., Page]) -> None:
    """The first stop skips to the content, and bars are stops that can be seen and followed."""
    page = open_page("overview")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    bar = page.locator("svg.wide a.slot").last
    bar.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/?from=**")


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


def test_names_break_between_their_words(open_page: Callable[..., Page]) -> None:
    """On a phone no name in a table is broken within a word of fourteen letters or less."""
    page = open_page("overview", viewport={"width": 360, "height": 740})
    broken = """() => [...document.querySelectorAll('.shares tbody th a')].flatMap(link => {
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
    assert page.locator(".shares tbody th a").count() > 5
    assert page.evaluate(broken) == []


@pytest.mark.parametrize("name", [*NAMES, "pricing at length"])
def test_pages_are_light(browser: Browser, site: tuple[str, dict[str, str]], name: str) -> None:
    """A page is under 150 KiB, and under 20 compressed."""
    with browser.new_context() as context:
        body = context.request.get(site[0] + site[1][name]).body()
    assert len(body) < 150 * 1024
    assert len(gzip.compress(body)) < 20 * 1024


def test_only_colours_are_others_in_the_dark() -> None:
    """The dark scheme sets variables, each of which the light one has, and nothing else."""
    style = asset("app.css")[0].decode()
    (block,) = re.findall(r"@media \(prefers-color-scheme: dark\) \{\s*:root \{(.*?)\}\s*\}", style, re.DOTALL)
    assert style.count("prefers-color-scheme") == 1
    light = style[: style.index("@media")]
    for declaration in filter(None, map(str.strip, block.split(";"))):
        name, _, colour = declaration.partition(":")
        assert f"{name}:" in light
        assert re.fullmatch(r"--[a-z0-9-]+", name)
        assert re.fullmatch(r"#[0-9a-f]{6}", colour.strip())


def test_the_script_is_small() -> None:
    """What is written by hand for the browser is at most 6 KB."""
    assert len(asset("app.js")[0]) <= 6000


def test_the_script_adds_comforts(open_page: Callable[..., Page]) -> None:
    """A choice takes effect at once, a bar says its parts beside the pointer, and empty fields stay out of the address."""
    page = open_page("overview", viewport={"width": 1200, "height": 900})
    assert not page.locator(".auto button").is_visible()
    page.select_option("select[name=by]", "model")
    page.wait_for_url("**by=model**")
    assert page.url.endswith("?by=model")
    page.locator("svg.wide a.slot").last.hover(position={"x": 5, "y": 100})
    assert page.locator(".tip").is_visible()
    assert "call" in page.locator(".tip b").inner_text()
    page.keyboard.press("Escape")
    assert not page.locator(".tip").is_visible()


def test_pages_keep_the_question(open_page: Callable[..., Page]) -> None:
    """From the navigation every page is one click away, and keeps the range and the filters."""
    page = open_page("overview filtered")
    for name in ("Explore", "Models", "Calls", "Tags", "Data quality", "Overview"):
        page.get_by_role("link", name=name, exact=True).first.click()
        assert "range=30d" in page.url, name
        assert "model=gpt-4o" in page.url, name
        assert page.locator("nav a[aria-current]").inner_text() == name


@pytest.mark.parametrize("name", ["overview", "explore", "models", "quality", "pricing", "budgets"])
def test_twice_the_size_is_still_whole(open_page: Callable[..., Page], name: str) -> None:
    """At 200% zoom of a window of 1280 pixels nothing is cut off or scrolls sideways."""
    page = open_page(name, viewport={"width": 640, "height": 450}, device_scale_factor=2)
    assert page.evaluate("document.documentElement.scrollWidth") <= 640
