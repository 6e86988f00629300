"""The figures on the pages: those that a hand would add up, said as a person would."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from html import unescape
from urllib.parse import parse_qsl, urlsplit
from zoneinfo import ZoneInfo

import pytest
from flask import Flask
from mounted_app import PREFIX, MountedApp, said
from werkzeug.datastructures import MultiDict

from flask_llm_cost.dashboard import dashboard_blueprint
from flask_llm_cost.dashboard.breakdown import leading
from flask_llm_cost.dashboard.filters import Selection, parse
from flask_llm_cost.dashboard.links import Links
from flask_llm_cost.dashboard.overview import Overview, build
from flask_llm_cost.dashboard.periods import period
from flask_llm_cost.dashboard.timeline import timeline
from flask_llm_cost.extension import LlmCostTracker
from flask_llm_cost.ledger.filter import Filter

BERLIN = ZoneInfo("Europe/Berlin")
#: A Monday, at 14:41 in Berlin.
NOW = datetime(2026, 11, 23, 13, 41, tzinfo=UTC)
TAGS = ("feature", "tenant_id", "user_id")


def at(day: int, hour: int = 12, month: int = 11) -> datetime:
    return datetime(2026, month, day, hour, tzinfo=BERLIN)


def ask(app: MountedApp, query: dict[str, str] | None = None, now: datetime = NOW) -> tuple[Selection, Overview]:
    """The overview as it is at *now*."""
    base = Filter(scope={})
    selection = parse(MultiDict(query or {}), "overview", base, zone=BERLIN, now=now)
    with app.app.test_request_context(PREFIX + "/"), app.costs.session() as session:
        selection = replace(selection, by=selection.by or leading(session, selection, TAGS))
        time = timeline(session, selection)
        return selection, build(session, selection, Links("llm_cost"), lambda key, values: {}, TAGS, time)


def test_month_to_date_against_the_same_days(make: Callable[..., MountedApp]) -> None:
    """This month until now stands against last month until the same day and time, across a clock change."""
    app = make().mount()
    app.add("10", at=at(1, 0))
    app.add("5", at=at(23, 14))
    app.add("3", at=at(1, 0, month=10))
    app.add("4", at=at(23, 14, month=10))
    app.add("100", at=at(23, 15, month=10))
    app.add("100", at=at(30, 23, month=9))
    selection, page = ask(app)
    assert page.total.cost == 15
    assert page.before.cost == 7
    assert page.delta == 8
    assert selection.period.before_until == datetime(2026, 10, 23, 14, 41, tzinfo=BERLIN)
    assert selection.period.in_words == "so far in November"
    assert selection.period.before_in_words == "October by the same day"


@pytest.mark.parametrize(
    ("now", "until"),
    [
        (datetime(2026, 3, 30, 10, tzinfo=BERLIN), datetime(2026, 3, 1, tzinfo=BERLIN)),
        (datetime(2026, 1, 1, 0, 0, 1, tzinfo=BERLIN), datetime(2025, 12, 1, 0, 0, 1, tzinfo=BERLIN)),
    ],
)
def test_a_shorter_month_before(now: datetime, until: datetime) -> None:
    """Where last month has no such day, all of it counts, and not a day more."""
    assert period("this_month", BERLIN, now).before_until == until


def test_days_add_up_to_the_total(make: Callable[..., MountedApp]) -> None:
    """Bars, their parts, the table, the panels with their rest, and both files come to the same total."""
    app = make(LLM_COST_TIMEZONE="Europe/Berlin").mount()
    for n in range(60):
        tags = {"feature": f"f{n % 11}"} if n % 7 else {}
        app.add(None if n % 13 == 0 else f"0.{n:02d}1", ago=timedelta(hours=n * 9), tags=tags, model=f"m{n % 3}")
    data = app.get(range="30d", format="json").get_json()
    total = Decimal(data["total"]["cost"])
    assert total == sum(Decimal(f"0.{n:02d}1") for n in range(60) if n % 13)
    assert sum(Decimal(day["cost"] or 0) for day in data["days"]) == total
    assert all(sum(Decimal(part["cost"]) for part in day["parts"]) == Decimal(day["cost"] or 0) for day in data["days"])
    for found in data["breakdowns"]:
        rest = Decimal(found["others"]["cost"]) if found["others"] else Decimal(0)
        assert sum(Decimal(row["cost"] or 0) for row in found["rows"]) + rest == total
    features = next(found for found in data["breakdowns"] if found["dimension"] == "tag:feature")
    assert len(features["rows"]) + features["others"]["values"] == 12
    for table in ("by", "days"):
        text = app.get(range="30d", format="csv", table=table).data.decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        assert sum(Decimal(row["cost"] or 0) for row in rows) == total
        assert "(untagged)" in {row["tag:feature"] for row in rows}
    text = app.get(PREFIX + "/calls.csv", range="30d").data.decode("utf-8-sig")
    calls = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(calls) == 60
    assert sum(Decimal(row["total_cost"] or 0) for row in calls) == total


@pytest.mark.parametrize(
    "page", ["/", "/explore", "/explore?cols=none", "/models", "/tags", "/tags/feature", "/calls", "/calls/{call}"]
)
def test_what_was_never_billed_is_not_unknown(make: Callable[..., MountedApp], page: str) -> None:
    """Where all calls were blocked nothing is missing: their cost is said to be none, everywhere."""
    app = make().mount()
    never = {"provider": "openai", "model": "m", "tags": {"feature": "chat"}, "usage_source": "unknown", "items": ()}
    planted = [app.add(None, **never, outcome="blocked") for _ in range(2)]
    html = app.get(PREFIX + page.format(call=planted[0]), **({} if "?" in page else {"range": "30d"})).get_data(as_text=True)
    assert "unknown</span>" not in html
    assert ">none</span>" in html


def test_what_has_a_later_time_has_its_day(make: Callable[..., MountedApp]) -> None:
    """Calls recorded with tomorrow's time are in the total, so they have a bar, a row and a column; later days have none."""
    app = make().mount()
    now = datetime.now(UTC)
    for days, cost in ((-2, "3"), (0, "1"), (1, "5")):
        app.add(cost, at=now + timedelta(days=days))
    span = {"range": "custom", "from": f"{now - timedelta(days=3):%Y-%m-%d}", "to": f"{now + timedelta(days=4):%Y-%m-%d}"}
    overview = app.get(format="json", **span).get_json()
    assert overview["total"]["cost"] == "9"
    assert sum(Decimal(day["cost"]) for day in overview["days"]) == 9
    assert [day["cost"] for day in overview["days"]][-1] == "5"
    for rows in ("model", "tag:feature"):
        explored = app.get(f"{PREFIX}/explore", format="json", rows=rows, cols="time", **span).get_json()
        for row in (explored["total"], *explored["rows"]):
            assert sum(Decimal(cell["cost"]) for cell in row["cells"]) == Decimal(row["total"]["cost"]) == 9
        assert len(explored["columns"]) == 4
    assert app.get(**span).status_code == 200


