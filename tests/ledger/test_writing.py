"""Records get into the database exactly once, whatever happens on the way."""

from __future__ import annotations

import random
import sys
import threading
import time
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from databases import Server
from ledger_calls import NOON, PRICE, LedgerMaker, a_call, calls, price, total_of
from sqlalchemy.orm import Session

from flask_llm_cost.config import Config
from flask_llm_cost.errors import LedgerError, SchemaMissingError
from flask_llm_cost.ledger.change import Change
from flask_llm_cost.ledger.engine import OwnEngine
from flask_llm_cost.ledger.models import Base, Call, PriceSnapshot
from flask_llm_cost.ledger.writer import HELD_SECONDS, SMALLEST, Writer
from flask_llm_cost.pricing import PriceBook
from flask_llm_cost.recorder import Recorder
from flask_llm_cost.records import CallRecord, Usage, content_id, new_call_id, settled_call_id


def test_a_record_is_kept_with_all_it_says(make_ledger: LedgerMaker) -> None:
    """Every field of a record, its lines, its tags and its price come back from the database as they went in."""
    ledger = make_ledger()
    record = a_call(
        stream=True,
        attempt=2,
        first_token_ms=90,
        pricing_mode="batch",
        usage=Usage({"input": 1000, "output": 20}, "stream_final", 5, 1020, flags=("a", "b"), raw={"n": {"x": [1, "y"]}}),
        tags={"tenant_id": "Acmé", "feature": "chat"},
    )
    ledger.append(record)
    assert ledger.flush(10)
    with ledger.session() as session:
        call = session.scalars(sa.select(Call)).one()
        assert call.id == record.id
        assert call.occurred_at == NOON
        assert (call.provider, call.model, call.requested_model) == ("openai", "gpt-4o-2024-08-06", "gpt-4o")
        assert (call.host, call.operation, call.stream, call.attempt) == ("api.openai.com", "chat.completions", True, 2)
        assert (call.outcome, call.http_status, call.usage_source) == ("ok", 200, "stream_final")
        assert (call.input_tokens, call.output_tokens, call.reasoning_tokens, call.total_tokens) == (1000, 20, 5, 1020)
        assert (call.latency_ms, call.first_token_ms, call.pricing_mode) == (812, 90, "batch")
        assert (call.cost_status, call.total_cost, call.currency) == ("priced", Decimal("0.0027"), "USD")
        assert (call.flags, call.raw_usage, call.provider_response_id) == ("a,b", {"n": {"x": [1, "y"]}}, "chatcmpl-123")
        assert {tag.key: tag.value for tag in call.tags} == {"tenant_id": "Acmé", "feature": "chat"}
        lines = [(line.component, line.quantity, line.rate, line.cost) for line in call.line_items]
        assert lines == [("input", 1000, Decimal("2.5"), Decimal("0.0025")), ("output", 20, 10, Decimal("0.0002"))]
        assert call.price is not None
        assert (call.price.id, call.price.rates["input"]) == (PRICE.id, ["2.50", "1000000"])


def test_what_is_unknown_is_null(make_ledger: LedgerMaker) -> None:
    """A call without usage and price has null cost and null tokens, never 0."""
    ledger = make_ledger()
    ledger.append(a_call(usage=Usage(), model=None))
    assert ledger.flush(10)
    with ledger.session() as session:
        call = session.scalars(sa.select(Call)).one()
        assert (call.total_cost, call.input_tokens, call.total_tokens, call.model) == (None, None, None, None)
        assert (call.cost_status, call.usage_source) == ("unpriced", "unknown")
        # Null in SQL, not JSON's null.
        assert session.scalar(sa.select(sa.func.count()).where(Call.raw_usage.is_(None))) == 1


