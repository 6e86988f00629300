"""The ten questions of a finance person, clicked through in a real browser on the example with a past of 75 days.

Each figure is compared with what was billed: what the played provider says of today's calls, and what was made up for the
days before, each reckoned by hand from the providers' price pages.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from example_site import Site, cost
from playwright.sync_api import Browser, Page, sync_playwright

from example import demo, history
from flask_llm_cost.records import CallRecord
from flask_llm_cost.testing.provider import PlayedProvider

pytestmark = pytest.mark.slow

BERLIN = ZoneInfo("Europe/Berlin")
#: US dollars per million tokens of uncached input, cached input and output, from the providers' price pages.
RATES = {
    "claude-sonnet-4-6": ("3", "0.30", "15"),
    "claude-haiku-4-5": ("1", "0.10", "5"),
    "gpt-5.4": ("2.50", "0.25", "15"),
    "gpt-5.4-mini": ("0.75", "0.075", "4.50"),
    "text-embedding-3-small": ("0.02", "0.02", "0"),
    "gemini-2.5-flash": ("0.30", "0.03", "2.50"),
    "gemini-2.5-pro": ("1.25", "0.125", "10"),
    "gpt-4.1-nano": ("0.05", "0.0125", "0.20"),  # only ever as a batch, at half the price
}
BUDGETS = [
    {"name": "everything", "limit": "60", "period": "month"},
    {"name": "per_tenant", "limit": "0.55", "period": "day", "per": "tenant_id"},
    {"name": "per_user", "limit": "0.30", "period": "day", "per": "user_id", "action": "block"},
    {"name": "searches", "limit": "600", "unit": "calls", "period": "month", "where": {"feature": ["search"]}},
]


@dataclass(frozen=True)
class Billed:
    """A call as it was billed. ``amount`` is ``None`` where no price is known."""

    day: date
    model: str
    tags: dict[str, str]
    amount: Decimal | None
    outcome: str = "ok"


def by_hand(record: CallRecord) -> Decimal | None:
    """What a made-up call costs."""
    if record.outcome == "error":
        return None
    rates = RATES.get(record.price_model or "")
    if rates is None:
        return None
    names = ("input", "cache_read", "output")
    return sum((record.usage[name] * Decimal(rate) / 1_000_000 for name, rate in zip(names, rates, strict=True)), Decimal(0))


class Desk:
    """The example being served, and all that was billed."""

    def __init__(self, state: Path, provider: PlayedProvider) -> None:
        self.now = datetime.now(UTC).replace(microsecond=0)
        budgets = {"LLM_COST_BUDGETS": json.dumps(BUDGETS), "LLM_COST_TIMEZONE": "Europe/Berlin"}
        self.site = Site(state, provider, **budgets)
        # Until yesterday: today is what people do on the pages.
        until = datetime.combine(self.now.astimezone(BERLIN).date(), datetime.min.time(), BERLIN).astimezone(UTC)
        self.site.flask("history", "--until", f"{until:%Y-%m-%dT%H:%M:%S}")
        with closing(sqlite3.connect(state / "desk.db")) as connection:
            users = connection.execute("SELECT id, tenant_id FROM user WHERE NOT is_staff ORDER BY id").fetchall()
        people: dict[str, list[str]] = {}
        for user_id, tenant_id in users:
            people.setdefault(tenant_id, []).append(str(user_id))
        self.billed = [
            Billed(
                record.occurred_at.astimezone(BERLIN).date(),
                record.price_model or "",
                dict(record.tags),
                by_hand(record),
                record.outcome,
            )
            for record in history.past(until, 75, people)
        ]
        self.site.start()
        for email in ("ada@northwind.example", "chloe@juniper.example"):
            demo.visit(self.site.url, email, real=False)
        self.site.calls(len(self.billed) + len(provider.truth))
        self.today = self.now.astimezone(BERLIN).date()
        self.billed += [Billed(self.today, item.model, {}, cost(item)) for item in provider.truth]

    def sum(self, matches: Callable[[Billed], bool] = lambda call: True) -> Decimal:
        return sum((call.amount for call in self.this_month if call.amount is not None and matches(call)), Decimal(0))

    @property
    def this_month(self) -> list[Billed]:
        return [call for call in self.billed if call.day >= self.today.replace(day=1)]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with PlayedProvider() as provider:
        desk = Desk(tmp_path_factory.mktemp("desk"), provider)
        yield desk
        desk.site.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def staff(browser: Browser, desk: Desk) -> Any:
    """The cookies of somebody of the staff who has signed in."""
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(desk.site.url + "/login")
        page.fill("input[name=email]", "sam@desk.example")
        page.fill("input[name=password]", "demo")
        page.click("main button, form button")
        page.wait_for_load_state()
        return context.storage_state()


@pytest.fixture
def page(browser: Browser, desk: Desk, staff: Any) -> Iterator[Page]:
    with browser.new_context(storage_state=staff, viewport={"width": 1200, "height": 1000}) as context:
        page = context.new_page()
        page.goto(desk.site.url + "/llm-costs/")
        yield page


def amount(page: Page, selector: str) -> Decimal:
    """An exact figure: its value, not what is rounded for reading."""
    return Decimal(page.locator(selector).first.locator("data").first.get_attribute("value") or "")


def row(page: Page, panel: str, label: str) -> Decimal:
    found = page.locator(f"section:has(h2:has-text('{panel}')) tr", has=page.get_by_role("link", name=label, exact=True))
    return Decimal(found.locator("data").first.get_attribute("value") or "")


def test_how_much_this_month_and_is_that_more(page: Page, desk: Desk) -> None:
    """1: the number of this month, and how much more or less it is than the last, without a click."""
    assert amount(page, "h1") == desk.sum()
    first = desk.today.replace(day=1)
    before = (first - timedelta(days=1)).replace(day=1)
    compared = amount(page, ".lead p")
    same_days = [
        call for call in desk.billed if before <= call.day < before + (desk.today - first) and call.amount is not None
    ]
    assert compared >= sum((call.amount or Decimal(0) for call in same_days), Decimal(0))
    assert page.locator(".lead p b").first.inner_text().split()[1] in ("more", "less")


def test_who_is_burning_it_and_on_what(page: Page, desk: Desk) -> None:
    """2 and 3: the dearest tenant with one click, its features and models on the page that opens."""
    assert row(page, "By tenant", "Kestrel Insurance") == desk.sum(lambda call: call.tags.get("tenant_id") == "kestrel")
    page.locator("section:has(h2:has-text('By tenant')) th a", has_text="Kestrel Insurance").click()
    assert amount(page, "h1") == desk.sum(lambda call: call.tags.get("tenant_id") == "kestrel")
    chats = desk.sum(lambda call: call.tags.get("tenant_id") == "kestrel" and call.tags.get("feature") == "support_chat")
    assert row(page, "By feature", "support_chat") == chats
    page.locator("section:has(h2:has-text('By feature')) th a", has_text="support_chat").click()
    sonnet = desk.sum(
        lambda call: (
            (call.tags.get("tenant_id"), call.tags.get("feature"), call.model)
            == ("kestrel", "support_chat", "claude-sonnet-4-6")
        )
    )
    assert row(page, "By model", "claude-sonnet-4-6") == sonnet


def test_what_happened_on_the_day_it_jumped_and_which_calls(page: Page, desk: Desk) -> None:
    """4 and 5: the bar of the odd day opens it; to its calls it is a click, to the dearest of them one more."""
    page.select_option(".auto select[name=range]", "30d")
    page.wait_for_url("**range=30d**")
    days = {call.day: Decimal(0) for call in desk.billed}
    for call in desk.billed:
        days[call.day] += call.amount or Decimal(0)
    jump = max((day for day in days if day > desk.today - timedelta(days=30)), key=lambda day: days[day])
    assert page.locator("svg.wide .note").is_visible()
    page.locator(f"svg.wide a.slot[href*='from={jump}']").click()
    assert amount(page, "h1") == days[jump]
    page.locator(".facts a", has_text=str(sum(call.day == jump for call in desk.billed))).click()
    page.select_option(".auto select[name=sort]", "dearest")
    page.wait_for_url("**sort=dearest**")
    assert amount(page, "td.cost") == max(call.amount or Decimal(0) for call in desk.billed if call.day == jump)


def test_will_a_budget_be_exceeded(page: Page, desk: Desk) -> None:
    """6: what is spent of the month's budget, and when it is used up, without a click; all of them with one."""
    everything = page.locator(".budgets li", has_text="everything")
    assert f"${desk.sum():,.2f} of $60.00" in everything.inner_text()
    assert "pace" in everything.inner_text() or "used up" in everything.inner_text()
    page.locator("section:has(h2:has-text('Budgets')) h2 a").click()
    assert "Northwind Cycles" in page.locator("table.budget-table").inner_text()