def test_unpriced_calls_are_said_with_the_command(make: Callable[..., MountedApp]) -> None:
    """What is not in the number is said beside it, with the command that helps, quoted for a shell; not to customers."""
    app = make().mount().mount("/mine", name="mine", scope=lambda: {"tenant_id": "a"})
    app.add("1", tags={"tenant_id": "a"})
    for _ in range(3):
        app.add(None, provider="groq", model="odd model;x", tags={"tenant_id": "a"})
    text = said(app.get())
    assert "25% of calls priced" in text
    assert "3 calls without a price" in text
    assert "flask llm-cost prices explain groq 'odd model;x'" in text
    mine = said(app.get("/mine/"))
    assert "odd model;x" in mine
    assert "flask llm-cost" not in mine


def test_all_values_are_as_many_as_their_page_says(make: Callable[..., MountedApp]) -> None:
    """The link to all values of a tag says how many there are, and so does the page that it opens; (untagged) is none."""
    app = make().mount()
    app.add_all(("1", {"tags": {"user_id": f"u{n}"} if n else {}}) for n in range(13))
    overview, users = app.get(range="7d").get_data(as_text=True), said(app.get(PREFIX + "/tags/user_id", range="7d"))
    assert re.search(r'/tags/user_id[^>]*">all 12</a>', overview)
    assert re.search(r"\b12 users\b", users)
    assert "(untagged)" in users


def test_a_call_costs_the_same_everywhere(make: Callable[..., MountedApp]) -> None:
    """What a call costs is the same text in the list, on its page and among the dearest."""
    for cost, shown in (("0.001159", "$0.0012"), ("0.5424001", "$0.5424"), ("0.00003881", "$0.0000388")):
        app = make().mount()
        call_id = app.add(cost)
        for path in ("/", "/calls", f"/calls/{call_id}"):
            found = app.get(PREFIX + path).get_data(as_text=True)
            assert f'<data value="{cost}" title="{cost} USD">{shown}</data>' in found, path


