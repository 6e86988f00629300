"""Whoever answers, rollups or calls, the answer is the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_prices import price
from sqlalchemy.orm import Session

from flask_llm_cost.errors import DetailPrunedError
from flask_llm_cost.ledger import peaks, queries
from flask_llm_cost.ledger.answers import SPEND, Grouping, Sums
from flask_llm_cost.ledger.call_queries import all_calls, calls_page, dearest_calls
from flask_llm_cost.ledger.days import with_calls
from flask_llm_cost.ledger.detail import MEASURES, from_calls
from flask_llm_cost.ledger.engine import OwnEngine
from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.ledger.local_time import start_of_day
from flask_llm_cost.ledger.models import Base, Call, CallTag, LineItem
from flask_llm_cost.ledger.quality_queries import soundness
from flask_llm_cost.ledger.rebuild import rebuild
from flask_llm_cost.ledger.retention import Cutoff, prune
from flask_llm_cost.ledger.rollup_answers import sums
from flask_llm_cost.ledger.rollup_state import set_pruned
from flask_llm_cost.ledger.rollups import Rollups
from flask_llm_cost.ledger.sample_queries import latest
from flask_llm_cost.ledger.writer import Writer
from flask_llm_cost.records import UNPRICED, CallRecord, Usage, new_call_id

UTC_ZONE = ZoneInfo("UTC")
BERLIN = ZoneInfo("Europe/Berlin")
ZONES = ("Europe/Berlin", "Asia/Kathmandu", "UTC", "America/St_Johns")
#: Tags that rollups are kept of: all, and not those that are nearly unique.
KEYS: tuple[Any, ...] = ("auto", ("feature", "tenant_id"))
#: The clocks go back in Berlin on 25 October 2026.
AUTUMN = datetime(2026, 10, 25, tzinfo=UTC)


OPERATIONS = ("chat.completions", "my|own")


def made_up(number: int) -> CallRecord:
    """Calls that differ in everything that spend is asked by, around a day that has 25 hours."""
    record = CallRecord(
        id=new_call_id(),
        occurred_at=AUTUMN + timedelta(minutes=37 * number - 9000, seconds=number % 60),
        provider=("openai", "azure")[number % 2],
        operation=OPERATIONS[number % 4 == 1],
        model=("gpt-4o", "gpt-4.1", None)[number % 3],
        requested_model=("gpt-4o", None)[number % 5 == 0],
        outcome=("ok", "ok", "ok", "interrupted", "error")[number % 5],
        latency_ms=(None, 100, 900)[number % 3],
        usage=Usage(
            {"input": number % 900, "cache_read": 7, "output": 3},
            ("response", "stream_partial")[number % 2],
            flags=((), ("odd|flag", "other"))[number % 8 == 2],
        )
        if number % 7
        else Usage(),
        tags={
            key: value
            for key, value in (
                ("feature", ("chat", "digest", "x")[number % 3]),
                ("tenant_id", f"t{number % 4}"),
                ("user_id", str(number % 11)),
                ("job", "nightly"),
            )
            if number % (3 + len(key)) > 1
        },
    )
    return price(record) if number % 4 else replace(record, cost=UNPRICED)


RECORDS = [made_up(number) for number in range(400)]


class Kept:
    """A ledger with rollups."""

    def __init__(self, url: sa.URL, zone: str, keys: Any = "auto", records: Sequence[CallRecord] = RECORDS) -> None:
        self.engine = sa.create_engine(url)
        Base.metadata.create_all(self.engine)
        self._own = OwnEngine(lambda: self.engine)
        self.rollups = Rollups(ZoneInfo(zone), keys, ("feature", "tenant_id", "user_id"))
        self.writer = Writer(self._own, [self.rollups])
        self.writer.write(records)

    def close(self) -> None:
        self._own.dispose()
        self.engine.dispose()


@pytest.fixture
def kept(database_url: sa.URL) -> Iterator[Kept]:
    kept = Kept(database_url, "Europe/Berlin")
    yield kept
    kept.close()


@pytest.fixture(scope="module")
def ledgers_of_zones(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Kept]]:
    folder = tmp_path_factory.mktemp("ledgers")
    ledgers = {
        zone: Kept(sa.URL.create("sqlite", database=f"{folder}/{number}.db"), zone, KEYS[number % 2])
        for number, zone in enumerate(ZONES)
    }
    yield ledgers
    for kept in ledgers.values():
        kept.close()


INSTANTS = st.one_of(
    st.none(),
    st.integers(-9000, 6000).map(lambda minutes: AUTUMN + timedelta(minutes=minutes)),
    st.integers(-600, 400).map(lambda quarters: AUTUMN + timedelta(minutes=15 * quarters)),
    st.builds(
        lambda days, zone: start_of_day(date(2026, 10, 25) + timedelta(days=days), ZoneInfo(zone)),
        st.integers(-6, 4),
        st.sampled_from(ZONES),
    ),
)
VALUES: dict[str, list[str | None]] = {
    "feature": ["chat", "digest", None], "tenant_id": ["t0", "t3", None], "user_id": ["1", None], "job": ["nightly", None],
}  # fmt: skip


@st.composite
def filters(draw: st.DrawFn) -> Filter:
    since, until = draw(INSTANTS), draw(INSTANTS)
    if since is not None and until is not None and until < since:
        since, until = until, since
    keys = draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=2, unique=True))
    scoped = draw(st.booleans()) and keys
    return Filter(
        scope={keys[0]: VALUES[keys[0]][0] or ""} if scoped else {},
        since=since,
        until=until,
        provider=draw(st.sampled_from([None, None, "openai"])),
        model=draw(st.sampled_from([None, None, "gpt-4o"])),
        tags={key: draw(st.sampled_from(VALUES[key])) for key in keys[1 if scoped else 0 :]},
        operation=draw(st.sampled_from([*[None] * 5, *OPERATIONS])),
        outcome=draw(st.sampled_from([None, None, None, "ok", "error"])),
        usage_source=draw(st.sampled_from([*[None] * 5, "response", "known"])),
        cost_status=draw(st.sampled_from([*[None] * 5, "priced", "unpriced"])),
        stream=draw(st.sampled_from([*[None] * 5, False])),
    )


DIMENSIONS = st.lists(
    st.sampled_from(
        [
            "provider",
            "model",
            "day",
            "month",
            "hour",
            "tag:feature",
            "tag:tenant_id",
            "tag:user_id",
            "tag:job",
            "outcome",
            "usage_source",
            "cost_status",
            "stream",
            "operation",
        ]
    ),
    max_size=3,
    unique=True,
).filter(lambda names: len({*names} & {"day", "month", "hour"}) < 2)


def both(
    kept: Kept, flt: Filter, dimensions: list[str], measures: tuple[str, ...], zone: ZoneInfo, tagged: Collection[str] = ()
) -> tuple[Sums, Sums]:
    with Session(kept.engine) as session:
        by = Grouping(dimensions=tuple(dimensions), measures=measures, zone=zone, tagged=tagged)
        quick = sums(session, flt, by)
        ends = replace(flt, since=flt.since or AUTUMN - timedelta(days=30), until=flt.until or AUTUMN + timedelta(days=30))
        slow = from_calls(session, ends, by)
    return quick, {keys: amounts for keys, amounts in slow.items() if amounts[0]}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(ZONES), st.sampled_from(ZONES), filters(), DIMENSIONS, st.sampled_from([None, *VALUES]))
def test_rollups_and_calls_say_the_same(
    ledgers_of_zones: dict[str, Kept], kept_in: str, asked_in: str, flt: Filter, dimensions: list[str], key: str | None
) -> None:
    """Any filter, range, grouping, zone and tag to have: sums from the rollups are those of the calls, to the last digit."""
    tagged = () if key is None else (key,)
    quick, slow = both(ledgers_of_zones[kept_in], flt, dimensions, tuple(MEASURES), ZoneInfo(asked_in), tagged)
    assert quick == slow
    if f"tag:{key}" in dimensions:
        assert None not in {keys[dimensions.index(f"tag:{key}")] for keys in slow}


GROUPINGS = (
    [], ["day"], ["month", "model"], ["hour"], ["tag:feature"], ["tag:feature", "tag:tenant_id"], ["day", "tag:user_id"],
    ["tag:nobody"], ["tag:nobody", "tag:feature"], ["day", "tag:nobody"], ["operation"], ["day", "operation", "outcome"],
)  # fmt: skip


def test_every_database_says_the_same(kept: Kept) -> None:
    """On each database, in and out of a scope, with a range whose ends are no quarters."""
    inside = Filter(scope={}, since=AUTUMN - timedelta(days=3, minutes=4), until=AUTUMN + timedelta(days=2, seconds=5))
    for dimensions in GROUPINGS:
        for flt in (inside, replace(inside, scope={"tenant_id": "t1"}), replace(inside, since=None, until=None)):
            quick, slow = both(kept, flt, dimensions, SPEND, BERLIN)
            assert quick == slow, (dimensions, flt)


@pytest.mark.parametrize("zone", ZONES)
def test_parts_of_days_say_the_same(ledgers_of_zones: dict[str, Kept], zone: str) -> None:
    """Ranges of any length that begin and end at any hour of the days around the one of 25 hours, by a tag and without."""
    start = start_of_day(date(2026, 10, 24), ZoneInfo(zone))
    asked: tuple[tuple[int, list[str], list[str]], ...] = (
        (1, ["tag:feature"], []), (4, [], ["tenant_id"]), (5, ["day", "tag:tenant_id"], ["tenant_id"]),
        (13, ["tag:feature"], []), (31, [], ["tenant_id"]),
    )  # fmt: skip
    for hours, dimensions, tagged in asked:
        for hour in range(72 - hours):
            since = start + timedelta(hours=hour, minutes=hour % 2)
            flt = Filter(scope={}, since=since, until=since + timedelta(hours=hours))
            quick, slow = both(ledgers_of_zones[zone], flt, dimensions, SPEND, ZoneInfo(zone), tagged)
            assert quick == slow, (hours, hour, dimensions)


def test_parts_of_a_day_of_21_hours(tmp_path: Path) -> None:
    """Where clocks went forward by three hours, ranges that begin and end at any hour around it are what the calls say."""
    zone = ZoneInfo("Antarctica/Casey")
    start = start_of_day(date(2022, 10, 2), zone)
    moved = [replace(record, occurred_at=record.occurred_at - AUTUMN + start) for record in RECORDS]
    kept = Kept(sa.URL.create("sqlite", database=str(tmp_path / "short.db")), zone.key, records=moved)
    for hours in (1, 5, 13, 19, 21):
        for hour in range(-24, 46 - hours):
            flt = Filter(scope={}, since=start + timedelta(hours=hour), until=start + timedelta(hours=hour + hours))
            quick, slow = both(kept, flt, ["tag:feature"], SPEND, zone, ["feature"])
            assert quick == slow, (hours, hour)
    kept.close()


def test_ends_on_a_clock_that_shows_an_hour_twice(kept: Kept) -> None:
    """A filter whose ends are of such an hour, in their zone, is that of the same instants."""
    for hour, fold in ((2, 0), (2, 1), (3, 0)):
        since = datetime(2026, 10, 25, hour, fold=fold, tzinfo=BERLIN)
        for until in (since, since + timedelta(hours=9), datetime(2026, 10, 25, 8, tzinfo=UTC)):
            flt = Filter(scope={}, since=since, until=until, tags={"feature": "chat"})
            quick, slow = both(kept, flt, [], SPEND, BERLIN)
            assert quick == slow
            assert flt == replace(flt, since=since.astimezone(UTC), until=until.astimezone(UTC))


def test_parts_of_days_by_a_tag_do_not_read_calls(kept: Kept) -> None:
    """From ten o'clock to four by a tag, by day too, with and without it: known from sums, and calls are not touched."""
    start = start_of_day(date(2026, 10, 22), BERLIN)
    flt = Filter(scope={}, since=start + timedelta(hours=10), until=start + timedelta(days=2, hours=16))
    asked: list[tuple[Filter, list[str], list[str]]] = [
        (flt, ["tag:feature"], []),
        (flt, ["day", "tag:tenant_id"], ["tenant_id"]),
        (replace(flt, tags={"feature": "chat"}), [], []),
        (replace(flt, scope={"feature": "chat"}, until=flt.since and flt.since + timedelta(hours=12)), ["day"], []),
        (replace(flt, tags={"feature": None}), [], []),
    ]
    for narrow, dimensions, tagged in asked:
        quick, slow = both(kept, narrow, dimensions, SPEND, BERLIN, tagged)
        assert quick == slow
        assert quick
    with kept.engine.begin() as connection:
        for model in (LineItem, CallTag, Call):
            connection.execute(sa.delete(model))
    for narrow, dimensions, tagged in asked:
        quick, slow = both(kept, narrow, dimensions, SPEND, BERLIN, tagged)
        assert quick
        assert not slow


