"""What pages say in words: true of the case at hand, and fit for whom they say it to."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from zoneinfo import ZoneInfo

import pytest
from mounted_app import PREFIX, MountedApp, said
from werkzeug.datastructures import MultiDict

from flask_llm_cost import track
from flask_llm_cost.dashboard.filters import parse
from flask_llm_cost.dashboard.forecast import ANOMALY_RULE, FORECAST_RULE
from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.ledger.local_time import start_of_day
from flask_llm_cost.records import TAG_KEY_RULE
from flask_llm_cost.wording import plural

Make = Callable[..., MountedApp]
NEVER: Mapping[str, Any] = {
    "usage_source": "unknown", "http_status": 429, "input_tokens": None, "output_tokens": None, "cache_read_tokens": None,
    "total_tokens": None,
}  # fmt: skip


def words(text: str) -> str:
    """What a page says, without its markup."""
    return unescape(re.sub(r"\s+", " ", re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", text)))


def test_what_failed_is_not_unknown(make: Make) -> None:
    """Of a failed call that reported nothing to bill the page says so; unknown is one of which something may be missing."""
    app = make().mount()
    failed = app.add(None, outcome="error", **NEVER)
    text = words(app.get(f"{PREFIX}/calls/{failed}").get_data(as_text=True))
    assert "Cost nothing billed was reported" in text
    assert "Input tokens none reported" in text
    assert "unknown" not in text
    assert "no price" not in text
    lost = app.add(None, **NEVER)
    text = words(app.get(f"{PREFIX}/calls/{lost}").get_data(as_text=True))
    assert "Cost unknown: no usage was reported" in text


def test_what_was_cut_short_says_so(make: Make) -> None:
    """An interrupted stream has its ~ in the detail too, and is not said to be priced in full."""
    app = make().mount()
    items = [("input", 1000, "2.5", "0.0025")]
    cut = app.add("0.0025", outcome="interrupted", usage_source="stream_partial", stream=True, items=items)
    text = words(app.get(f"{PREFIX}/calls/{cut}").get_data(as_text=True))
    assert "~ $0.0025" in text
    assert "the provider may have billed more" in text
    assert "Cost cut short: what had arrived is priced" in text
    assert "in full" not in text
    whole = app.add("0.0025", items=items)
    text = words(app.get(f"{PREFIX}/calls/{whole}").get_data(as_text=True))
    assert "~" not in text
    assert "Cost priced in full" in text


def test_customers_are_not_told_what_only_operators_can_do(make: Make) -> None:
    """A scoped data quality page names no setting, command or function, in HTML, CSV and JSON; the operator's names them."""
    app = make().mount().mount("/mine", name="mine", scope=lambda: {"tenant_id": "a"})
    tags = {"tenant_id": "a"}
    for outcome, source in (
        ("ok", "response"),
        ("ok", "unknown"),
        ("unresolved", "pending"),
        ("interrupted", "stream_partial"),
    ):
        app.add(None, outcome=outcome, usage_source=source, tags=tags)
    app.add("1", cost_status="partial", tags=tags, flags="usage_inconsistent")
    app.add("1", provider="openrouter", model="far", computed_cost="0.5", tags=tags)
    operators = re.compile(r"LLM_COST_|flask llm-cost|request tagger|tags\(|watched client|reprice|price book")
    for fmt in ("html", "csv", "json"):
        assert operators.search(app.get(PREFIX + "/data-quality", format=fmt).get_data(as_text=True)), fmt
        told = app.get("/mine/data-quality", format=fmt).get_data(as_text=True)
        assert "gpt-4o" in told
        assert not operators.search(told), operators.search(told)


