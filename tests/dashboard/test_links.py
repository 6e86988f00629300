"""Links that say how many calls they open, or what they open, and open just that."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from html import unescape
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from addresses import PAGES
from flask import Flask
from mounted_app import BUDGETS, PREFIX, MountedApp, statements

from flask_llm_cost import track
from flask_llm_cost.dashboard.filters import CHOICES, UNPRICED
from flask_llm_cost.ledger import queries
from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.ledger.local_time import start_of_day
from flask_llm_cost.ledger.models import BudgetHold, BudgetPeriod

Make = Callable[..., MountedApp]
NAMES = ("outcome", "usage_source", "cost_status")
STORED = [[value for value in CHOICES[name] if value != "known"] for name in NAMES]


@pytest.fixture(scope="module")
def every_kind(sqlite_server: Any) -> Iterator[Callable[[bool], MountedApp]]:
    """A ledger with a call of every combination of how it ended, was counted and was priced, without and with rollups."""
    urls = [sqlite_server.create(), sqlite_server.create()]
    made: list[MountedApp] = []
    for url in urls:
        app = MountedApp(Flask(f"kinds{len(made)}"), url, tables=True, LLM_COST_BUDGETS=BUDGETS).mount()
        app.add_all(
            (
                None if status == "unpriced" else "0" if status == "free" else "0.01",
                {
                    "outcome": outcome,
                    "usage_source": source,
                    "cost_status": status,
                    "ago": timedelta(hours=n),
                    "stream": n % 3 == 0,
                },
            )
            for n, (outcome, source, status) in enumerate(itertools.product(*STORED))
        )
        made.append(app)
    made[1].roll_up()
    yield lambda rolled: made[rolled]
    for app, url in zip(made, urls, strict=True):
        app.close()
        sqlite_server.drop(url)


@pytest.mark.parametrize("rolled", [False, True], ids=["calls", "rollups"])
def test_unpriced_calls_are_those_of_the_filter(every_kind: Callable[[bool], MountedApp], rolled: bool) -> None:
    """However calls are filtered, as many are said to be without a price as its link counts, from calls and from rollups."""
    app = every_kind(rolled)
    chosen = [(None, *CHOICES[name]) for name in NAMES]
    with app.app.app_context(), app.costs.session() as session:
        for values in itertools.product(*chosen):
            asked = {name: value for name, value in zip(NAMES, values, strict=True) if value is not None}
            said = queries.completeness(session, Filter(scope={}, **asked)).unpriced
            linked = queries.totals(session, Filter(scope={}, **{**UNPRICED, **asked})).calls
            assert said == linked or not said, asked
        assert queries.completeness(session, Filter(scope={})).unpriced == 5 * 6
        # All but those of which nothing is known, as data quality and the command line group by it.
        known = queries.totals(session, Filter(scope={}, usage_source="known")).calls
        sources = {row.key: row.calls for row in queries.pivot(session, Filter(scope={}), ("usage_source",))}
        assert known == sum(calls for source, calls in sources.items() if source not in ("unknown", "pending"))


def linked(text: str) -> list[tuple[str, str]]:
    """The links to lists of calls: their words and their addresses."""
    found = re.findall(r'<a (?:class="warn" )?href="([^"]*/calls\?[^"]*)">(?:<data[^>]*>)?([^<]+)<', text)
    return [(unescape(words), unescape(href)) for href, words in found]


def listed(app: MountedApp, href: str) -> int:
    return len(app.get(href + "&format=json&limit=500").get_json()["calls"])


@pytest.mark.parametrize("rolled", [False, True], ids=["calls", "rollups"])
@pytest.mark.parametrize("page", ["/", "/data-quality", "/models", "/tags"])
@pytest.mark.parametrize(
    "query", ["", "&outcome=error", "&usage_source=response", "&usage_source=known", "&cost_status=unpriced&model=gpt-4o"]
)
def test_a_link_opens_as_many_calls_as_it_says(
    every_kind: Callable[[bool], MountedApp], rolled: bool, page: str, query: str
) -> None:
    """A link to calls that begins with a number of them lists that many, on every page and with filters set."""
    app = every_kind(rolled)
    text = app.get(f"{PREFIX}{page}?range=30d{query}").get_data(as_text=True)
    for words, href in linked(text):
        if said := re.match(r"(?:among these )?([\d,]+)", words):
            assert listed(app, href) == int(said[1].replace(",", "")), (words, href)


def test_ways_to_fail_are_linked_apart(every_kind: Callable[[bool], MountedApp]) -> None:
    """Interrupted, failed and blocked calls have a link each, which opens those and no others, whatever else is filtered."""
    app = every_kind(True)
    for query in ("?range=30d", "?range=30d&provider=openai"):
        found = dict(linked(app.get(PREFIX + "/" + query).get_data(as_text=True)))
        for words, outcome in (("interrupted", "interrupted"), ("failed", "error"), ("blocked", "blocked")):
            asked = dict(parse_qsl(urlsplit(found[words]).query))
            assert asked == {**dict(parse_qsl(query[1:])), "outcome": outcome}
            assert listed(app, found[words]) == 8 * 4


@pytest.mark.parametrize(
    "page",
    [
        "/?by=model",
        "/models?",
        "/explore?show=calls&rows=model&cols=none",
        "/explore?show=calls&rows=model",
        "/explore?show=calls&rows=model&cols=tag:feature",
        "/explore?show=calls&rows=tag:feature&cols=model",
        "/data-quality?",
    ],
)
def test_calls_without_a_model_lead_nowhere(make: Make, page: str) -> None:
    """No filter finds calls without a model: their rows, columns and cells have no link to more calls than they say."""
    app = make().mount()
    for feature in ("chat", "search"):
        app.add("1", tags={"feature": feature}, computed_cost="2")
        for provider in ("openai", "acme"):
            app.add("1", tags={"feature": feature}, provider=provider, model=None, computed_cost="2")
    text = app.get(f"{PREFIX}{page}&range=7d").get_data(as_text=True)
    assert "(no model)" in text
    assert not re.search(r'<a (?!href="[^"?]*/calls/)[^>]*\?[^>]*>[^<]*\(no model\)', text)
    found = re.findall(r'<a href="([^"]*/calls\?[^"]*)">(?:<span[^>]*>)?([\d,]+)(?: calls?)?[:<]', text)
    assert found or "cols=none" in page
    for href, number in found:
        assert listed(app, unescape(href)) == int(number), href


def test_the_calls_of_a_price_are_those_of_its_list(make: Make) -> None:
    """Pricing counts the calls of each model as its link lists them: the last 90 days, each currency by itself."""
    zone = ZoneInfo("Europe/Berlin")
    app = make(LLM_COST_TIMEZONE=zone.key).mount()
    for days in (0, 1, 89, 90, 91):
        app.add("1", at=start_of_day(datetime.now(zone).date() - timedelta(days=days), zone))
    for currency in ("EUR", "EUR", "GBP"):
        app.add("1", currency=currency)
    app.add("1", currency="EUR", model="mistral-large", provider="mistral")
    text = app.get(PREFIX + "/pricing").get_data(as_text=True)
    found = re.findall(r'<a href="([^"]*/calls\?[^"]*)">(\d+) calls?([^<]*)</a>', text)
    assert [(number, words) for _, number, words in found] == [
        ("3", ""),
        ("2", " in euros"),
        ("1", " in pounds"),
        ("1", " in euros"),
    ]
    for href, number, _ in found:
        assert listed(app, unescape(href)) == int(number), href


def test_calls_in_another_currency_have_their_pages(make: Make) -> None:
    """Each call of a list opens, whatever its currency; a ledger with no other is no first run, and leads to them."""
    app = make().mount()
    euros = app.add("1", currency="EUR")
    text = app.get(PREFIX + "/calls?range=7d&currency=EUR").get_data(as_text=True)
    assert f'href="{PREFIX}/calls/{euros}?range=7d&amp;currency=EUR"' in text
    assert "€1.00" in app.get(f"{PREFIX}/calls/{euros}").get_data(as_text=True)
    for page in ("/", "/calls", "/data-quality"):
        assert "currency=EUR" in app.get(PREFIX + page, range="7d").get_data(as_text=True), page


def bars(text: str) -> list[str]:
    return [unescape(href) for href in re.findall(r'<a class="slot[^"]*" href="([^"]+)">', text)]


def test_a_bar_opens_its_day(make: Make) -> None:
    """A bar leads to the overview of its day with the filters that are set; the one bar of a day leads to its calls."""
    app = make().mount()
    now = datetime.now(UTC)
    for days, cost in ((9, "4"), (0, "1")):
        app.add(cost, at=now - timedelta(days=days, seconds=1), tags={"feature": "chat", "tenant_id": "t1"})
        app.add("8", at=now - timedelta(days=days, seconds=1), tags={"feature": "other", "tenant_id": "t1"})
    opened = bars(app.get(PREFIX + "/?range=30d&tag.feature=chat&by=model").get_data(as_text=True))[0]
    day = (now - timedelta(days=9, seconds=1)).date().isoformat()
    assert urlsplit(opened).path == PREFIX + "/"
    assert dict(parse_qsl(urlsplit(opened).query)) == {"from": day, "to": day, "tag.feature": "chat", "by": "model"}
    assert app.get(opened + "&format=json").get_json()["total"]["cost"] == "4"
    deeper = bars(app.get(opened).get_data(as_text=True))
    assert {urlsplit(href).path for href in deeper} == {PREFIX + "/calls"}
    assert listed(app, deeper[0]) == 1


def test_pages_of_calls_lead_on_and_back(make: Make) -> None:
    """The link under a list leads to the calls after those, until there are none, and back to those before, each once."""
    app = make().mount()
    app.add_all(("1", {"ago": timedelta(minutes=n), "tags": {"feature": "a b&c"}}) for n in range(200))
    seen: dict[str, list[list[str]]] = {"next": [], "prev": []}
    href: str | None = f"{PREFIX}/calls?range=90d&tag.feature=a+b%26c"
    for rel, pages in seen.items():
        while href is not None:
            text = app.get(href).get_data(as_text=True)
            pages.append(re.findall(r"/calls/([0-9a-f-]{36})", text))
            found = re.search(rf'<a rel="{rel}" href="([^"]+)"', text)
            href, last = (unescape(found[1]) if found else None), href
        href = last
    assert [len(page) for page in seen["next"]] == [50] * 4
    assert len({call for page in seen["next"] for call in page}) == 200
    assert seen["prev"] == seen["next"][::-1]


def test_files_are_what_their_links_say(make: Make) -> None:
    """On every page, a single call's too, "CSV" leads to a file and "JSON" to JSON."""
    app = make().mount().fill(24)
    call = app.get(PREFIX + "/calls", range="90d", format="json").get_json()["calls"][0]["id"]
    kinds = {"CSV": "text/csv", "JSON": "application/json"}
    for address in (*PAGES.values(), f"/calls/{call}"):
        text = app.get(PREFIX + address).get_data(as_text=True)
        found = re.findall(r'<a href="([^"]+)"[^>]*>(CSV|JSON)</a>', text)
        assert found, address
        for href, kind in found:
            assert app.get(unescape(href)).mimetype == kinds[kind], href