def test_nothing_priced_is_unknown_not_zero(make: Callable[..., MountedApp]) -> None:
    """Calls without any price come to unknown, on the overview, in the list, in a detail, in JSON and in CSV."""
    app = make().mount()
    call_id = app.add(None, model="new")
    for path in ("/", "/calls", f"/calls/{call_id}"):
        text = app.get(PREFIX + path).get_data(as_text=True)
        assert ">unknown</span>" in text
    data = app.get(range="7d", format="json").get_json()
    assert data["total"]["cost"] is None
    assert [day["cost"] for day in data["days"] if day["calls"]] == [None]
    assert '<h1><span class="unknown"' in app.get(range="7d").get_data(as_text=True)
    assert b",,USD," in app.get(PREFIX + "/calls.csv").data


def test_one_call_shows_its_arithmetic(make: Callable[..., MountedApp]) -> None:
    """A call's page has quantity, rate and amount of each component, every digit, and masks the provider's id."""
    app = make().mount()
    items = [("input", 1500, "3", "0.0045"), ("cache_read", 80_000, "0.3", "0.024"), ("output", 7, "15", "0.000105")]
    call_id = app.add("0.028605", items=items, provider_response_id="chatcmpl-abcdefgh1234", tags={"feature": "chat"})
    text = app.get(f"{PREFIX}/calls/{call_id}").get_data(as_text=True)
    for shown in (
        "1,500 <small>tokens",
        "$3.00 <small>per 1M tokens",
        "$0.0045",
        "80,000",
        "$0.000105",
        "$0.028605",
        "…1234",
    ):
        assert shown in text
    assert "abcdefgh" not in text
    data = app.get(f"{PREFIX}/calls/{call_id}", format="json").get_json()
    assert sum(Decimal(line["cost"]) for line in data["lines"]) == Decimal(data["total_cost"])
    assert data["provider_response_id"] == "…1234"


def test_first_run_and_empty_pages_help(make: Callable[..., MountedApp]) -> None:
    """Before the first call the page says what to do; a filter that finds nothing says where there is something."""
    app = make().mount().mount("/mine", name="mine", scope=lambda: {"tenant_id": "a"})
    first = app.get().get_data(as_text=True)
    assert "with tags(feature=" in first
    assert "flask llm-cost doctor" in said(app.get())
    assert '<svg class="bars' not in first
    assert "flask llm-cost" not in said(app.get("/mine/"))
    app.add("1", at=datetime(2026, 3, 5, 12, tzinfo=UTC))
    for page in ("/", "/calls"):
        empty = app.get(PREFIX + page, **{"from": "2026-05-01", "to": "2026-05-31"}).get_data(as_text=True)
        assert "No calls" in empty
        assert "Thursday 5 March 2026" in empty
        assert "from=2026-03-01&amp;to=2026-03-31" in empty
        assert "match no call at any time" in app.get(PREFIX + page, model="other").get_data(as_text=True)


def test_missing_tables_and_a_broken_database(make: Callable[..., MountedApp]) -> None:
    """Without tables the page says how to make them, in JSON too; a database that does not answer is a page, not a crash."""
    app = make(tables=False).mount()
    for path in ("/", "/calls", "/calls.csv", "/calls/01a1e992-908b-7c38-93fe-e6531b564a0d"):
        response = app.get(PREFIX + path)
        assert response.status_code == 503
        assert "flask db upgrade" in said(response)
        assert "flask llm-cost install" in said(response)
    assert app.get(format="json").get_json()["error"] == "The ledger has no tables yet"
    broken = make(tables=False, url="sqlite:////nowhere/at/all.db").mount()
    response = broken.get()
    assert response.status_code == 503
    assert "flask llm-cost doctor" in said(response)
    assert "nowhere" not in response.get_data(as_text=True)


