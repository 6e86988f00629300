"""What holds for every call and every price."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from flask_llm_cost.pricing import PriceBook
from flask_llm_cost.records import COMPONENTS, Usage

BOOK = PriceBook.load(
    overrides={
        "acme/linear": {
            "rates": {"input": "1.37", "cache_read": "0.013", "output": "7.77"},
            "modes": {"batch": {"input": "0.7", "output": "3"}},
        },
        "acme/hourly": {
            "rates": {"audio_seconds": "0.111"},
            "per": {"audio_seconds": "3600"},
            "minimum": {"audio_seconds": "10"},
        },
    },
    discounts={"acme": Decimal("0.075")},
)
MODELS = sorted(
    (
        *(
            key
            for key in BOOK.keys
            if key.startswith(("openai/", "anthropic/", "gemini/", "deepseek/", "xai/", "groq/", "dashscope/", "acme/"))
        ),
    )
)
NAMES = sorted(set(COMPONENTS) - {"billed_request"})
quantities = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 10**9), min_size=1, max_size=8)
models = st.sampled_from(MODELS).map(lambda key: key.split("/", 1))
modes = st.sampled_from([None, "batch", "flex", "priority", "fast", "residency:eu", "batch+residency:us"])
times = st.integers(0, 3 * 365 * 24).map(lambda hours: datetime(2025, 1, 1, tzinfo=UTC) + timedelta(hours=hours))


def _price(model: list[str], found: dict[str, Any], mode: str | None, at: datetime) -> Any:
    return BOOK.price(model[0], model[1], Usage(found, source="response"), mode, at)


@settings(max_examples=400, deadline=None)
@given(models, quantities, modes, times)
def test_the_lines_are_the_bill(model: list[str], found: dict[str, int], mode: str | None, at: datetime) -> None:
    """The total is the exact sum of the lines that have a price; each is its quantity times its rate."""
    cost = _price(model, found, mode, at)
    priced = [line for line in cost.lines if line.cost is not None]
    if cost.total is not None:
        assert sum((line.cost for line in priced), Decimal(0)) == cost.total
    for line in priced:
        exact = Decimal(line.quantity) * line.rate / line.rate_per
        assert abs(exact - line.cost) <= Decimal("1e-17")
        assert line.cost >= 0
    assert (cost.total is None) == (cost.status == "unpriced")
    assert all(line.quantity > 0 for line in cost.lines)
    assert cost.status != "partial" or any(line.status == "unpriced" for line in cost.lines)


@settings(max_examples=300, deadline=None)
@given(models, quantities, modes, times, st.sampled_from(NAMES), st.integers(1, 10**6))
def test_more_usage_never_costs_less(
    model: list[str], found: dict[str, int], mode: str | None, at: datetime, name: str, more: int
) -> None:
    """Another token never makes a call cheaper, whatever tier it reaches, where both have a whole price."""
    less = _price(model, found, mode, at)
    dearer = _price(model, {**found, name: found.get(name, 0) + more}, mode, at)
    if (
        less.status in ("priced", "free")
        and dearer.status in ("priced", "free")
        and not {"grounded_prompt", "grounding_query"} & {name}
    ):
        assert dearer.total >= less.total


@settings(max_examples=200, deadline=None)
@given(models, quantities, modes, times, st.randoms())
def test_the_order_of_components_is_irrelevant(
    model: list[str], found: dict[str, int], mode: str | None, at: datetime, random: Any
) -> None:
    """The same quantities in another order are the same bill."""
    shuffled = list(found.items())
    random.shuffle(shuffled)
    one, other = _price(model, found, mode, at), _price(model, dict(shuffled), mode, at)
    assert (one.total, one.status) == (other.total, other.status)
    assert sorted(one.lines, key=str) == sorted(other.lines, key=str)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 10**9), st.sampled_from([None, "batch"]))
def test_two_halves_cost_what_the_whole_does(first: int, second: int, mode: str | None) -> None:
    """Where nothing depends on size, splitting a call changes nothing, to the last digit."""
    at = datetime(2026, 11, 18, tzinfo=UTC)

    def total(tokens: int) -> Decimal:
        found = _price(["acme", "linear"], {"input": tokens, "output": 3 * tokens}, mode, at).total
        assert isinstance(found, Decimal)
        return found

    assert total(first) + total(second) == total(first + second)


@settings(max_examples=200, deadline=None)
@given(models, quantities, times)
def test_the_same_question_has_the_same_answer(model: list[str], found: dict[str, int], at: datetime) -> None:
    """A book that has worked a price out before gives what a fresh one gives."""
    assert _price(model, found, None, at) == FRESH.price(model[0], model[1], Usage(found, source="response"), None, at)
    FRESH._routes.clear()


FRESH = PriceBook.load(
    overrides={
        "acme/linear": {
            "rates": {"input": "1.37", "cache_read": "0.013", "output": "7.77"},
            "modes": {"batch": {"input": "0.7", "output": "3"}},
        },
        "acme/hourly": {
            "rates": {"audio_seconds": "0.111"},
            "per": {"audio_seconds": "3600"},
            "minimum": {"audio_seconds": "10"},
        },
    },
    discounts={"acme": Decimal("0.075")},
)