def test_a_call_keeps_the_question(make: Make) -> None:
    """From a list to one of its calls and back, by the crumb or the navigation, the range and the filters stay."""
    app = make().mount()
    app.add("1", ago=timedelta(hours=1), tags={"category": "c7", "team": "x"})
    question = {"range": "90d", "tag.category": "c7"}
    for page in ("/calls", "/"):
        text = app.get(PREFIX + page, **question).get_data(as_text=True)
        (opened,) = [unescape(href) for href in re.findall(r'href="([^"]*/calls/[^"]+)"', text)]
        assert dict(parse_qsl(urlsplit(opened).query)) == question
        there = app.get(opened).get_data(as_text=True)
        back = [urlsplit(unescape(href)) for href in re.findall(r'<a href="([^"]+)"', there)]
        kept = {href.path.removeprefix(PREFIX) for href in back if dict(parse_qsl(href.query)) == question}
        pages = ("", "explore", "models", "calls", "tags", "budgets", "data-quality", "pricing")
        assert kept == {"/" + name for name in pages}
        assert re.search(r'<a href="[^"]*range=90d[^"]*">Calls</a> /', there)


@pytest.mark.parametrize("currency", ["USD", "EUR"])
@pytest.mark.parametrize("days", [0, 70])
def test_an_old_call_leads_to_its_own_month(make: Make, days: int, currency: str) -> None:
    """The model and the tags of a call open the month that it was made in, in its currency: the call is among them."""
    app = make().mount()
    call_id = app.add("3.5", ago=timedelta(days=days, minutes=1), tags={"team": "x"}, currency=currency)
    app.add("1", tags={"team": "x"})
    text = app.get(f"{PREFIX}/calls/{call_id}").get_data(as_text=True)
    found = [unescape(href) for href in re.findall(r'<a href="([^"]*(?:model=gpt-4o|tag\.team=x)[^"]*)"', text)]
    assert len(found) == 2
    for href in found:
        there = app.get(href + "&format=json").get_json()
        assert there["currency"] == currency
        assert any(call["id"] == str(call_id) for call in there["dearest_calls"]), href


