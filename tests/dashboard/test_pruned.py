"""After a prune, and on a replica: what cannot be known any more, or not yet, is said, and no total is smaller for it."""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from click.testing import Result
from mounted_app import PREFIX, MountedApp, said

from flask_llm_cost import track
from flask_llm_cost.cli import cli
from flask_llm_cost.dashboard import overview
from flask_llm_cost.ledger.sample_queries import latest

Make = Callable[..., MountedApp]
TAGS = {"feature": "chat", "user_id": "u1"}


def pruned(make: Make, **config: object) -> tuple[MountedApp, str]:
    """An app with a call a day for 50 days at $2.50, of which those of the last 20 are left, and the day since when."""
    app = make(**config)
    app.mount()
    noon = datetime.now(UTC).replace(hour=0, minute=0, second=1, microsecond=0)
    with app.app.app_context():
        for days in range(50):
            track("openai", model="gpt-4o", usage={"input": 1_000_000}, tags=TAGS, occurred_at=noon - timedelta(days=days))
            if days % 10 == 9:
                assert app.app.extensions["llm_cost"].ledger.flush(20)
    told = run(app, "prune", "--older-than", "20", "--yes")
    assert told.exit_code == 0, told.output
    return app, f"{noon - timedelta(days=20):%Y-%m-%d}"


def run(app: MountedApp, *arguments: str) -> Result:
    return app.app.test_cli_runner().invoke(cli, list(arguments))


def in_words(day: str) -> str:
    when = datetime.fromisoformat(day)
    return f"{when.day} {when:%b} {when.year}"


SUMS = (
    "/", "/explore", "/explore?rows=model", "/models", "/tags", "/tags/feature", "/tags/feature?value=chat", "/calls",
    "/data-quality", "/pricing", "/budgets", "/explore?rows=operation", "/models?operation=manual",
    "/?outcome=ok&by=tag:feature", "/explore?outcome=ok&rows=tag:feature", "/data-quality?tag.feature=chat",
    "/explore?outcome=ok&rows=tag:feature&cols=none", "/calls?outcome=ok&tag.feature=chat",
    "/models?outcome=ok&tag.feature=chat", "/tags?operation=manual", "/tags/feature?operation=manual",
)  # fmt: skip
CALLS_ONLY = (
    "/?outcome=ok&tag.user_id=u1&by=tag:feature", "/?outcome=ok&tag.feature=chat",
    "/explore?outcome=ok&tag.user_id=u1&rows=tag:feature", "/explore?outcome=ok&tag.user_id=u1&rows=tag:feature&cols=none",
    "/calls?outcome=ok&tag.user_id=u1&tag.feature=chat", "/calls.csv", "/calls?format=csv",
    "/models?outcome=ok&tag.user_id=u1&tag.feature=chat", "/tags?operation=manual&tag.user_id=u1",
    "/tags/feature?operation=manual&tag.user_id=u1", "/?outcome=ok&tag.user_id=u1&by=tag:feature&format=csv",
    "/explore?outcome=ok&tag.user_id=u1&rows=tag:feature&format=csv",
)  # fmt: skip


def test_no_total_is_smaller_after_a_prune(make: Make) -> None:
    """On every page, in its JSON and its CSV a range with pruned calls has the whole sum, or is refused naming the day."""
    app, day = pruned(make)
    for path in SUMS:
        response = app.get(
            f"{PREFIX}{path}{'&' if '?' in path else '?'}{'range=90d' if path not in ('/budgets', '/pricing') else ''}"
        )
        assert response.status_code == 200, path
        if path.partition("?")[0] not in ("/budgets", "/pricing", "/data-quality"):
            assert "$125" in response.get_data(as_text=True), path  # 50 × $2.50
    for path in ("/", "/explore", "/models", "/tags", "/tags/feature"):
        data = app.get(PREFIX + path, range="90d", format="json").get_json()
        total = data["total"].get("total", data["total"])
        assert (total["calls"], Decimal(total["cost"])) == (50, 125), path
    for path in CALLS_ONLY:
        mark = "&" if "?" in path else "?"
        response = app.get(f"{PREFIX}{path}{mark}range=90d")
        assert response.status_code == 410, path
        text = response.get_data(as_text=True)
        assert f"Detail pruned before {in_words(day)}" in text
        assert f"from={day}" in text  # the link to what is there
        if "format" not in path and path != "/calls.csv":
            data = app.get(f"{PREFIX}{path}{mark}range=90d&format=json").get_json()
            assert data["pruned_before"] == day
            assert path.startswith("/calls") or data["error"].startswith("Detail pruned before")