def test_how_calls_ended_is_the_same_from_both(kept: Kept) -> None:
    """What data quality is told is what the calls say, whole days and broken ranges, of a provider, a tag and of all."""
    inside = Filter(scope={}, since=AUTUMN - timedelta(days=3, minutes=4), until=AUTUMN + timedelta(days=2, seconds=5))
    with Session(kept.engine) as session:
        whole = Filter(scope={})
        for flt in (
            inside, replace(inside, provider="openai"), whole, replace(whole, operation="my|own"),
            replace(inside, scope={"feature": "chat"}), replace(whole, tags={"tenant_id": "t1"}, outcome="error"),
            replace(whole, tags={"feature": None}), replace(whole, scope={"feature": "chat"}, tags={"feature": "x"}),
        ):  # fmt: skip
            by_hand = Counter(
                (record.provider, record.outcome, record.usage.source, record.cost.status if record.cost else "unpriced")
                for record in RECORDS
                if (flt.since is None or flt.since <= record.occurred_at)
                and (flt.until is None or record.occurred_at < flt.until)
                and flt.provider in (None, record.provider)
                and flt.operation in (None, record.operation)
                and flt.outcome in (None, record.outcome)
                and all(record.tags.get(key) == value for tags in (flt.scope, flt.tags) for key, value in tags.items())
            )
            said: Counter[tuple[str, ...]] = Counter()
            for row in soundness(session, flt):
                said[row.provider, row.outcome, row.usage_source, row.cost_status] += row.calls
            assert said == by_hand


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(ZONES),
    filters(),
    st.fixed_dictionaries(
        {},
        optional={
            "outcome": st.sampled_from(["ok", "error", "blocked"]),
            "usage_source": st.sampled_from(["response", "unknown", "estimated", "known"]),
            "cost_status": st.sampled_from(["priced", "unpriced", "free"]),
            "stream": st.booleans(),
            "operation": st.sampled_from(OPERATIONS),
        },
    ),
)
def test_a_list_of_how_calls_ended_misses_none(
    ledgers_of_zones: dict[str, Kept], zone: str, flt: Filter, ending: dict[str, Any]
) -> None:
    """Looking only at days that have such calls finds all that the filter lets through, in every range, scope and zone."""
    asked = replace(flt, **ending)
    with Session(ledgers_of_zones[zone].engine) as session:
        wanted = {
            at: call_id for call_id, at in session.execute(sa.select(Call.id, Call.occurred_at).where(*asked.conditions()))
        }
        assert {row.id for row in all_calls(session, asked, batch=60)} == set(wanted.values())
        assert queries.extent(session, asked) == (min(wanted, default=None), max(wanted, default=None))
        assert latest(session, asked).size == len(wanted)