@pytest.mark.parametrize("page", ["budgets", "pricing"])
def test_what_filters_nothing_says_so(make: Make, page: str) -> None:
    """Budgets and prices keep the filters for the way on and say that they are not held to them; their files refuse them."""
    app = make(LLM_COST_BUDGETS=BUDGETS).mount()
    app.add("1", tags={"tenant_id": "t1"})
    address = f"{PREFIX}/{page}"
    assert "whatever is filtered elsewhere" not in app.get(address).get_data(as_text=True)
    text = app.get(address, **{"range": "30d", "tag.tenant_id": "t1"}).get_data(as_text=True)
    assert "whatever is filtered elsewhere" in text
    files = [unescape(href) for href in re.findall(r'href="([^"]*format=[^"]*)"', text)]
    assert len(files) >= 3
    assert {app.get(href).status_code for href in files} == {200}
    for fmt in ("json", "csv"):
        assert app.get(address, **{"tag.tenant_id": "t1", "format": fmt}).status_code == 400
    assert app.get(address, provder="openai").status_code == 400


def test_a_budget_opens_its_own_period(make: Make) -> None:
    """A daily budget leads to what counts in it today; budgets stand on pages that run until now, and on no others."""
    app = make(LLM_COST_BUDGETS=[{"name": "each", "limit": "10", "period": "day", "per": "tenant_id"}]).mount()
    app.add("1", tags={"tenant_id": "acme"})
    app.add("1", ago=timedelta(days=40), tags={"tenant_id": "acme"})
    with app.app.app_context():
        track("openai", model="gpt-4o", usage={"input": 1000}, tags={"tenant_id": "acme"})
        assert app.costs.flush(20)
    today = datetime.now(UTC).date().isoformat()
    for page in ("/", "/budgets"):
        text = app.get(PREFIX + page).get_data(as_text=True)
        assert f"from={today}&amp;to={today}" in text, page
    then = {"from": str(date.today() - timedelta(days=45)), "to": str(date.today() - timedelta(days=35))}
    assert 'id="budgets"' in app.get(PREFIX + "/?range=7d").get_data(as_text=True)
    assert 'id="budgets"' not in app.get(PREFIX + "/", **then).get_data(as_text=True)