def test_a_scoped_dashboard_says_whom_it_shows(make: Make) -> None:
    """Where the app names the tag of a scope, its pages have the name, and where it does not, they do without."""
    app = make().mount().mount("/mine", name="mine", scope=lambda: {"tenant_id": "42"})
    app.add("1", tags={"tenant_id": "42", "feature": "chat"})
    pages = ("/", "/explore", "/models", "/calls", "/tags", "/budgets", "/data-quality", "/pricing")
    for page in pages:
        assert "Northwind" not in app.get("/mine" + page).get_data(as_text=True)

    @app.costs.tag_label("tenant_id")
    def names(ids: list[str]) -> dict[str, str]:
        return {"42": "Northwind <Cycles>"}

    for page in pages:
        assert "Northwind &lt;Cycles&gt;, " in app.get("/mine" + page).get_data(as_text=True), page


def test_names_can_be_chosen_and_typed(make: Make) -> None:
    """Suggestions of a filter have their names, asked once a page; a name that is typed is taken for its value."""
    app = make().mount()
    asked: list[list[str]] = []

    @app.costs.tag_label("tenant_id")
    def names(ids: list[str]) -> dict[str, str]:
        asked.append(ids)
        known = {"42": "Northwind Cycles", "7": "Juniper", "Juniper": "Twin"}
        return {value: known[value] for value in ids if value in known}

    for tenant, feature in (("42", "chat"), ("7", "search")):
        app.add("1", tags={"tenant_id": tenant, "feature": feature})
    for page in ("/explore?rows=tag:tenant_id", "/models", "/calls", "/tags", "/tags/tenant_id", "/data-quality"):
        asked.clear()
        # The page shows one of the tenants; both can be chosen.
        text = app.get(PREFIX + page + ("&" if "?" in page else "?") + "tag.feature=search").get_data(as_text=True)
        assert '<option value="42" label="Northwind Cycles">' in text, page
        assert len(asked) == 1, page
    for page in ("/", "/calls", "/tags/tenant_id"):
        for typed in ("Northwind Cycles", " northwind cycles "):
            found = app.get(PREFIX + page, **{"tag.tenant_id": typed, "range": "7d"})
            assert found.status_code == 302
            led = urlsplit(found.headers["Location"])
            assert led.path == PREFIX + page
            assert dict(parse_qsl(led.query)) == {"tag.tenant_id": "42", "range": "7d"}
            assert "Content-Security-Policy" in found.headers
    assert app.get(PREFIX + "/tags/tenant_id?value=Juniper").headers["Location"].endswith("?tag.tenant_id=7")
    # A value that there is stands for itself, whatever else is called so; so does a name that nobody has.
    app.add("1", ago=timedelta(days=90), tags={"tenant_id": "Juniper"})
    for typed in ("Juniper", "Nobody"):
        assert "No calls" in app.get(PREFIX + "/calls", **{"tag.tenant_id": typed}).get_data(as_text=True)


def test_names_of_others_are_not_found(make: Make) -> None:
    """Within a scope the name of somebody else's value leads nowhere."""
    app = make().mount().mount("/mine", name="mine", scope=lambda: {"tenant_id": "42"})

    @app.costs.tag_label("user_id")
    def names(ids: list[str]) -> dict[str, str]:
        return {value: f"Name {value}" for value in ids}

    app.add("1", tags={"tenant_id": "42", "user_id": "1"})
    app.add("1", tags={"tenant_id": "7", "user_id": "2"})
    assert app.get("/mine/calls", **{"tag.user_id": "Name 1"}).status_code == 302
    assert app.get("/mine/calls", **{"tag.user_id": "Name 2"}).status_code == 200