def test_names_for_ids_are_asked_once(make: Callable[..., MountedApp]) -> None:
    """Registered names stand for ids; the lookup is asked once for a tag's table, and may fail without harm."""
    app = make().mount()
    asked: list[list[str]] = []

    @app.costs.tag_label("tenant_id")
    def names(ids: list[str]) -> dict[str, str]:
        asked.append(ids)
        return {"42": "Acme GmbH"}

    @app.costs.tag_label("user_id")
    def failing(ids: list[str]) -> dict[str, str]:
        raise LookupError

    for tenant in ("42", "7"):
        app.add("1", tags={"tenant_id": tenant, "user_id": "u1"})
    text = app.get().get_data(as_text=True)
    assert "Acme GmbH" in text
    assert ">u1<" in text
    assert asked == [["42", "7"]]
    for path in ("/calls", "/tags", "/tags/tenant_id", "/explore?rows=tag:tenant_id", "/explore?cols=tag:tenant_id"):
        asked.clear()
        assert "Acme GmbH" in app.get(PREFIX + path).get_data(as_text=True), path
        assert len(asked) == 1, path


def test_amounts_in_other_currencies_are_said(make: Callable[..., MountedApp]) -> None:
    """Calls billed in another currency are not in the sum; the page says so and shows them when asked."""
    app = make().mount()
    app.add("1")
    app.add("5", currency="EUR")
    text = app.get().get_data(as_text=True)
    assert "1 call in euros" in text
    assert "€5.00" in app.get(currency="EUR").get_data(as_text=True)


def test_links_carry_the_whole_state(make: Callable[..., MountedApp]) -> None:
    """A link keeps every filter that is set, a relative range stays relative, and a chip takes away only its own."""
    app = make().mount()
    app.add("1", tags={"feature": "a&b=c", "x.y-z": "1"}, provider="openai")
    tags = {"tag.feature": "a&b=c", "tag.x.y-z": "1", "untagged": "team"}
    text = app.get(**{"range": "30d", "provider": "openai", "by": "model", **tags}).get_data(as_text=True)
    assert "No calls" not in text
    addresses = [unescape(address) for address in re.findall(r'href="([^"]+)"', text)]
    asked = [dict(parse_qsl(urlsplit(address).query)) for address in addresses]
    everything = {"range": "30d", "provider": "openai", **tags}
    assert {"range": "30d", "by": "model", **tags} in asked  # the chip that takes the provider away
    assert everything in [dict(parse_qsl(urlsplit(address).query)) for address in addresses if "/calls?" in address]
    assert {**everything, "by": "model", "model": "gpt-4o"} in asked
    assert '<option value="30d" selected>' in text
    assert '<input type="hidden" name="untagged" value="team">' in text


def test_log_mode_without_a_database() -> None:
    """Where calls only go to the log, the dashboard says so instead of failing."""
    app = Flask(__name__)
    app.config.update(TESTING=True, LLM_COST_WRITE_MODE="log")
    LlmCostTracker(app)
    app.register_blueprint(dashboard_blueprint(guard=None), url_prefix=PREFIX)
    response = app.test_client().get(PREFIX + "/")
    assert response.status_code == 503
    assert "calls are in the log" in response.get_data(as_text=True)


def test_an_app_without_the_extension() -> None:
    """A dashboard on an app that was never set up says what is missing."""
    app = Flask(__name__)
    app.register_blueprint(dashboard_blueprint(guard=None), url_prefix=PREFIX)
    response = app.test_client().get(PREFIX + "/")
    assert response.status_code == 503
    assert "LlmCostTracker(app)" in response.get_data(as_text=True)


def test_the_compared_column_comes_to_what_is_compared(make: Callable[..., MountedApp]) -> None:
    """The table's compared days come to the compared total: today's until the same time, and days beyond on their own."""
    app = make().mount()
    for day in (1, 20, 23):
        app.add("1", at=at(day, 14))
        app.add("2", at=at(day, 14, month=10))
    app.add("100", at=at(23, 15, month=10))
    app.add("100", at=at(24, 1, month=10))
    _, page = ask(app)
    assert page.before.cost == 6
    assert sum(row.before or 0 for row in page.days) == 6
    assert page.days[-1].before == 2
    assert page.beyond is None
    # The line goes on to days that are yet to come, so it has the whole of this one.
    assert page.days[-1].usual == 102
    _, february = ask(app, {"from": "2026-11-01", "to": "2026-11-30"}, now=NOW + timedelta(days=60))
    assert february.before.cost == 206
    assert february.beyond is None
    app.add("7", at=at(31, 12, month=10))
    _, november = ask(app, {"from": "2026-11-01", "to": "2026-11-30"}, now=NOW + timedelta(days=60))
    assert november.beyond is not None
    assert (november.beyond[0].label, november.beyond[1]) == ("31 Oct", 7)
    assert sum(row.before or 0 for row in november.days) + november.beyond[1] == november.before.cost == 213