def test_a_budget_of_everybody_opens_its_days(make: Make) -> None:
    """A budget that is nobody's own leads to what counts in it, and nowhere where no address says that."""
    wheres: dict[str, dict[str, Any]] = {
        "all": {"period": "month"},
        "today": {"period": "day", "currency": "EUR"},
        "chat": {"period": "day", "where": {"provider": "openai", "feature": ["chat"]}},
        "some": {"period": "day", "where": {"model": "gpt-*"}},
        "ever": {"period": "total"},
    }
    app = make(LLM_COST_BUDGETS=[{"name": name, "limit": "10", **rest} for name, rest in wheres.items()]).mount()
    app.add("1")
    today = datetime.now(UTC).date().isoformat()
    days = {"from": today, "to": today}
    for page in ("/", "/budgets"):
        text = app.get(PREFIX + page).get_data(as_text=True).partition("Budgets")[2]
        found = {
            name: dict(parse_qsl(urlsplit(unescape(href)).query))
            for href, name in re.findall(r'<a href="([^"]+)">(\w+)</a>', text)
        }
        assert {name: query for name, query in found.items() if name in wheres} == {
            "all": {},
            "today": {**days, "currency": "EUR"},
            "chat": {**days, "provider": "openai", "tag.feature": "chat"},
        }, page