@pytest.fixture
def short_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few calls are enough to be looked for by quarters of an hour."""
    monkeypatch.setattr(peaks, "_WORTH", 1)


@pytest.mark.usefixtures("short_lists")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(ZONES), filters(), st.sampled_from(["dearest", "slowest"]), st.integers(1, 60))
def test_lists_by_cost_and_latency_miss_none(
    ledgers_of_zones: dict[str, Kept], zone: str, flt: Filter, order: str, limit: int
) -> None:
    """Page by page there and back, every call is in its place: the highest first, the latest of equals, the unknown last."""
    amount = {"dearest": "total_cost", "slowest": "latency_ms"}[order]
    with Session(ledgers_of_zones[zone].engine) as session:
        there = session.execute(
            sa.select(sa.func.coalesce(getattr(Call, amount), -1), Call.occurred_at, Call.id).where(*flt.conditions())
        )
        wanted = [call_id for _, _, call_id in sorted(there, key=lambda row: (row[0], row[1], row[2].int), reverse=True)]
        page = calls_page(session, flt, order=order, limit=limit)
        pages = [page]
        while page.following is not None and len(pages) < 12:
            page = calls_page(session, flt, order=order, after=page.following, limit=limit)
            pages.append(page)
        assert [row.id for page in pages for row in page.rows] == wanted[: limit * len(pages)]
        for earlier in reversed(pages[:-1]):
            assert page.preceding is not None
            page = calls_page(session, flt, order=order, before=page.preceding, limit=limit)
            assert page.rows == earlier.rows


@pytest.mark.usefixtures("short_lists")
def test_calls_that_cost_the_same_are_in_order_of_time(tmp_path: Path) -> None:
    """Of calls in 450 quarters of an hour with few values, all or some, each page is that of the whole list.

    The bounds of the first quarters are by calls that the filter does not let through.
    """
    kept = Kept(sa.URL.create("sqlite", database=f"{tmp_path}/same.db"), "UTC")

    def of(number: int) -> tuple[bool, int]:
        streamed = number % 2 == 0
        return streamed, 20 if streamed else 30 if number < 400 else 10

    some = [
        price(
            replace(
                made_up(1), id=new_call_id(), occurred_at=AUTUMN + timedelta(days=40, minutes=7.5 * number, seconds=1),
                stream=of(number)[0], latency_ms=of(number)[1], cost=None,
            )
        )
        for number in range(2 * 450)
    ]  # fmt: skip
    kept.writer.write(some)
    flt = Filter(scope={}, since=AUTUMN + timedelta(days=40))
    whole = sorted(some, key=lambda record: (record.latency_ms or 0, record.occurred_at), reverse=True)
    with Session(kept.engine) as session:
        for streamed in (None, True):
            asked = replace(flt, stream=streamed)
            wanted = [record.id for record in whole if streamed in (None, record.stream)]
            for limit in (1, 40, 250, 420, 800):
                assert [row.id for row in calls_page(session, asked, order="slowest", limit=limit).rows] == wanted[:limit]
            for place in range(0, len(wanted) - 10, 20):
                after = calls_page(session, asked, order="slowest", after=wanted[place], limit=9)
                assert [row.id for row in after.rows] == wanted[place + 1 : place + 10]
                before = calls_page(session, asked, order="slowest", before=wanted[place + 9], limit=9)
                assert [row.id for row in before.rows] == wanted[place : place + 9]
    kept.close()


@pytest.mark.usefixtures("short_lists")
@pytest.mark.parametrize("order", ["dearest", "slowest"])
def test_the_top_of_a_list_by_cost_reads_few_calls(kept: Kept, order: str) -> None:
    """The first pages, of everything and of a provider, look at calls of some quarters of an hour only, back and forth."""
    for flt in (Filter(scope={}), Filter(scope={}, provider="openai")):
        seen: list[str] = []
        with Session(kept.engine) as session:
            sa.event.listen(kept.engine, "before_cursor_execute", lambda *given, seen=seen: seen.append(given[2]))
            first = calls_page(session, flt, order=order, limit=5)
            second = calls_page(session, flt, order=order, after=first.following, limit=5)
            assert calls_page(session, flt, order=order, before=second.preceding, limit=5).rows == first.rows
        lists = [statement for statement in seen if f"FROM {Call.__tablename__}" in statement and "LIMIT" in statement]
        assert len(lists) == 3
        assert all(statement.count("occurred_at >=") > 1 for statement in lists), lists


def test_the_dearest_of_the_latest_are_in_the_order_of_the_list(kept: Kept) -> None:
    """Where the dearest calls are those of the latest, equals among them are as they are in the list."""
    for flt in (Filter(scope={}), Filter(scope={"tenant_id": "t1"})):
        with Session(kept.engine) as session:
            wanted = calls_page(session, flt, order="dearest", limit=60).rows
            every = latest(session, flt).size
            for size, whole in ((every, False), (every + 1, True)):
                rows, of_all = dearest_calls(session, latest(session, flt, size), 60)
                assert rows == wanted
                assert of_all == whole


def test_few_calls_are_sorted_as_they_are(kept: Kept) -> None:
    """Where sorting all is quicker than looking up quarters of an hour, and for whole files, none are looked up."""
    seen: list[str] = []
    with Session(kept.engine) as session:
        sa.event.listen(kept.engine, "before_cursor_execute", lambda *given: seen.append(given[2]))
        calls_page(session, Filter(scope={}), order="dearest", limit=5)
        assert len(list(all_calls(session, Filter(scope={}), order="slowest"))) == len(RECORDS)
    assert not [statement for statement in seen if "occurred_at <" in statement]
    assert len([statement for statement in seen if "most_" in statement]) == 1


def test_nothing_is_looked_for_on_days_without_it(kept: Kept) -> None:
    """No call was blocked: the list and the sample say so without reading calls, and of what ended on one day they read that
    day."""
    flt = Filter(scope={}, since=AUTUMN - timedelta(days=20), until=AUTUMN + timedelta(days=20))
    statements: list[str] = []
    with Session(kept.engine) as session:
        sa.event.listen(kept.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
        assert calls_page(session, replace(flt, outcome="blocked")).rows == ()
        assert latest(session, replace(flt, outcome="blocked")).size == 0
        within = with_calls(session, replace(flt, outcome="error"))
        failed = [record.occurred_at for record in RECORDS if record.outcome == "error"]
        assert statements
        assert not [statement for statement in statements if Call.__tablename__ in statement]
        assert latest(session, replace(flt, outcome="error")).flt == within
    assert within is not None
    assert (within.since, within.until) == (
        start_of_day(min(failed).astimezone(BERLIN).date(), BERLIN),
        start_of_day(max(failed).astimezone(BERLIN).date() + timedelta(days=1), BERLIN),
    )


def test_who_lacks_a_tag_is_not_looked_for_where_nobody_does(kept: Kept) -> None:
    """All calls of the last days have a tag: who lacks it is known without reading one, in a scope too; of one that
    lacks it, its day is read."""
    since = AUTUMN + timedelta(days=30)
    calls = [
        replace(
            made_up(1), id=new_call_id(), occurred_at=since + timedelta(hours=7 * number), tags={"team": f"a{number % 2}"}
        )
        for number in range(20)
    ]
    kept.writer.write(calls)
    asked = Filter(scope={"team": "a1"}, since=since, tags={"user_id": None})
    lacking = replace(asked, tags={"team": None})
    statements: list[str] = []
    sa.event.listen(kept.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    with Session(kept.engine) as session:
        for flt in (lacking, replace(lacking, scope={}), replace(lacking, model="gpt-4.1")):
            assert calls_page(session, flt).rows == ()
            assert queries.pivot(session, flt, ("host",)) == []
        assert statements
        assert not [statement for statement in statements if Call.__tablename__ in statement]
        assert len(calls_page(session, asked).rows) == 10
    odd = replace(calls[9], id=new_call_id(), tags={})
    kept.writer.write([odd])
    with Session(kept.engine) as session:
        within = with_calls(session, replace(lacking, scope={}))
        assert [row.id for row in calls_page(session, replace(lacking, scope={})).rows] == [odd.id]
    day = odd.occurred_at.astimezone(BERLIN).date()
    assert within is not None
    assert (within.since, within.until) == (start_of_day(day, BERLIN), start_of_day(day + timedelta(days=1), BERLIN))


def test_the_dearest_of_a_tag_and_those_without(kept: Kept) -> None:
    """The dearest values by rollups are the dearest by calls, the untagged in their place."""
    flt = Filter(scope={}, since=start_of_day(date(2026, 10, 20), BERLIN), until=start_of_day(date(2026, 11, 1), BERLIN))
    with Session(kept.engine) as session:
        for name in ("tag:feature", "tag:user_id", "model"):
            whole = queries.pivot(session, flt, (name,))
            assert queries.pivot(session, flt, (name,), top=3) == whole[:3]
            wanted = {name: [whole[0].key, None]}
            failed = replace(flt, outcome="error")
            picked = [row for row in queries.pivot(session, failed, (name, "stream")) if row.key == whole[0].key]
            assert queries.pivot(session, failed, (name, "stream"), only={name: [whole[0].key]}) == picked
            assert {row.key for row in queries.pivot(session, flt, (name,), only=wanted)} <= {whole[0].key, None}
            assert queries.count_values(session, flt, name) == len([row for row in whole if row.key is not None])


def test_sums_of_whole_days_do_not_read_calls(kept: Kept) -> None:
    """Days, months, models, tags and pairs of report tags, scoped and not, never touch the tables of single calls."""
    flt = Filter(scope={}, since=start_of_day(date(2026, 10, 20), BERLIN), until=start_of_day(date(2026, 11, 1), BERLIN))
    scoped = replace(flt, scope={"tenant_id": "t1"})
    statements: list[str] = []
    sa.event.listen(kept.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    with Session(kept.engine) as session:
        for asked in (flt, scoped):
            queries.totals(session, asked)
            queries.over(session, asked, "day", BERLIN)
            queries.pivot(session, asked, ("tag:feature",), top=5)
            queries.pivot(session, asked, ("day", "tag:feature"), zone=BERLIN)
            queries.pivot(session, asked, ("model",))
            queries.completeness(session, asked)
            queries.unpriced_models(session, asked)
            (all_of_it,) = queries.pivot(session, asked, ("tag:nobody",))
            assert all_of_it.key is None
            assert all_of_it.calls
            assert not queries.totals(session, asked.narrowed(tags={"nobody": "x"})).calls
        soundness(session, flt)
        soundness(session, scoped)
        soundness(session, replace(flt, outcome="error"))
        for ending in ({"outcome": "error"}, {"cost_status": "unpriced", "stream": False}, {"usage_source": "response"}):
            queries.totals(session, replace(flt, **ending))
            queries.over(session, replace(flt, **ending), "day", BERLIN)
            queries.pivot(session, replace(flt, **ending), ("model", "outcome"), only={"outcome": ["error"]})
            queries.totals(session, replace(scoped, **ending))
            queries.over(session, replace(scoped, **ending), "day", BERLIN)
            queries.pivot(session, replace(scoped, **ending), ("model", "operation"))
            queries.pivot(session, replace(flt, **ending), ("tag:feature", "outcome"))
            soundness(session, replace(scoped, **ending))
        queries.over(session, flt, "hour", BERLIN)
        queries.over(session, flt, "day", ZoneInfo("Asia/Kathmandu"))
    tables = (Call.__tablename__, CallTag.__tablename__, LineItem.__tablename__)
    assert statements
    assert not [statement for statement in statements if any(table in statement for table in tables)]


@pytest.mark.parametrize("keys", KEYS, ids=["kept", "left out"])
def test_who_has_a_tag_is_known_without_calls(database_url: sa.URL, keys: Any) -> None:
    """Calls with a tag and without it, by day and model too, are had from few rows, also where its values are left out."""
    kept = Kept(database_url, "Europe/Berlin", keys)
    inside = Filter(scope={}, since=start_of_day(date(2026, 10, 20), BERLIN), until=start_of_day(date(2026, 11, 1), BERLIN))
    groupings: tuple[list[str], ...] = ([], ["day"], ["provider", "model"])
    seen: list[tuple[str, Any]] = []
    sa.event.listen(kept.engine, "before_cursor_execute", lambda *given: seen.append((given[2], given[3])))

    def quick(flt: Filter, dimensions: list[str], tagged: Collection[str]) -> str:
        """What was asked of the database, once rollups and calls have said the same."""
        seen.clear()
        with Session(kept.engine) as session:
            by = Grouping(dimensions=tuple(dimensions), measures=tuple(MEASURES), zone=BERLIN, tagged=tagged)
            found = sums(session, flt, by)
            asked = str(seen)
            assert found == {keys: amounts for keys, amounts in from_calls(session, flt, by).items() if amounts[0]}
        assert found
        return asked

    for dimensions in groupings:
        for key in VALUES:
            for flt in (inside, replace(inside, model="gpt-4o")):
                for asked in (quick(flt, dimensions, [key]), quick(replace(flt, tags={key: None}), dimensions, [])):
                    assert f"{key}?" in asked
                    assert Call.__tablename__ not in asked
    for other, flt in (("user_id", replace(inside, scope={"tenant_id": "t1"})), ("feature", inside)):
        assert "user_id?" not in quick(replace(flt, tags={other: VALUES[other][0]}), [], ["user_id"])
    for tagged in ([], ["user_id"]):
        assert (Call.__tablename__ in quick(inside, ["tag:user_id"], tagged)) == (keys != "auto")
    whole = quick(replace(inside, until=inside.until and inside.until + timedelta(minutes=3)), [], ["user_id"])
    assert "user_id?" in whole
    assert Call.__tablename__ in whole
    kept.close()


def test_what_needs_pruned_calls_says_so(kept: Kept) -> None:
    """After calls are gone, rollups answer as before; what only the calls could answer is refused, naming the day."""
    day = date(2026, 10, 23)
    flt = Filter(scope={}, since=start_of_day(date(2026, 10, 20), BERLIN), until=start_of_day(date(2026, 11, 1), BERLIN))

    def ask() -> Any:
        with Session(kept.engine) as session:
            return (
                queries.totals(session, flt),
                queries.over(session, flt, "day", BERLIN),
                queries.pivot(session, flt, ("tag:feature", "tag:tenant_id")),
                queries.completeness(session, flt),
            )

    before = ask()
    with kept.engine.begin() as connection:
        ids = list(connection.scalars(sa.select(Call.id).where(Call.occurred_at < start_of_day(day, BERLIN))))
        for model in (LineItem, CallTag):
            connection.execute(sa.delete(model).where(model.call_id.in_(ids)))
        connection.execute(sa.delete(Call).where(Call.id.in_(ids)))
        set_pruned(connection, start_of_day(day, BERLIN), day)
    assert ids
    assert ask() == before
    with Session(kept.engine) as session:
        with pytest.raises(DetailPrunedError, match="detail pruned before 2026-10-23"):
            queries.pivot(session, flt, ("host",))
        later = replace(flt, since=start_of_day(day, BERLIN))
        assert queries.pivot(session, later, ("host",))
        assert queries.pruned_before(session) == start_of_day(day, BERLIN)
        first, _ = queries.extent(session, Filter(scope={}))
        assert first is not None
        assert first < start_of_day(day, BERLIN)


@pytest.mark.parametrize("moved_to", ["America/Los_Angeles", "Asia/Kathmandu", "Africa/Lagos"])
def test_ranges_of_pruned_history_after_a_move(tmp_path: Path, moved_to: str) -> None:
    """Whichever quarter of an hour a range of pruned calls begins or ends with, its sums are right in another zone, too."""
    first = Kept(sa.URL.create("sqlite", database=str(tmp_path / "moved.db")), "Europe/Berlin")
    cutoff = Cutoff.of(date(2026, 10, 26), BERLIN)
    for _ in prune(first.writer.transactions, first.rollups, cutoff):
        pass
    zone = ZoneInfo(moved_to)
    rollups = Rollups(zone, "auto", ("feature", "tenant_id", "user_id"))
    for _ in rebuild(first.writer.transactions, rollups):
        pass
    marks = [cutoff.instant + timedelta(minutes=15 * quarters) for quarters in range(-397, 200, 31)]
    ranges = [
        (since, until) for since in [None, *marks] for until in [*marks, None] if None in (since, until) or since < until
    ]
    with Session(first.engine) as session:
        assert 0 < session.scalar(sa.select(sa.func.count()).select_from(Call)) < len(RECORDS)
        for since, until in ranges:
            if any(end and end.astimezone(zone).time() == time.min for end in (since, until)):
                continue  # a day, and what is kept of those are the old zone's
            there = Counter(
                record.model or record.requested_model
                for record in RECORDS
                if (since is None or since <= record.occurred_at) and (until is None or record.occurred_at < until)
            )
            for dimensions in ((), ("model",)):
                found = queries.pivot(session, Filter(scope={}, since=since, until=until), dimensions, zone=zone)
                assert sum(row.calls for row in found) == sum(there.values()), (since, until, dimensions)
            assert {row.key: row.calls for row in found} == there
    first.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(ZONES),
    st.sampled_from(ZONES),
    filters(),
    st.sampled_from(["model", *map("tag:{}".format, VALUES)]),
    st.sampled_from([None, ["chat", "t0", "1", "gpt-4o"], ["nightly", "digest", None]]),
)
def test_values_and_their_days_at_one_look(
    ledgers_of_zones: dict[str, Kept], zone: str, asked_in: str, flt: Filter, dimension: str, values: list[str | None] | None
) -> None:
    """What each value came to, and cost on each day, is what is said where one asks for either by itself."""
    with Session(ledgers_of_zones[zone].engine) as session:
        found, days = queries.by_day(session, flt, dimension, zone=ZoneInfo(asked_in), only=values)
        only = {} if values is None else {dimension: values}
        assert found == {row.key: row for row in queries.pivot(session, flt, (dimension,), only=only)}
        by_day = queries.costs(session, flt, (dimension, "day"), zone=ZoneInfo(asked_in), only=only)
        assert {(value, day): cost for value, of in days.items() for day, cost in of.items()} == {
            keys: row.cost or Decimal(0) for keys, row in by_day.items()
        }


def test_calls_with_two_tags_are_looked_for_by_the_rarer() -> None:
    """A tag that nearly every call has anew comes first, else the scope's; never one that calls must lack."""
    flt = Filter(scope={"tenant_id": "t1"}, tags={"feature": None, "user_id": "7"})
    assert flt.a_tag(()) == ("tenant_id", "t1")
    assert flt.a_tag({"feature", "user_id"}) == ("user_id", "7")
    assert Filter(scope={}, tags={"feature": None}).a_tag({"feature"}) is None