def test_what_is_known_of_one_currency_is_shown(make: Make) -> None:
    """Sums that are known are shown in every format, though those of other currencies went with their calls; it is said."""
    app, _ = pruned(make, LLM_COST_PRICE_OVERRIDES={"acme/m": {"currency": "EUR", "rates": {"input": "1"}}})
    asked = "range=90d&currency=EUR&cost_status=priced&tag.user_id=u1&tag.feature=chat"
    untold = "Whether there were calls in other currencies cannot be told, as detail was pruned."
    pages = ("/", "/explore", "/models", "/tags", "/tags/feature")
    for page in pages:
        for form in ("html", "json", "csv"):
            assert app.get(f"{PREFIX}{page}?{asked}&format={form}").status_code == 200, (page, form)
        assert untold in said(app.get(f"{PREFIX}{page}?{asked}")), page
    with app.app.app_context():
        track("acme", model="m", usage={"input": 3_000_000}, tags=TAGS)
        assert app.costs.flush(20)
    for page in pages:
        assert "€3" in app.get(f"{PREFIX}{page}?{asked}").get_data(as_text=True), page
    assert untold in said(app.get(f"{PREFIX}/?{asked}"))
    found = app.get(f"{PREFIX}/?{asked}&format=json").get_json()
    assert (found["total"]["cost"], found["other_currencies"]) == ("3", None)


def test_tables_add_up_after_a_prune(make: Make) -> None:
    """The CSV of a page that answers from sums has all calls, and that of the calls only a range that is whole."""
    app, day = pruned(make)
    for path in ("/", "/models", "/explore?cols=none", "/tags/feature"):
        mark = "&" if "?" in path else "?"
        text = app.get(f"{PREFIX}{path}{mark}range=90d&format=csv").get_data(as_text=True)
        rows = list(csv.DictReader(io.StringIO(text.lstrip("\ufeff"))))
        assert sum(int(row["calls"]) for row in rows) == 50, path
    text = app.get(f"{PREFIX}/calls.csv", **{"from": day, "to": f"{datetime.now(UTC):%Y-%m-%d}"}).get_data(as_text=True)
    assert len(text.splitlines()) == 1 + 21


def test_lists_say_since_when_they_are_whole(make: Make) -> None:
    """A list of calls, and the dearest of them, say that detail is pruned before a day, where the range begins earlier."""
    app, day = pruned(make)
    said = f"Detail pruned before {in_words(day)}"
    listed = app.get(f"{PREFIX}/calls", range="90d").get_data(as_text=True)
    assert said in listed
    assert "50 calls" in listed
    assert said not in app.get(f"{PREFIX}/calls", range="7d").get_data(as_text=True)
    assert app.get(f"{PREFIX}/calls", range="90d", format="json").get_json()["pruned_before"] == day
    assert app.get(f"{PREFIX}/calls", range="7d", format="json").get_json()["pruned_before"] is None
    assert "detail pruned before" in app.get(range="90d").get_data(as_text=True)  # beside the dearest calls
    assert "detail pruned before" not in app.get(range="7d").get_data(as_text=True)