@pytest.mark.parametrize("number", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_costs_add_up_to_the_last_digit(make_ledger: LedgerMaker, number: int) -> None:
    """The database's sum over thousands of calls is the exact Decimal sum, and so are its quantities."""
    records = calls(number)
    ledger = make_ledger()
    for record in records:
        ledger.append(record)
    assert ledger.flush(60)
    count, items, tags, total = make_ledger.stored()
    assert (count, items, tags) == (number, 2 * number, 3 * number)
    assert total == total_of(records)
    assert len(make_ledger.committed) == number


def test_tiny_and_large_amounts_are_exact(make_ledger: LedgerMaker) -> None:
    """5e-9 dollars and a million dollars are kept exactly, and 0.1 three times is 0.3."""
    amounts = [Decimal("0.000000005"), Decimal("1000000"), *[Decimal("0.1")] * 3]
    ledger = make_ledger()
    for amount in amounts:
        priced = price(a_call())
        assert priced.cost is not None
        ledger.append(replace(priced, cost=replace(priced.cost, total=amount)))
    assert ledger.flush(10)
    assert make_ledger.stored()[3] == Decimal("1000000.300000005")
    with ledger.session() as session:
        query = sa.select(sa.func.count()).where(Call.total_cost <= Decimal("0.1"), Call.total_cost > Decimal("0.000000004"))
        assert session.scalar(query) == 4


def test_names_that_differ_in_case_and_accent_stay_apart(make_ledger: LedgerMaker) -> None:
    """acme, Acme and acmé are three tenants, on MariaDB too."""
    ledger = make_ledger()
    for name in ("acme", "Acme", "acmé", "acme"):
        ledger.append(a_call(tags={"tenant_id": name}))
    assert ledger.flush(10)
    with ledger.session() as session:
        query = sa.text("SELECT value, count(*) FROM llm_cost_call_tags GROUP BY value")
        assert sorted(map(tuple, session.execute(query))) == [("Acme", 1), ("acme", 2), ("acmé", 1)]


def test_a_record_delivered_again_changes_nothing(make_ledger: LedgerMaker) -> None:
    """The same record appended, committed and appended again is one row; nobody is told twice."""
    ledger = make_ledger()
    records = calls(20)
    for _ in range(3):
        for record in random.sample(records, len(records)):
            ledger.append(record)
        assert ledger.flush(10)
    assert make_ledger.stored() == (20, 40, 60, total_of(records))
    assert len(make_ledger.committed) == 20
    assert ledger.health().duplicates == 40


def test_threads_that_deliver_the_same_batches_write_each_call_once(make_ledger: LedgerMaker) -> None:
    """Eight writers at once, each with most of the same records in another order: each call is there once."""
    records = [price(record) for record in calls(400)]
    fresh: list[CallRecord] = []
    failures: list[BaseException] = []

    def deliver(seed: int) -> None:
        rng = random.Random(seed)
        writer = Writer(own, busy_ms=2000)
        try:
            for _ in range(4):
                fresh.extend(writer.write(rng.sample(records, 200)).fresh)
            fresh.extend(writer.write(records).fresh)
        except BaseException as error:
            failures.append(error)

    own = OwnEngine(lambda: make_ledger.engine)
    threads = [threading.Thread(target=deliver, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    own.dispose()
    assert not failures
    assert make_ledger.stored() == (400, 800, 1200, total_of(records))
    assert sorted(record.id for record in fresh) == sorted(record.id for record in records)


def test_what_moves_with_the_rows_moves_once(make_ledger: LedgerMaker) -> None:
    """A step inside the transaction that fails takes the rows back with it; tried again, both are there once."""
    table = sa.Table("moved", sa.MetaData(), sa.Column("calls", sa.Integer))
    table.create(make_ledger.engine)
    failing = [True]

    def step(connection: sa.Connection, change: Any) -> None:
        connection.execute(table.insert().values(calls=len(change.added)))
        if failing.pop() if failing else False:
            raise sa.exc.OperationalError("", {}, Exception())

    own = OwnEngine(lambda: make_ledger.engine)
    writer = Writer(own, [step])
    records = calls(3)
    with pytest.raises(Exception, match=r"^Exception$"):
        writer.write(records)
    assert make_ledger.stored()[0] == 0
    writer.write(records)
    writer.write(records)
    own.dispose()
    with make_ledger.engine.connect() as connection:
        assert connection.execute(sa.select(table.c.calls)).scalars().all() == [3]
    table.drop(make_ledger.engine)


def test_a_backlog_keeps_nobody_waiting_for_long(make_ledger: LedgerMaker, database_url: sa.URL) -> None:
    """On SQLite, where one writes at a time, batches shrink until the app's own writes get their turn, and all calls get in;
    on a server, whose locks are of rows, they are whole."""
    make_ledger()
    batches: list[int] = []

    def slow(connection: sa.Connection, change: Change) -> None:
        batches.append(len(change.added))
        time.sleep(len(change.added) / 1000)

    engine = sa.create_engine(database_url)
    own = OwnEngine(lambda: engine)
    writer = Writer(own, [slow])
    written = writer.write([price(record) for record in calls(700)])
    own.dispose()
    engine.dispose()
    assert (len(written.fresh), sum(batches)) == (700, 700)
    if engine.dialect.name == "sqlite":
        assert max(batches[1:]) <= HELD_SECONDS * 1000
        assert min(batches[1:-1]) >= SMALLEST
    else:
        assert batches[1] == 500


def test_a_price_that_was_used_before_is_one_row(make_ledger: LedgerMaker) -> None:
    """Equal prices are one snapshot, however many calls and batches they priced."""
    ledger = make_ledger()
    for record in calls(5):
        ledger.append(record)
        assert ledger.flush(10)
    with ledger.session() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(PriceSnapshot)) == 1


def test_an_id_made_from_any_content_is_one_on_every_database(make_ledger: LedgerMaker) -> None:
    """MariaDB refuses a ninth byte of 0x80, which one hash in 64 would give: calls of such a price would be set aside."""
    ids = [content_id(bytes([byte] * 16)) for byte in range(256)]
    records = [price(record) for record in calls(256)]
    ledger = make_ledger()
    for record, price_id in zip(records, ids, strict=True):
        assert record.cost is not None
        ledger.append(replace(record, cost=replace(record.cost, price=replace(PRICE, id=price_id))))
    assert ledger.flush(30)
    assert make_ledger.stored()[0] == 256
    with ledger.session() as session:
        assert set(session.scalars(sa.select(PriceSnapshot.id))) == set(ids)


def test_strings_that_a_database_refuses_are_repaired(make_ledger: LedgerMaker) -> None:
    """NUL, half a surrogate pair and far too long names are repaired or cut, and the call is kept."""
    ledger = make_ledger()
    ledger.append(
        a_call(
            model="m" * 999,
            provider_response_id="id\0\ud800",
            tags={"k" * 99: "v" * 999, "zero": "a\0b ", "half": "\udfff"},
            usage=Usage({"input": 1}, "response", raw={"x": "\0\ud800", "nan": float("nan"), "deep": [[[[[[[[[[1]]]]]]]]]]}),
        )
    )
    assert ledger.flush(10)
    with ledger.session() as session:
        call = session.scalars(sa.select(Call)).one()
        assert call.model == "m" * 256
        assert call.provider_response_id == "id?"
        assert {tag.key: tag.value for tag in call.tags} == {"k" * 64: "v" * 256, "zero": "ab", "half": "?"}
    assert ledger.health().quarantined == 0


def test_one_poison_record_is_set_aside_alone(make_ledger: LedgerMaker, caplog: pytest.LogCaptureFixture) -> None:
    """A record that the database refuses is set aside in a file and counted; its neighbours are kept."""
    ledger = make_ledger()
    good = calls(30)
    poison = a_call(latency_ms=10**25, tags={"secret": "MARKER"})
    for record in [*good[:15], poison, *good[15:]]:
        ledger.append(record)
    assert ledger.flush(20)
    assert make_ledger.stored() == (30, 60, 90, total_of(good))
    assert ledger.health().quarantined == 1
    assert ledger.health().waiting == 0
    assert "set aside" in caplog.text
    assert "MARKER" not in caplog.text


def test_the_database_goes_away_and_comes_back(
    make_ledger: LedgerMaker, database_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """While the database is down records wait, counted and told of without content; then all are there, once."""
    ledger = make_ledger()
    first, second = calls(10, seed=1), calls(15, seed=2)
    for record in first:
        ledger.append(record)
    assert ledger.flush(10)
    make_ledger.engine.dispose()
    with database_server.down(make_ledger.url):
        for record in second:
            ledger.append(record)
        assert not ledger.flush(1.0)
        health = ledger.health()
        assert health.waiting == 15
        assert health.last_error_class is not None
    assert ledger.flush(20)
    assert make_ledger.stored()[0] == 25
    assert make_ledger.failed
    assert make_ledger.failed[0][1] == 15
    assert ledger.health().waiting == 0
    assert "acme" not in caplog.text


def test_no_tables_yet(database_url: sa.URL, tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Without tables records wait and the log names the command, once; once there are tables, they are written."""
    maker = LedgerMaker(database_url, tmp_path)
    ledger = maker()
    try:
        for record in (records := calls(12)):
            ledger.append(record)
        assert not ledger.flush(1.0)
        assert ledger.health().schema_missing
        assert ledger.health().waiting == 12
        with pytest.raises(SchemaMissingError, match="flask db upgrade"), ledger.session() as session:
            session.scalars(sa.select(Call)).all()
        maker.create_tables()
        assert ledger.flush(20)
        assert maker.stored() == (12, 24, 36, total_of(records))
        assert not ledger.health().schema_missing
        assert caplog.text.count("flask db upgrade") == 1
    finally:
        maker.close()


def test_a_price_that_fails_loses_no_call(make_ledger: LedgerMaker, caplog: pytest.LogCaptureFixture) -> None:
    """When pricing raises, calls are kept unpriced with their quantities, to be priced later, and the log says so once."""

    def broken() -> PriceBook:
        raise ZeroDivisionError("MARKER")

    recorder: Recorder
    ledger = make_ledger(price=lambda record: recorder.price(record))
    recorder = Recorder(Config.from_mapping({}), broken, ledger, lambda signal, record: None)
    for record in calls(3):
        recorder.record(record)
    recorder.record(a_call(id=(last := new_call_id())))
    assert ledger.flush(10)
    with ledger.session() as session:
        assert session.scalar(sa.select(sa.func.count()).where(Call.cost_status == "unpriced")) == 4
        call = session.scalars(sa.select(Call).where(Call.id == last)).one()
        assert (call.cost_status, call.total_cost) == ("unpriced", None)
        assert [(line.component, line.quantity, line.cost) for line in call.line_items] == [
            ("input", 1000, None),
            ("output", 20, None),
        ]
    assert "MARKER" not in caplog.text
    assert caplog.text.count("pricing a call failed with ZeroDivisionError") == 1


def test_a_real_record_takes_the_place_of_an_interrupted_one(make_ledger: LedgerMaker) -> None:
    """Where a process was taken for dead and its call ended after all, the real call is what stays."""
    own = OwnEngine(lambda: make_ledger.engine)
    writer = Writer(own)
    record = a_call(id=new_call_id())
    interrupted = replace(record, outcome="interrupted", usage=Usage())
    assert len(writer.write([interrupted]).fresh) == 1
    assert len(writer.write([interrupted]).fresh) == 0
    assert len(writer.write([price(record)]).fresh) == 1
    assert len(writer.write([interrupted]).fresh) == 0
    own.dispose()
    assert make_ledger.stored() == (1, 2, 3, Decimal("0.0027"))


def test_a_pending_call_is_settled_once_and_stays_its_makers(make_ledger: LedgerMaker) -> None:
    """A queued call waits without a cost; whoever reads how it ended settles it, once, under its maker's time and tags."""
    own = OwnEngine(lambda: make_ledger.engine)
    writer = Writer(own)
    call_id = settled_call_id("openai", "resp_1", NOON)
    assert call_id == settled_call_id("openai", "resp_1", NOON)
    made = a_call(id=call_id, usage=Usage(source="pending"), tags={"feature": "made"})
    read = price(
        a_call(id=call_id, occurred_at=NOON + timedelta(hours=1), operation="responses.get", tags={"feature": "read"})
    )
    assert len(writer.write([made]).fresh) == 1
    assert len(writer.write([made]).fresh) == 0
    assert len(writer.write([read]).fresh) == 1
    assert len(writer.write([read]).fresh) == 0
    assert len(writer.write([made]).fresh) == 0
    own.dispose()
    assert make_ledger.stored() == (1, 2, 1, Decimal("0.0027"))
    with Session(make_ledger.engine) as session:
        call = session.scalars(sa.select(Call)).one()
        assert (call.occurred_at, call.operation, call.tags[0].value) == (NOON, "chat.completions", "made")
        assert (call.usage_source, call.total_cost) == ("response", Decimal("0.0027"))


def test_inline_is_committed_when_it_returns(make_ledger: LedgerMaker) -> None:
    """With inline writes the call is in the database when append returns."""
    ledger = make_ledger(write_mode="inline")
    ledger.append(a_call())
    assert make_ledger.stored() == (1, 2, 3, Decimal("0.0027"))
    assert len(make_ledger.committed) == 1
    assert not make_ledger.spool_files


def test_where_threads_stand_still_none_is_left_to_one(make_ledger: LedgerMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a uWSGI without threads a call is committed when it returns; what waits is by the next one, a flush, or the end."""
    monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(has_threads=0))
    before = set(threading.enumerate())
    ledger = make_ledger()
    ledger.append(a_call(), quick=True)
    assert make_ledger.stored()[0] == 0
    ledger.append(a_call())
    assert make_ledger.stored()[0] == 2
    ledger.append(a_call(), quick=True)
    assert ledger.flush(30)
    assert make_ledger.stored()[0] == 3
    ledger.append(a_call(), quick=True)
    ledger.close(30)
    assert make_ledger.stored()[0] == 4
    assert set(threading.enumerate()) == before


def test_inline_failures_raise_only_where_asked(make_ledger: LedgerMaker, caplog: pytest.LogCaptureFixture) -> None:
    """Inline without tables: ``warn`` logs, ``ignore`` is silent, ``raise`` raises; the record waits in every case."""
    Base.metadata.drop_all(make_ledger.engine)
    make_ledger(write_mode="inline", write_errors="ignore").append(a_call())
    make_ledger(write_mode="inline").append(a_call())
    with pytest.raises(LedgerError, match="flask db upgrade"):
        make_ledger(write_mode="inline", write_errors="raise").append(a_call())
    make_ledger.create_tables()
    for ledger in make_ledger.ledgers:
        assert ledger.flush(10)
    assert make_ledger.stored()[0] == 3


def test_sessions_only_read(make_ledger: LedgerMaker) -> None:
    """A session of the ledger refuses to write by object and by statement, and rolls text back."""
    ledger = make_ledger()
    ledger.append(a_call())
    assert ledger.flush(10)
    with ledger.session() as session:
        session.scalars(sa.select(Call)).one().provider = "x"
        with pytest.raises(LedgerError):
            session.flush()
    with pytest.raises(LedgerError), ledger.session() as session:
        session.execute(sa.delete(Call))
    with ledger.session() as session:
        session.execute(sa.text("DELETE FROM llm_cost_call_tags"))
    assert make_ledger.stored()[:3] == (1, 2, 3)
