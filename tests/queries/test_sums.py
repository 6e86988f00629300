"""Sums: exact, complete, never mixed, on every database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from ledger_rows import add_call
from sqlalchemy.orm import Session

from flask_llm_cost.errors import QueryError
from flask_llm_cost.ledger import queries
from flask_llm_cost.ledger.filter import Filter

AT = datetime(2026, 11, 3, 12, tzinfo=UTC)
EVERYTHING = Filter(scope={})


def test_sums_are_exact(session: Session) -> None:
    """Ten thousandths of a cent add up to the last digit that is kept, as no float would."""
    amounts = [f"0.00000000{n:04d}" for n in range(1, 300)]
    for n, amount in enumerate(amounts):
        add_call(session, AT + timedelta(seconds=n), amount)
    total = queries.totals(session, EVERYTHING)
    assert total.cost == sum(map(Decimal, amounts))
    assert (total.calls, total.input_tokens, total.output_tokens) == (299, 299_000, 59_800)
    assert isinstance(total.input_tokens, int)
    assert total.avg_latency_ms == 900


def test_unknown_is_never_zero(session: Session) -> None:
    """Cost is None where there are calls and none has a price, and 0 only where there are no calls."""
    assert queries.totals(session, EVERYTHING).cost == 0
    add_call(session, AT, None, model="new-model")
    assert queries.totals(session, EVERYTHING).cost is None
    add_call(session, AT, "0.25")
    (priced, unpriced) = queries.pivot(session, EVERYTHING, ("model",))
    assert (priced.model, priced.cost) == ("gpt-4o", Decimal("0.25"))
    assert (unpriced["model"], unpriced.cost, unpriced.unpriced_calls) == ("new-model", None, 1)
    assert queries.totals(session, EVERYTHING).cost == Decimal("0.25")


def test_a_refused_call_is_not_a_gap(session: Session) -> None:
    """A call that failed and reported nothing is no unpriced call: nothing is missing from the sum for it."""
    add_call(session, AT, None, outcome="error", usage_source="unknown", http_status=429)
    add_call(session, AT, None, usage_source="unknown")
    assert queries.totals(session, EVERYTHING).unpriced_calls == 1


def test_currencies_are_never_added_up(session: Session) -> None:
    """A sum holds one currency; asking for several at once is refused unless they stay apart."""
    add_call(session, AT, "1")
    add_call(session, AT, "5", currency="EUR")
    assert queries.totals(session, EVERYTHING).cost == 1
    assert queries.totals(session, EVERYTHING.narrowed(currency="EUR")).cost == 5
    mixed = EVERYTHING.narrowed(currency=None)
    with pytest.raises(QueryError, match="currencies do not add up"):
        queries.totals(session, mixed)
    assert {row.currency: row.cost for row in queries.pivot(session, mixed, ("currency",))} == {"USD": 1, "EUR": 5}


def test_a_pivot_over_tags_keeps_the_untagged(session: Session) -> None:
    """Rows of a pivot add up to the total: calls without a tag are a row of their own."""
    add_call(session, AT, "1", tags={"feature": "chat", "tenant_id": "a"})
    add_call(session, AT, "2", tags={"feature": "chat", "tenant_id": "b"})
    add_call(session, AT, "4", tags={"tenant_id": "a"})
    add_call(session, AT, "8", tags={})
    rows = queries.pivot(session, EVERYTHING, ("tag:feature", "tag:tenant_id"))
    assert {(row["tag:feature"], row["tag:tenant_id"]): row.cost for row in rows} == {
        (None, None): 8,
        (None, "a"): 4,
        ("chat", "b"): 2,
        ("chat", "a"): 1,
    }
    assert [row.cost for row in rows] == [8, 4, 2, 1]


def test_strings_are_told_apart_to_the_letter(session: Session) -> None:
    """acme, Acme and acmé are three tenants, on MySQL too."""
    for name in ("acme", "Acme", "acmé"):
        add_call(session, AT, "1", tags={"tenant_id": name})
    assert len(queries.pivot(session, EVERYTHING, ("tag:tenant_id",))) == 3
    assert queries.totals(session, Filter(scope={"tenant_id": "acme"})).calls == 1


def test_the_dearest_values_only(session: Session) -> None:
    """``top`` gives the dearest rows, ``only`` those that were asked for, the untagged among them."""
    for n, name in enumerate(["a", "b", "c", "d"], start=1):
        add_call(session, AT, str(n), tags={"feature": name})
    add_call(session, AT, "0.5")
    add_call(session, AT, None, tags={"feature": "unpriced"})
    assert [row.key for row in queries.pivot(session, EVERYTHING, ("tag:feature",), top=2)] == ["d", "c"]
    assert queries.pivot(session, EVERYTHING, ("tag:feature",), top=9)[-1].key == "unpriced"
    some = queries.pivot(session, EVERYTHING, ("tag:feature",), only={"tag:feature": ["a", None]})
    assert [row.key for row in some] == ["a", None]
    assert queries.count_values(session, EVERYTHING, "tag:feature") == 5


def test_the_model_is_the_billed_one(session: Session) -> None:
    """A call counts under the model it was billed as, and under the requested one only where the reply names none."""
    add_call(session, AT, "1", model="gpt-4o-2026-01-01", requested_model="gpt-4o")
    add_call(session, AT, "2", model=None, requested_model="gpt-4o")
    assert {row.model: row.cost for row in queries.pivot(session, EVERYTHING, ("model",))} == {
        "gpt-4o": 2,
        "gpt-4o-2026-01-01": 1,
    }
    assert queries.totals(session, EVERYTHING.narrowed(model="gpt-4o")).cost == 2


def test_every_filter_filters(session: Session) -> None:
    """Each field of a filter lets through exactly the calls that have it."""
    wanted = {
        "provider": "anthropic",
        "model": "m",
        "operation": "messages",
        "outcome": "interrupted",
        "cost_status": "partial",
        "usage_source": "stream_partial",
        "stream": True,
    }
    add_call(session, AT, "1", tags={"feature": "x", "team": "t"}, **wanted)
    for n, (name, value) in enumerate(wanted.items()):
        others = {**wanted, name: (not value) if isinstance(value, bool) else "other"}
        if name == "model":
            others["requested_model"] = "other"
        add_call(session, AT + timedelta(seconds=n), "100", tags={"feature": "x"}, **others)
        assert queries.totals(session, EVERYTHING.narrowed(**{name: value}, tags={"team": "t"})).cost == 1
    assert queries.totals(session, EVERYTHING.narrowed(**wanted)).cost == 1
    assert queries.totals(session, EVERYTHING.narrowed(tags={"team": None})).calls == 7
    assert queries.totals(session, EVERYTHING.narrowed(tags={"team": "t", "feature": "y"})).calls == 0


def test_a_range_is_half_open(session: Session) -> None:
    """A call at the very start belongs to the range, one at the very end to the next, to the microsecond."""
    for offset in (-1, 0, 1):
        add_call(session, AT + timedelta(microseconds=offset), "1", tags={"feature": "x"})
    before, after = EVERYTHING.narrowed(until=AT), EVERYTHING.narrowed(since=AT)
    assert queries.totals(session, before).calls == 1
    assert queries.totals(session, after).calls == 2
    assert queries.totals(session, after.narrowed(tags={"feature": "x"})).calls == 2


def test_completeness_adds_up(session: Session) -> None:
    """Every call is in exactly one part, and what interrupted and failed calls cost is known apart."""
    add_call(session, AT, "1")
    add_call(session, AT, "0", cost_status="free")
    add_call(session, AT, "2", cost_status="partial")
    add_call(session, AT, "4", outcome="interrupted", usage_source="stream_partial")
    add_call(session, AT, None)
    add_call(session, AT, None, usage_source="unknown")
    add_call(session, AT, None, outcome="error", usage_source="unknown")
    add_call(session, AT, None, outcome="blocked", usage_source="unknown")
    found = queries.completeness(session, EVERYTHING)
    assert (found.priced, found.partial, found.unpriced, found.uncounted, found.failed) == (3, 1, 1, 1, 2)
    assert found.calls == found.priced + found.partial + found.unpriced + found.uncounted + found.failed == 8
    assert found.expected == 6
    assert found.estimated == 1
    assert (found.wasted, found.wasted_calls) == (4, 2)


def test_unpriced_models_are_named(session: Session) -> None:
    """Models without a price come with their calls, most first; calls without usage are not blamed on a model."""
    for _ in range(3):
        add_call(session, AT, None, provider="groq", model="llama-9")
    add_call(session, AT, "1", provider="openai", model="gpt-9", cost_status="partial")
    add_call(session, AT, None, provider="openai", model="gpt-4o", usage_source="unknown")
    assert [(m.provider, m.model, m.calls, m.partial) for m in queries.unpriced_models(session, EVERYTHING)] == [
        ("groq", "llama-9", 3, 0),
        ("openai", "gpt-9", 1, 1),
    ]


@pytest.mark.parametrize("name", ["modle", "tag:", "tag:A", "tag:a b", "raw_usage", "k0", "1; DROP TABLE llm_cost_calls"])
def test_only_known_dimensions(session: Session, name: str) -> None:
    """What spend cannot be grouped by is refused with the choices, and never reaches the SQL."""
    with pytest.raises(QueryError, match="known are: provider"):
        queries.pivot(session, EVERYTHING, (name,))


def test_a_scope_cannot_be_forgotten_or_left() -> None:
    """A filter without a scope cannot be made, and nothing derived from one has another."""
    with pytest.raises(TypeError, match="scope"):
        Filter()  # type: ignore[call-arg]
    mine = Filter(scope={"tenant_id": "a"})
    with pytest.raises(QueryError, match="scope"):
        mine.narrowed(scope={})
    assert mine.narrowed(tags={"tenant_id": "b"}, model="x").scope == {"tenant_id": "a"}


def test_a_tag_filter_never_replaces_the_scope(session: Session) -> None:
    """Asking for somebody else's tag inside a scope finds nothing, rather than somebody else's calls."""
    add_call(session, AT, "1", tags={"tenant_id": "a"})
    add_call(session, AT, "2", tags={"tenant_id": "b"})
    mine = Filter(scope={"tenant_id": "a"})
    assert queries.totals(session, mine).cost == 1
    assert queries.totals(session, mine.narrowed(tags={"tenant_id": "b"})).calls == 0
    assert queries.totals(session, mine.narrowed(tags={"tenant_id": None})).calls == 0


def test_a_naive_time_is_refused() -> None:
    """A time without a zone is no instant."""
    with pytest.raises(QueryError, match="time zone"):
        Filter(scope={}, since=datetime(2026, 11, 1))