def test_what_does_a_user_cost(page: Page, desk: Desk) -> None:
    """7: users by what they cost, all of them with one click."""
    page.locator("section:has(h2:has-text('By user')) h2 a", has_text="all").click()
    shown = {
        item.locator("th a").inner_text(): Decimal(item.locator("td.amount data").get_attribute("value") or "")
        for item in page.locator("table.values tbody tr").all()
        if item.locator("td.amount data").count()
    }
    assert shown["Jonas"] == desk.sum(lambda call: call.tags.get("user_id") == "10")
    assert sum(shown.values()) <= desk.sum()
    assert len(shown) >= 13


def test_what_is_not_in_the_number(page: Page, desk: Desk) -> None:
    """8: how many calls have no price, without a click; which, why and what to do with one."""
    triage = [call for call in desk.this_month if call.model == "desk-triage-2" and call.outcome != "error"]
    assert f"{len(triage)} calls without a price" in page.locator(".complete").first.inner_text()
    page.get_by_role("link", name="Data quality").click()
    issue = page.locator("table.issues tr", has_text="desk-triage-2 has no price")
    assert f"{len(triage)} calls" in issue.inner_text()
    assert "flask llm-cost prices explain in_house desk-triage-2" in issue.inner_text()


def test_why_does_this_call_cost_that(page: Page, desk: Desk) -> None:
    """9: the dearest call with one click: quantity times rate, line by line, and their sum."""
    dearest = max(call.amount for call in desk.this_month if call.amount is not None)
    page.locator("section:has(h2:has-text('Dearest calls')) th a").first.click()
    assert amount(page, "h1") == dearest
    found = page.request.get(page.url + "?format=json").json()
    lines = [
        (Decimal(line["quantity"]) * Decimal(line["rate"]) / Decimal(line["rate_per"]), Decimal(line["cost"]))
        for line in found["lines"]
    ]
    assert all(product == shown for product, shown in lines)
    assert sum(shown for _, shown in lines) == dearest
    assert page.locator("table.bill tbody tr").count() == len(lines)