def test_an_invoice_of_any_spelling(make: Make) -> None:
    """A provider is found whatever its case; one without any call is refused, naming those that have some."""
    app = make().mount()
    app.add("10", provider="openai")
    app.add("1", provider="anthropic", ago=timedelta(days=60))
    found = app.get(PREFIX + "/explore?range=7d&invoice=OpenAI:8&format=json").get_json()["invoice"]
    assert (found["provider"], found["ledger"]["cost"]) == ("openai", "10")
    text = app.get(PREFIX + "/explore?range=7d&rows=model&invoice=OpenAI:8").get_data(as_text=True)
    assert "times the invoice is in the ledger 1.25" in words(text)
    assert "125%" not in text
    assert f'href="{PREFIX}/explore?range=7d&amp;rows=model">remove</a>' in text
    refused = app.get(PREFIX + "/explore?range=7d&invoice=OpneAI:8")
    assert refused.status_code == 400
    assert "known are: anthropic, openai" in refused.get_data(as_text=True)
    # It has calls, though none in these days.
    assert (
        app.get(PREFIX + "/explore?range=7d&invoice=Anthropic:8&format=json").get_json()["invoice"]["ledger"]["calls"] == 0
    )


def test_the_price_search_counts_all_that_match(make: Make) -> None:
    """The number above is that of all models that match, and the line below says how many of them are not shown."""
    app = make().mount()
    text = app.get(PREFIX + "/pricing?search=gpt").get_data(as_text=True)
    number = int(re.search(r"<h1>([\d,]+) models", text)[1].replace(",", ""))  # type: ignore[index]
    more = int(re.search(r"([\d,]+) more models; type more of the name", text)[1].replace(",", ""))  # type: ignore[index]
    assert number == more + text.count('<th scope="row">')
    assert number == sum("gpt" in key.lower() for key in app.app.extensions["llm_cost"].book.keys)


def test_what_is_over_and_what_is_ahead_of_a_budget(make: Make) -> None:
    """A budget that is used up says since when and when it resets; one that will be says when it runs out."""
    budgets = [
        {"name": "over", "limit": "1", "period": "month"},
        {"name": "ahead", "limit": "5.3", "period": "total"},
    ]
    app = make(LLM_COST_BUDGETS=budgets).mount()
    with app.app.app_context():
        track("openai", model="gpt-4o", usage={"input": 2_000_000}, tags={}, occurred_at=datetime.now(UTC))
        assert app.costs.flush(20)
    text = words(app.get(PREFIX + "/budgets").get_data(as_text=True))
    assert re.search(r"used up (at|on)", text)
    assert "resets" in text
    assert "anew" not in text
    assert re.search(r"at this pace it runs out (at|on|tomorrow)", text)
    assert not re.search(r"used up [^,]* at this pace", text)


def test_a_list_that_a_scope_leaves_out_is_a_page_that_is_not_there(make: Make) -> None:
    """The key of a scope has no list: the page says so, and not that the address is not understood."""
    app = make().mount("/mine", name="mine", scope=lambda: {"tenant_id": "a"})
    app.add("1", tags={"tenant_id": "a"})
    response = app.get("/mine/tags/tenant_id")
    assert response.status_code == 404
    assert "This view is held to one tenant" in response.get_data(as_text=True)
    assert "not understood" not in response.get_data(as_text=True)
    assert "held to one tenant" in app.get("/mine/tags/tenant_id?format=json").get_json()["message"]