def test_the_compared_total_is_said(make: Callable[..., MountedApp]) -> None:
    """What is compared with is said beside the difference, and in the foot of its column."""
    app = make().mount()
    app.add("5", ago=timedelta(minutes=1))
    app.add("3.25", ago=timedelta(days=9))
    app.add("9", ago=timedelta(days=90))
    text = app.get(range="7d").get_data(as_text=True)
    lead, foot = re.sub(r"<[^>]+>", "", text[text.index("<h1>") :]), re.findall(r"<tfoot>.*?</tfoot>", text)[0]
    assert "$1.75 more than the 7 days before up to the same time ($3.25)" in lead
    assert foot.endswith(">$3.25</data></td></tr></tfoot>")


@pytest.mark.parametrize("narrowed", [{}, {"tag.feature": "late"}], ids=["all", "a feature"])
def test_a_young_ledger_says_when_it_begins(make: Callable[..., MountedApp], narrowed: dict[str, str]) -> None:
    """Where the first call is within what is compared, its day is said beside the comparison, and not later on."""
    app = make().mount()
    # A feature that is newer than the ledger says when the ledger begins, not when it does.
    app.add("1", at=at(12, month=10), currency="EUR")
    for day, month in ((15, 10), (20, 11)):
        app.add("1", at=at(day, month=month), tags={"feature": "late"})
    _, page = ask(app, narrowed)
    assert page.begun == at(12, month=10).date()
    assert ask(app, {**narrowed, "range": "7d"})[1].begun is None
    app.add("1", at=at(2, month=9))
    assert ask(app, narrowed)[1].begun is None


def test_a_young_ledger_says_so_in_words(make: Callable[..., MountedApp]) -> None:
    """The overview and the models say it beside the comparison; a customer is told when calls begin."""
    app = make().mount().mount("/mine", name="mine", scope=lambda: {"tenant_id": "a"})
    first = datetime.now(UTC) - timedelta(days=10)
    for day in (first, datetime.now(UTC) - timedelta(minutes=1)):
        app.add("1", at=day, tags={"tenant_id": "a"})
    said = f"on {first.day} {first:%B}"
    for page in ("/", "/models"):
        assert f"the ledger begins {said}" in app.get(PREFIX + page, range="7d").get_data(as_text=True)
        assert f"calls begin {said}" in app.get("/mine" + page, range="7d").get_data(as_text=True)


def test_one_cost_per_call(make: Callable[..., MountedApp]) -> None:
    """What changed and every column divide by the calls that have a price, and say so where there are others."""
    app = make().mount()
    for ago, cost in ((8, "1"), (8, "1"), (1, "3"), (1, "3"), (1, None), (1, None)):
        app.add(cost, ago=timedelta(days=ago), tags={"feature": "chat"})
    (changed,) = (item for item in app.get(range="7d", format="json").get_json()["changed"] if item["value"] == "chat")
    assert changed["kind"] == "mix"
    assert changed["why"] == "2 priced calls × $2.00 more each = +$4.00"
    for page in ("/", "/models", "/tags/feature", "/explore?cols=none"):
        text = app.get(PREFIX + page, **({} if "?" in page else {"range": "7d"})).get_data(as_text=True)
        assert 'title="the mean of the calls that have a price"' in text
        assert "$1.50" not in text


def test_what_has_no_price_is_a_sentence(make: Callable[..., MountedApp]) -> None:
    """Where nothing has a price there is no chart, no trend and no dearest call, and nothing is said of a number."""
    app = make().mount()
    for ago in (1, 9):
        app.add(None, ago=timedelta(days=ago), provider="in_house", model="own", tags={"feature": "chat"})
    app.add("1", ago=timedelta(days=1), tags={"feature": "search"})
    text = app.get(range="7d", provider="in_house").get_data(as_text=True)
    assert "Its one call has no price yet, so there is no number" in text
    assert "None of these calls has a price, so there is nothing to draw" in text
    for absent in ('<svg class="bars', "Dearest calls", '<svg class="spark', "not in this number"):
        assert absent not in text
    whole = app.get(range="7d").get_data(as_text=True)
    assert whole.count('<svg class="spark') == 2  # of the feature and the model that have a price
    assert "is not in this number" in whole