def test_what_is_no_more_opens_the_days_when_it_was(make: Make) -> None:
    """A value without calls any more leads to the compared range, where what it came to is."""
    app = make().mount()
    for days, cost, feature in ((0, "1", "chat"), (8, "1", "chat"), (9, "5", "digest & co"), (11, "7", "digest & co")):
        app.add(cost, ago=timedelta(days=days, seconds=1), tags={"feature": feature})
    text = app.get(PREFIX + "/?range=7d&by=model").get_data(as_text=True)
    found = [unescape(href) for href in re.findall(r'<a href="([^"]+)">digest &amp; co</a>', text)]
    assert len(found) == 2, "in the sentence, and among what changed"
    for href in found:
        assert app.get(href + "&format=json").get_json()["total"]["cost"] == "12"
    assert "no calls any more" in text
    assert "range=7d" in re.findall(r'<a href="([^"]+)">gpt-4o</a>', text)[0]


def test_every_issue_leads_on(make: Make) -> None:
    """Each row of data quality that has calls opens them and has a command that works; the age of prices leads to those."""
    app = make().mount()
    app.add("1", tags={"tenant_id": "t1"}, outcome="interrupted", usage_source="stream_partial")
    app.add(None, tags={"tenant_id": "t1"}, outcome="error")
    text = app.get(PREFIX + "/data-quality?range=7d").get_data(as_text=True).partition("Checks that found nothing")[0]
    rows = {
        re.sub(r"<[^>]+>", "", name): (unescape(href), unescape(re.sub(r"<[^>]+>", "", command)))
        for name, href, command in re.findall(
            r'<span class="unseen">[^<]+</span>([^\n]+?)<small><a href="([^"]+)">[^\n]*?<code class="command">(.*?)</code>',
            text,
        )
    }
    for name, query in (
        ("Without the tag feature", {"untagged": "feature"}),
        ("Estimated from what was cut short", {"usage_source": "stream_partial"}),
        ("Interrupted", {"outcome": "interrupted"}),
        ("Failed", {"outcome": "error"}),
    ):
        href, command = rows[name]
        assert dict(parse_qsl(urlsplit(href).query)) == {"range": "7d", **query}
        program, group, *arguments = command.split()
        assert (program, group, arguments[0]) == ("flask", "llm-cost", "report")
        told = app.app.test_cli_runner().invoke(args=[group, *arguments])
        assert told.exit_code == 0, told.output
    href, _ = rows["Age of the prices"]
    assert href == PREFIX + "/pricing"


def test_a_hold_opens_its_call_as_soon_as_there_is_one(make: Make) -> None:
    """An open hold of a call under way has no link, as the call has no page yet; it says whose it is as the bars do."""
    euros = {"name": "euros", "limit": "9", "period": "day", "currency": "EUR", "where": {"provider": "acme"}}
    price = {"acme/euro": {"rates": {"input": "2"}, "currency": "EUR"}}
    app = make(LLM_COST_BUDGETS=[*BUDGETS, euros], LLM_COST_PRICE_OVERRIDES=price).mount()
    asked: list[list[str]] = []

    @app.costs.tag_label("tenant_id")
    def names(ids: list[str]) -> dict[str, str]:
        asked.append(ids)
        return {"t1": "Northwind Cycles"}

    settled = app.add("1", currency="EUR", tags={"tenant_id": "t1"})
    now = datetime.now(UTC)
    with app.app.app_context():
        for provider, model in (("openai", "gpt-4o"), ("acme", "euro")):
            track(provider, model=model, usage={"input": 1000}, tags={"tenant_id": "t1"})
        assert app.costs.flush(20)
        for period in app.database.session.scalars(sa.select(BudgetPeriod)):
            for call_id in (settled, uuid4()):
                app.database.session.add(
                    BudgetHold(
                        call_id=call_id, period_id=period.id, amount=1, state="open", created_at=now,
                        expires_at=now + timedelta(minutes=15),
                    )
                )  # fmt: skip
        app.database.session.commit()
    with statements() as sent:
        text = app.get(PREFIX + "/budgets").get_data(as_text=True)
    assert sum("FROM llm_cost_calls" in statement for statement in sent) == 1
    assert asked == [["t1"]]
    whose = "<td>Northwind Cycles<small>per_<wbr>tenant, tenant t1</small></td>"
    opened = [re.findall(r'href="([^"]+)"', row) for row in text.split("<tr>") if whose in row]
    assert sorted(map(len, opened)) == [0, 1]
    for href in itertools.chain(*opened):
        assert app.get(href).status_code == 200
    assert sum("<td>euros</td>" in row and "€1.00" in row for row in text.split("<tr>")) == 2