def test_a_bundled_price_is_nobody_elses(make: Make) -> None:
    """A price that the book's makers set is said to be theirs, an app's own to be the app's, and a rate by rule says it."""
    app = make(LLM_COST_PRICE_OVERRIDES={"acme/own": {"input": "1", "output": "2"}}).mount()
    app.mount("/mine", name="mine", scope=lambda: {"tenant_id": "a"})
    for provider, model in (("anthropic", "claude-sonnet-4-5"), ("acme", "own"), ("openai", "gpt-4")):
        app.add("1", provider=provider, model=model, tags={"tenant_id": "a"})
    text = app.get(PREFIX + "/pricing").get_data(as_text=True)
    assert "set by the price book&#39;s makers" in text
    assert "entered by hand" not in text
    assert "your override" in text
    assert re.findall(r"<small[^>]*>by rule", text) == [
        '<small title="no rate of its own is listed: that of plain input or output stands in">by rule'
    ] * text.count(">by rule")
    assert ">by rule" in text
    mine = app.get("/mine/pricing").get_data(as_text=True)
    assert "set for this app" in mine
    assert "your override" not in mine


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "October by the same day"),
        ({"from": "2026-11-01", "to": "2026-11-30"}, "October by the same day"),
        ({"range": "last_month"}, "September"),
        ({"from": "2026-11-20", "to": "2026-11-30"}, "the 11 days before up to the same time"),
        ({"from": "2026-11-23", "to": "2026-11-23"}, "the day before up to the same time"),
        ({"range": "7d"}, "the 7 days before up to the same time"),
        ({"from": "2026-11-10", "to": "2026-11-20"}, "the 11 days before"),
    ],
)
def test_what_it_is_compared_with_is_said_as_it_counts(asked: dict[str, str], words: str) -> None:
    """However days that still run are asked for, what they are compared with is said to reach as far as its amount does."""
    zone = ZoneInfo("Europe/Berlin")
    now = datetime(2026, 11, 23, 13, 41, tzinfo=UTC)
    period = parse(MultiDict(asked), "overview", Filter(scope={}), zone=zone, now=now).period
    assert period.before_in_words == words
    whole = start_of_day(period.before_last + timedelta(days=1), zone)
    assert ("same" in words) == (period.before_until < whole)


def test_every_page_says_how_far_the_comparison_reaches(make: Make) -> None:
    """A day that is not over is never compared with a whole one in words: not by the headline, a heading, nor a legend."""
    app = make().mount()
    now = datetime.now(UTC) - timedelta(seconds=1)
    app.add("2", at=now, tags={"feature": "chat"})
    app.add("1", at=now - timedelta(days=1), tags={"feature": "chat"})
    today = now.date().isoformat()
    query = {"from": today, "to": today}
    text = said(app.get(**query))
    assert "than the day before up to the same time ($1.00)" in text
    assert "What changed against the day before up to the same time" in text
    assert "change is against the day before up to the same time" in said(app.get(PREFIX + "/models", **query))


def test_rules_can_be_read_without_a_pointer(make: Make) -> None:
    """The table behind the chart opens with the rule of the forecast, every odd day, and the rule that made it one."""
    app = make().mount()
    now = datetime.now(UTC)
    costs = {3: "9", 6: "7"}
    app.add_all(
        (costs.get(days, "2"), {"at": now - timedelta(days=days, seconds=1), "tags": {"feature": "chat"}})
        for days in range(30)
    )
    opened = app.get(range="30d").get_data(as_text=True).partition("<summary>Table</summary>")[2].partition("<table")[0]
    text = words(opened)
    day = [f"{(now - timedelta(days=days, seconds=1)).day}" for days in costs]
    assert re.search(
        rf"Odd days: .*{day[0]} \w+.*: chat made it 4.5 × the usual day; .*{day[1]} \w+.*: chat made it 3.5 ×", text
    )
    assert f"The rule: {ANOMALY_RULE}" in text
    assert FORECAST_RULE not in text
    assert "title" not in opened
    opened = app.get().get_data(as_text=True).partition("<summary>Table</summary>")[2].partition("<table")[0]
    assert f"The forecast: {FORECAST_RULE}" in words(opened)


@pytest.mark.parametrize(
    ("noun", "many"),
    [
        ("tenant", "tenants"), ("category", "categories"), ("day", "days"), ("batch", "batches"), ("status", "statuses"),
        ("tax", "taxes"), ("y", "ys"), ("customer group", "customer groups"),
    ],
)  # fmt: skip
def test_several_of_a_kind(noun: str, many: str) -> None:
    """Whatever a tag's key is called, several of it are said in proper English."""
    assert (plural(1, noun), plural(2, noun)) == (f"1 {noun}", f"2 {many}")