def test_the_dearest_are_told_of_calls_that_are_there(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pruned calls are in the sum, and are none of the latest of which the dearest are told, nor of the dearest of all."""
    monkeypatch.setattr("flask_llm_cost.ledger.peaks._WORTH", 1)
    app, _ = pruned(make)
    for most, narrow, of_latest in ((30, {}, None), (20, {}, None), (20, {"tag.feature": "chat"}, 20)):  # 21 of 50 are left
        monkeypatch.setattr(overview, "latest", functools.partial(latest, size=most))
        assert app.get(range="90d", format="json", **narrow).get_json()["dearest_calls_of_latest"] == of_latest
        said = "detail pruned before" if of_latest is None else f"of the latest {most}"
        assert said in app.get(range="90d", **narrow).get_data(as_text=True)


def test_bills_are_compared_of_calls_that_are_there(make: Make) -> None:
    """What a provider charged stands beside the book's figure of calls that are left, and data quality says since when."""
    app = make()
    app.mount()
    now = datetime.now(UTC)
    with app.app.app_context():
        for days in (5, 40):
            at = now - timedelta(days=days)
            track("openai", model="gpt-4o", usage={"input": 1_000_000}, billed=Decimal(3), occurred_at=at)
        assert app.app.extensions["llm_cost"].ledger.flush(20)
    whole = app.get(f"{PREFIX}/data-quality", range="90d").get_data(as_text=True)
    assert "2 calls: billed 6 USD" in whole
    assert "pruned before" not in whole
    run(app, "prune", "--older-than", "20", "--yes")
    rest = app.get(f"{PREFIX}/data-quality", range="90d").get_data(as_text=True)
    assert "1 call: billed 3 USD" in rest
    assert f"since {in_words(f'{now - timedelta(days=20):%Y-%m-%d}')}: detail pruned before" in rest


def test_tags_that_only_pruned_calls_had_are_listed(make: Make) -> None:
    """A tag that no call has any more stands in the list of tags, with what was spent on it."""
    app, _ = pruned(make)
    now = datetime.now(UTC)
    with app.app.app_context():
        track("openai", model="gpt-4o", usage={"input": 1_000_000}, tags={"old": "x"}, occurred_at=now - timedelta(days=30))
        assert app.app.extensions["llm_cost"].ledger.flush(20)
    run(app, "prune", "--older-than", "20", "--yes")
    keys = {row["key"]: row for row in app.get(f"{PREFIX}/tags", range="90d", format="json").get_json()["keys"]}
    assert keys.keys() == {"feature", "old", "user_id"}
    assert keys["old"]["values"] == 1


def test_a_ledger_of_pruned_calls_is_no_first_run(make: Make) -> None:
    """Where all calls were pruned nobody is told how to make the first one, but that these days have none."""
    app = make()
    app.mount()
    with app.app.app_context():
        at = datetime.now(UTC) - timedelta(days=40)
        track("openai", model="gpt-4o", usage={"input": 1_000_000}, tags=TAGS, occurred_at=at)
        assert app.app.extensions["llm_cost"].ledger.flush(20)
    assert "1 row" in run(app, "prune", "--older-than", "20", "--yes").output
    for path in ("/", "/data-quality"):
        assert "No calls yet" not in app.get(PREFIX + path, range="7d").get_data(as_text=True), path
        assert "$2.50" in app.get(range="90d").get_data(as_text=True)


def test_what_it_is_compared_with_is_unknown(make: Make) -> None:
    """Where only the compared range was pruned, the page stands, and nothing is called new or compared with zero."""
    app, _ = pruned(make)
    today = datetime.now(UTC).date()
    tags = {f"tag.{key}": value for key, value in TAGS.items()}
    filtered = {"from": f"{today - timedelta(days=13)}", "to": f"{today}", "outcome": "ok", **tags}
    page = app.get(**filtered)
    assert page.status_code == 200
    text = page.get_data(as_text=True)
    assert "$35.00" in text
    data = app.get(format="json", **filtered).get_json()
    assert data["total"]["calls"] == 14
    assert data["compared"]["cost"] is None
    assert {row["compared_cost"] for found in data["breakdowns"] for row in found["rows"]} == {None}
    assert ">new<" not in text
    for path in ("/models", "/explore", "/tags/feature"):
        assert app.get(PREFIX + path, **filtered).status_code == 200


def test_report_names_the_day(make: Make) -> None:
    """``flask llm-cost report`` has the whole sum, or says since when it could answer."""
    app, day = pruned(make)
    whole = run(app, "report", "--days", "90", "--by", "model")
    assert whole.exit_code == 0
    assert "125" in whole.output
    for form in ("text", "json", "csv"):
        refused = run(app, "report", "--days", "90", "--by", "host", "--format", form)
        assert refused.exit_code != 0
        assert f"detail pruned before {day}" in refused.output
        assert "Traceback" not in refused.output


def test_how_far_a_replica_is_behind(make: Make) -> None:
    """With LLM_COST_READ_BIND_KEY pages say how far what they read is behind; without it they say nothing of it."""
    plain = make()
    plain.mount().add("1")
    assert "replica" not in plain.get().get_data(as_text=True)
    reader = make(
        tables=False,
        LLM_COST_READ_BIND_KEY="reader",
        SQLALCHEMY_BINDS={"reader": plain.app.config["SQLALCHEMY_DATABASE_URI"]},
    ).mount()
    with reader.app.app_context():
        track("openai", model="gpt-4o", usage={"input": 1_000_000}, tags=TAGS)
        assert reader.app.extensions["llm_cost"].ledger.flush(20)
    assert "read from a replica that is up to date" in reader.get().get_data(as_text=True)


def test_a_replica_without_the_newest_call_is_behind(make: Make, tmp_path: Path) -> None:
    """Between two heartbeats the newest call tells how far behind the replica is."""
    replica = make()
    replica.mount().add("1", at=(newest := datetime.now(UTC)) - timedelta(seconds=90))
    bind = {"reader": replica.app.config["SQLALCHEMY_DATABASE_URI"]}
    reader = make(url=f"sqlite:///{tmp_path}/ledger.db", LLM_COST_READ_BIND_KEY="reader", SQLALCHEMY_BINDS=bind).mount()
    reader.add("1", at=newest)
    assert "read from a replica 1 min 30 s behind" in reader.get().get_data(as_text=True)
