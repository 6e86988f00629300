"""The pages in a real browser: no violation of the policy, no script needed, nothing hard to read."""

from __future__ import annotations

import gzip
import itertools
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from addresses import NAMES
from axe_playwright_python.sync_playwright import Axe
from mounted_app import PREFIX, MountedApp
from playwright.sync_api import Browser, Page

from flask_llm_cost.dashboard.controls import SORTS
from flask_llm_cost.dashboard.filters import BREAKDOWNS
from flask_llm_cost.dashboard.periods import RANGES
from flask_llm_cost.dashboard.rendering import asset

pytestmark = pytest.mark.slow

_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
_OF_COLOURS = {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}
_UNFOLD = "document.querySelectorAll('details').forEach(part => part.open = true)"


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


@pytest.mark.parametrize("name", [*NAMES, "pricing at length"])
def test_pages_are_light(browser: Browser, site: tuple[str, dict[str, str]], name: str) -> None:
    """A page is under 150 KiB, and under 20 compressed."""
    with browser.new_context() as context:
        body = context.request.get(site[0] + site[1][name]).body()
    size, compressed = weight(body)
    assert size < 150
    assert compressed < 20


def weight(body: bytes) -> tuple[float, float]:
    """How many KiB a page has, and how many compressed."""
    return len(body) / 1024, len(gzip.compress(body)) / 1024


_DAYS = [f"range={name}" for name in RANGES if name != "custom"] + [f"days={n}" for n in (62, 63, 119, 427, 428, 1100)]
#: All that the menus of a sentence offer, and days of one's own at the ends of what is drawn by day, by week and by month.
_CHOICES = {
    "": [_DAYS, [f"by={name}" for name in ("tag:feature", "tag:tenant_id", "tag:user_id", *BREAKDOWNS)]],
    "explore": [["range=90d", "range=30d"], [f"rows={name}" for name in ("tag:feature", "tag:user_id", "model")],
                [f"cols={name}" for name in ("time", "none", "tag:feature", "tag:user_id", "model")],
                [f"show={name}" for name in ("cost", "tokens")]],
    "calls": [["range=90d&limit=75"], [f"sort={name}" for name in SORTS],
              ["", "tag.feature=0_a_feature_with_a_name_as_long_as_teams_give_them&outcome=ok&provider=openai&stream=no"]],
    **{page: [["range=90d", "range=30d"]] for page in ("models", "tags", "tags/feature", "tags/user_id", "data-quality")},
    "budgets": [[""]],
}  # fmt: skip


@pytest.mark.parametrize("page", _CHOICES)
def test_whatever_is_chosen_is_light(months: MountedApp, page: str) -> None:
    """With eight features of long names that are called every day, a page is as light, whatever its menus are set to."""
    today = datetime.now(UTC).date()
    for parts in itertools.product(*_CHOICES[page]):
        query = re.sub(
            r"days=(\d+)", lambda days: f"from={today - timedelta(days=int(days[1]) - 1)}&to={today}", "&".join(parts)
        )
        response = months.get(f"{PREFIX}/{page}?{query}")
        assert response.status_code == 200, query
        size, compressed = weight(response.data)
        assert size < 150, query
        assert compressed < 20, query


def test_more_calls_than_fit_are_for_programs(months: MountedApp) -> None:
    """A page of more calls than are light says how many fit, and that their JSON may have more."""
    response = months.get(PREFIX + "/calls?range=90d&limit=500")
    assert response.status_code == 400
    assert "from 1 to 75 (with format=json to 500)" in response.get_data(as_text=True)
    assert len(months.get(PREFIX + "/calls?range=90d&limit=500&format=json").get_json()["calls"]) == 500


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
    """From the navigation every page is one click away, and keeps the range and the filters, also those that need none."""
    page = open_page("overview filtered")
    for name in ("Explore", "Models", "Calls", "Tags", "Budgets", "Data quality", "Pricing", "Overview"):
        page.get_by_role("link", name=name, exact=True).first.click()
        assert "range=30d" in page.url, name
        assert "model=gpt-4o" in page.url, name
        assert page.locator("nav a[aria-current]").inner_text() == name