def test_tags_are_counted_in_words(make: Make) -> None:
    """A tag's page counts categories, and says that no call has it where none has; a choice offers all categories."""
    app = make(LLM_COST_REPORT_TAGS=("feature", "category")).mount()
    for n in range(3):
        app.add("1", tags={"feature": "chat", "category": f"c{n}"})
    assert "3 categories so far in" in words(app.get(PREFIX + "/tags/category").get_data(as_text=True))
    assert "No call has the tag nothere so far in" in words(app.get(PREFIX + "/tags/nothere").get_data(as_text=True))
    assert "all categories" in said(app.get())


def test_sentences_are_kept_apart(make: Make) -> None:
    """Calls in several other currencies are a sentence each, with a space between."""
    app = make().mount()
    for currency in ("USD", "EUR", "GBP"):
        app.add("1", currency=currency)
    assert "is counted apart. 1 call in " in said(app.get(range="7d"))
    assert "apart.1" not in said(app.get(range="7d"))


def test_all_models_are_counted(make: Make) -> None:
    """The models above the table are all that there are, also those beyond the 100 that it shows."""
    app = make().mount()
    app.add_all(("1", {"model": f"m{n}"}) for n in range(103))
    text = app.get(PREFIX + "/models?range=7d").get_data(as_text=True)
    assert "103 models in the last 7 days" in words(text)
    assert "<title>LLM costs: 103 models" in text
    assert len(app.get(PREFIX + "/models?range=7d&format=csv").data.splitlines()) == 104


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("/calls?key=Team&is=x", f"No call has a tag 'Team': a key is {TAG_KEY_RULE}; did you mean 'team'?"),
        ("/calls?tag.Team=x", "No call has a tag 'Team': a key is"),
        ("/calls?untagged=9", f"No call has a tag '9': a key is {TAG_KEY_RULE}."),
        ("/tags/Team", "No call has a tag 'Team': a key is"),
        ("/calls?is=x", "The value of a tag needs its key beside it: key=team&is=billing."),
        ("/calls?key=team", "The key of a tag needs its value beside it: key=team&is=billing."),
        ("/calls?cost_status=x", "cost_status cannot be 'x'; known are:"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_said_of_what_was_asked(make: Make, address: str, sentence: str) -> None:
    """A filter's key is told apart from what spend is grouped by, and a parameter is spelled as it is written."""
    text = said(make().mount().get(PREFIX + address))
    assert sentence in text
    assert "grouped" not in text


@pytest.mark.parametrize(
    ("address", "again"),
    [
        ("/calls?range=90d&tag.category=c7&key=Team&is=x", "/calls?range=90d&tag.category=c7"),
        ("/calls?tag.team=x&tag.Team=y&model=a b&sort=dearest", "/calls?tag.team=x&model=a b&sort=dearest"),
        ("/explore?range=7d&invoice=nobody:5&rows=model&untagged=a&untagged=b",
         "/explore?range=7d&rows=model&untagged=a&untagged=b"),
        ("/explore?invoice=five&provider=openai", "/explore?provider=openai"),
        ("/?range=custom&from=2026-11-01&to=&model=gpt-4o", "/?model=gpt-4o"),
        ("/?from=2026-11-30&to=2026-11-01&provider=openai", "/?provider=openai"),
        ("/models?provider=a&provider=b&outcome=ok", "/models?outcome=ok"),
        ("/tags/feature?value=a&tag.feature=b&range=7d", "/tags/feature?tag.feature=b&range=7d"),
        ("/calls.csv?limit=0&model=a", "/calls?model=a"),
        ("/pricing?serach=gpt", "/pricing"),
    ],
)  # fmt: skip
def test_a_slip_costs_no_filter(make: Make, address: str, again: str) -> None:
    """From what is not understood the way on is the same page with all that was, and to the other pages with its filters."""
    app = make().mount()
    app.add("1", tags={"feature": "b"})
    response = app.get(PREFIX + address)
    assert response.status_code == 400
    links = [unescape(href) for href in re.findall(r'href="([^"]+)"', response.get_data(as_text=True).partition("<nav")[2])]
    (led,) = re.findall(r'<a class="go" href="([^"]+)">Show without it</a>', response.get_data(as_text=True))
    wanted, found = urlsplit(PREFIX + again), urlsplit(unescape(led))
    assert (found.path, parse_qsl(found.query)) == (wanted.path, parse_qsl(wanted.query))
    assert app.get(unescape(led)).status_code == 200
    kept = {pair for pair in parse_qsl(wanted.query) if pair[0] not in ("rows", "sort", "invoice")}
    for href in links:
        if urlsplit(href).path in (PREFIX + "/", PREFIX + "/models"):
            assert set(parse_qsl(urlsplit(href).query)) == kept, href


def test_no_way_back_leads_to_the_same_mistake(make: Make) -> None:
    """Where the parameters are all understood and the page is not, only the overview is left, with the filters."""
    text = make().mount().get(PREFIX + "/tags/Team?range=7d").get_data(as_text=True)
    assert "Show without it" not in text
    assert f'<a class="go" href="{PREFIX}/?range=7d">To the overview</a>' in text


def test_weeks_tell_of_the_odd_day_among_them(make: Make) -> None:
    """An odd day is said by its date where a bar is a week, too; a bar says its five dearest parts and what the rest is."""
    app = make().mount()
    now = datetime.now(UTC)
    app.add_all(
        (
            "60" if day == 3 and part == 7 else f"{part + 1}",
            {"at": now - timedelta(days=day, minutes=1), "tags": {"feature": f"f{part}"}},
        )
        for day in range(89)
        for part in range(8)
    )
    text = app.get(PREFIX + "/?range=90d&by=tag:feature").get_data(as_text=True)
    assert "By week, stacked by feature" in text
    day = now - timedelta(days=3, minutes=1)
    assert re.search(rf'<p class="odd always"[^>]*>{day.day} {day:%b}: f7 made it 2\.4 × the usual day</p>', text)
    assert "\nf7 $56.00\nf6 $49.00\nf5 $42.00\nf4 $35.00\nf3 $28.00\n3 more $42.00</title>" in text
    by_day = app.get(PREFIX + "/?range=30d&by=tag:feature").get_data(as_text=True)
    assert '<p class="odd"' in by_day


def test_a_tenant_is_told_no_more_by_a_file_than_by_its_page(make: Make) -> None:
    """Within a scope no JSON, CSV or page of a call names the source of a price of the app's, or the book's edition."""
    app = make(LLM_COST_PRICE_OVERRIDES={"acme/own": {"input": "1", "output": "2"}}).mount()
    app.mount("/mine", name="mine", scope=lambda: {"tenant_id": "a"})
    with app.app.app_context():
        tags = {"tenant_id": "a"}
        own = track("acme", model="own", usage={"input": 1000}, tags=tags)
        listed = track("openai", model="gpt-4", usage={"input": 1000}, tags=tags)
        assert own is not None
        assert listed is not None
        assert app.costs.flush(20)
    book = app.app.extensions["llm_cost"].book
    for page in ("pricing", "models", f"calls/{own.id}", f"calls/{listed.id}"):
        for fmt in ("html", "json", "csv"):
            text = app.get(f"/mine/{page}", format=fmt).get_data(as_text=True)
            assert "override" not in text, (page, fmt)
            assert not [part for part in book.version.split("+") if part in text], (page, fmt)
            assert str(book.entries) not in text, (page, fmt)
    assert "set for this app" in said(app.get(f"/mine/calls/{own.id}"))
    assert "the price book" in said(app.get(f"/mine/calls/{listed.id}"))
    rows = app.get("/mine/pricing?format=json").get_json()["pricing"]["rows"]
    assert {row["catalog"] for row in rows} == {"app", "bundled"}
    everything = app.get(PREFIX + "/pricing?format=json").get_json()["pricing"]
    assert (everything["version"], everything["entries"]) == (book.version, book.entries)
    assert app.get(f"{PREFIX}/calls/{own.id}?format=json").get_json()["price"]["source"] == "overrides"