def test_the_file_for_accounting(page: Page, desk: Desk) -> None:
    """10: a file with one click, whose rows add up to the number on the screen."""
    with page.expect_download() as waiting:
        page.locator(".files a", has_text="CSV").first.click()
    text = Path(waiting.value.path()).read_bytes()
    assert text.startswith(b"\xef\xbb\xbf")
    rows = list(csv.DictReader(io.StringIO(text.decode("utf-8-sig"), newline="")))
    assert sum(Decimal(item["cost"] or 0) for item in rows) == desk.sum()
    assert "(untagged)" in {item["tag:feature"] for item in rows}


PICTURES = {
    "overview-light": ("", 1120, 980, "light"),
    "overview-phone": ("", 360, 1500, "light"),
    "explore-light": ("explore?range=90d&rows=tag:tenant_id", 1200, 760, "light"),
    "models-dark": ("models", 1200, 860, "dark"),
    "quality-light": ("data-quality", 1200, 960, "light"),
    "budgets-dark": ("budgets", 1200, 900, "dark"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_the_pictures_of_the_docs(browser: Browser, desk: Desk, staff: Any, name: str, tmp_path: Path) -> None:
    """The pages that the docs show can be drawn. ``PICTURES_TO=docs`` keeps them there."""
    address, width, height, scheme = PICTURES[name]
    path = Path(os.environ.get("PICTURES_TO", tmp_path)) / f"{name}.png"
    size = {"width": width, "height": height}
    with browser.new_context(storage_state=staff, color_scheme=scheme, viewport=size) as context:
        page = context.new_page()
        page.goto(f"{desk.site.url}/llm-costs/{address}")
        page.screenshot(path=path)
    assert path.stat().st_size > 10_000
