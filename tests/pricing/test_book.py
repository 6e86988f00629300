"""What the book says of odd calls, of billed amounts, of discounts, and of itself."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from flask_llm_cost.errors import ConfigError, PriceBookError
from flask_llm_cost.pricing import PriceBook
from flask_llm_cost.records import COMPONENTS, UNKNOWN_USAGE, UNPRICED, Usage

NOW = datetime(2026, 11, 18, 12, tzinfo=UTC)


def _usage(**quantities: Any) -> Usage:
    return Usage(quantities, source="response")


def test_unknown_usage_has_no_price(book: PriceBook) -> None:
    """What was not counted costs None, never 0."""
    assert book.price("openai", "gpt-4o", UNKNOWN_USAGE, None, NOW) is UNPRICED


def test_nothing_of_a_known_model_costs_nothing(book: PriceBook) -> None:
    """A known usage of zero tokens is priced at 0 and has no lines; of an unknown model it is not."""
    cost = book.price("openai", "gpt-4o", _usage(input=0, output=0), None, NOW)
    assert (cost.total, cost.status, cost.lines) == (0, "priced", ())
    unknown = book.price("openai", "gpt-none", _usage(input=0, output=0), None, NOW)
    assert (unknown.total, unknown.status) == (None, "unpriced")


def test_an_unpriced_call_keeps_its_quantities(book: PriceBook) -> None:
    """Each component of an unknown model has a line without a rate, so that it can be priced later."""
    cost = book.price("nobody", "gpt-none", _usage(input=3, output=4), None, NOW)
    assert (cost.total, cost.status, cost.price) == (None, "unpriced", None)
    assert [(line.component, line.quantity, line.rate, line.cost, line.status) for line in cost.lines] == [
        ("input", 3, None, None, "unpriced"),
        ("output", 4, None, None, "unpriced"),
    ]


def test_a_free_line_alone_does_not_make_a_bound(book: PriceBook) -> None:
    """Where only what is free has a price, the total is unknown, not 0."""
    cost = book.price("anthropic", "claude-sonnet-4-6", _usage(web_fetch=2, audio_input=5), None, NOW)
    assert (cost.total, cost.status) == (None, "unpriced")


def test_the_provider_s_own_bill_wins(book: PriceBook) -> None:
    """It is one line and the total; the book's own figure stands beside it."""
    usage = replace(_usage(input=1000, output=500), billed=Decimal("0.0042"))
    cost = book.price("openrouter", "openai/gpt-4o", usage, None, NOW)
    (line,) = cost.lines
    assert (line.component, line.quantity, line.rate, line.rate_per, line.cost) == (
        "billed_request",
        1,
        Decimal("0.0042"),
        1,
        Decimal("0.0042"),
    )
    assert (cost.total, cost.status, cost.computed) == (Decimal("0.0042"), "priced", Decimal("0.0075"))
    assert cost.price is not None
    assert cost.price.source == "provider"


def test_a_bill_needs_no_price_and_no_usage(book: PriceBook) -> None:
    """A billed amount of an unknown model is its cost; a part of the book's figure is no figure."""
    cost = book.price("openrouter", "openrouter/auto", Usage(billed=Decimal("0.01")), None, NOW)
    assert (cost.total, cost.computed) == (Decimal("0.01"), None)
    partial = replace(_usage(input=1000, audio_input=500), billed=Decimal("0.01"))
    assert book.price("openai", "gpt-4o", partial, None, NOW).computed is None
    nothing = book.price("openrouter", "x/y:free", Usage(billed=Decimal(0)), None, NOW)
    assert (nothing.total, nothing.status) == (0, "free")


@pytest.mark.parametrize("billed", [Decimal("-1"), Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity"), 0.5, "1"])
def test_a_bill_that_is_no_amount_is_passed_over(book: PriceBook, billed: Any) -> None:
    """The book's own price stands then."""
    cost = book.price("openai", "gpt-4o", replace(_usage(input=1_000_000), billed=billed), None, NOW)
    assert cost.total == Decimal("2.5")


def test_a_discount_is_a_factor_that_shows(book: PriceBook) -> None:
    """It is in every rate and named in the price; tools too."""
    cheap = PriceBook.load(discounts={"anthropic": Decimal("0.15")})
    usage = _usage(input=1_000_000, web_search=1000)
    cost = cheap.price("anthropic", "claude-sonnet-4-6", usage, None, NOW)
    assert [line.rate for line in cost.lines] == [Decimal("2.55"), Decimal("8.5")]
    assert cost.price is not None
    assert cost.price.discount == Decimal("0.15")
    full = book.price("anthropic", "claude-sonnet-4-6", usage, None, NOW)
    assert full.price is not None
    assert (full.total, full.price.discount) == (13, 0)
    assert full.price.id != cost.price.id


@pytest.mark.parametrize("discount", ["1", "1.5", "-0.1", "NaN", "a lot"])
def test_a_discount_that_makes_no_sense_stops_the_start(discount: str) -> None:
    """All of the price off, or more, is a slip: 15 for 0.15."""
    with pytest.raises((ConfigError, PriceBookError), match="LLM_COST_DISCOUNTS"):
        PriceBook.load(discounts={"azure": discount})  # type: ignore[dict-item]  # what a configuration may hold


def test_a_price_s_id_is_made_from_its_content(book: PriceBook) -> None:
    """Equal prices have one id in every process; any difference makes another."""
    again = PriceBook.load()
    usage = _usage(input=1)

    def price_id(which: PriceBook, model: str, mode: str | None = None, at: datetime = NOW) -> object:
        cost = which.price("openai", model, usage, mode, at)
        assert cost.price is not None
        return cost.price.id

    assert price_id(book, "gpt-5.4") == price_id(again, "gpt-5.4")
    ids = {
        price_id(book, "gpt-5.4"),
        price_id(book, "gpt-5.4", "batch"),
        price_id(book, "gpt-5.4", "residency:eu"),
        price_id(book, "gpt-5.5"),
        price_id(book, "gpt-5.6-sol"),
        price_id(book, "gpt-5.6-sol", None, datetime(2026, 8, 1, tzinfo=UTC)),
    }
    assert len(ids) == 6
    code = """
from datetime import UTC, datetime
from flask_llm_cost.pricing import PriceBook
from flask_llm_cost.records import Usage
cost = PriceBook.load().price("openai", "gpt-5.4", Usage({"input": 1}), None, datetime(2026, 11, 18, tzinfo=UTC))
print(cost.price.id)
"""
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == str(price_id(book, "gpt-5.4"))


def test_a_price_says_enough_to_bill_again(book: PriceBook) -> None:
    """Every line's rate is in the price, factor and discount included, with what it is per."""
    cost = PriceBook.load(discounts={"openai": Decimal("0.1")}).price(
        "openai", "gpt-5.6-sol", _usage(input=300_000, cache_write=10, output=7, web_search=2), "batch+residency:eu", NOW
    )
    assert cost.price is not None
    assert (cost.price.mode, cost.price.tier, cost.price.multiplier) == ("batch+residency:eu", ">272000", Decimal("1.1"))
    for line in cost.lines:
        rate = cost.price.rates[line.component]
        assert (line.rate, line.rate_per) == (rate.rate, rate.per)
        assert line.cost == line.quantity * rate.rate / rate.per
    assert cost.price.source_version.startswith(book.version)


def test_prices_know_since_when_they_hold(book: PriceBook) -> None:
    """The date of a dated block is in the price; a first price has none."""
    cost = book.price("openai", "gpt-5.6-sol", _usage(input=1), None, NOW)
    assert cost.price is not None
    assert cost.price.effective_from == datetime(2026, 8, 21, tzinfo=UTC)
    first = book.price("openai", "gpt-5.6-sol", _usage(input=1), None, datetime(2026, 8, 1, tzinfo=UTC))
    assert first.price is not None
    assert first.price.effective_from is None


def test_reasoning_that_is_priced_apart_leaves_the_output() -> None:
    """A count of reasoning inside the output is split off only where the entry has a rate for it."""
    book = PriceBook.load(
        overrides={"acme/r": {"input": "1", "output": "2", "reasoning": "10"}, "acme/p": {"input": "1", "output": "2"}}
    )
    usage = replace(_usage(input=10, output=100), reasoning_tokens=60)
    apart = book.price("acme", "r", usage, None, NOW)
    assert [(line.component, line.quantity) for line in apart.lines] == [("input", 10), ("output", 40), ("reasoning", 60)]
    together = book.price("acme", "p", usage, None, NOW)
    assert [(line.component, line.quantity) for line in together.lines] == [("input", 10), ("output", 100)]


def test_searches_counted_twice_are_billed_once(book: PriceBook) -> None:
    """A reader may count prompts and queries; the model is billed by the one that it has a price for."""
    both = _usage(input=1, grounded_prompt=1, grounding_query=4)
    by_prompt = book.price("gemini", "gemini-2.5-flash", both, None, NOW)
    by_query = book.price("gemini", "gemini-3.8-flash", both, None, NOW)
    assert [line.component for line in by_prompt.lines] == ["input", "grounded_prompt"]
    assert [line.component for line in by_query.lines] == ["input", "grounding_query"]
    assert (by_prompt.status, by_query.status) == ("priced", "priced")


def test_a_short_clip_is_billed_as_the_least(book: PriceBook) -> None:
    """Groq bills ten seconds for three; the line says ten. Its hourly rate by the second is kept to 18 places."""
    cost = book.price("groq", "whisper-large-v3", _usage(audio_seconds=3), None, NOW)
    assert [(line.quantity, line.cost) for line in cost.lines] == [(10, Decimal("0.000308333333333333"))]
    assert book.price("groq", "whisper-large-v3", _usage(audio_seconds=0), None, NOW).total == 0


@pytest.mark.parametrize(
    "model", ["x" * 100_000, "<script>alert(1)</script>", "\x00", "ft:" * 50_000, "-2024-01-01" * 9_000, 7, b"x", []]
)
@pytest.mark.parametrize("provider", ["openai", "bedrock", "azure", "", "p" * 100_000, None, 5])
def test_a_hostile_model_has_no_price_and_does_no_harm(book: PriceBook, provider: Any, model: Any) -> None:
    """Whatever a reply calls its model, pricing returns, at once, and keeps nothing of it."""
    began = time.process_time()
    cost = book.price(provider, model, _usage(input=5), "batch", NOW)
    assert (cost.total, cost.status) == (None, "unpriced")
    billed = book.price(provider, model, Usage({"input": 5}, billed=Decimal(1)), None, NOW)
    assert billed.total == 1
    assert billed.price is not None
    assert len(billed.price.key) <= 321
    assert not book.explain(provider, model, at=NOW).found
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    "mode",
    [
        "scale", "batch+flex", "residency:", "residency:EU", "x" * 100_000, "+", "batch+", 5, ["batch"],
        "+".join("abcdefghijklmnopqrstuvwxyz"), "batch+residency:eu+" * 1000, "+" * 100_000,
    ],
    ids=lambda mode: str(mode)[:24],
)  # fmt: skip
def test_a_mode_that_is_none_has_no_price(book: PriceBook, mode: Any) -> None:
    """Never the standard rate, and no time is spent on the orders in which its parts could be meant."""
    assert book.price("openai", "gpt-5.4", _usage(input=5), mode, NOW).status == "unpriced"


@pytest.mark.parametrize("mode", [None, "", "standard", "default"])
def test_standard_has_several_names(book: PriceBook, mode: str | None) -> None:
    """All of them are the plain rate."""
    assert book.price("openai", "gpt-5.4", _usage(input=1_000_000, output=0), mode, NOW).status == "priced"


@pytest.mark.parametrize(
    "quantity", [-1, 10**30, Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity"), Decimal(-5), "7", [], None, True]
)
@pytest.mark.parametrize("component", ["input", "no_such_thing"])
def test_a_count_that_is_none_is_unpriced(book: PriceBook, component: str, quantity: Any) -> None:
    """The rest of the call keeps its price; the total is a lower bound, and never negative."""
    for model in ("gpt-4o", "gpt-5.4"):
        cost = book.price("openai", model, _usage(**{component: quantity, "output": 1_000_000}), None, NOW)
        assert cost.total is not None
        assert (cost.total > 0, cost.status) == (True, "partial")


def test_a_naive_time_counts_as_utc(book: PriceBook) -> None:
    """And no time at all as now; other zones as what they are."""
    usage = _usage(input=1_000_000)
    peak = datetime(2026, 11, 18, 2)
    assert book.price("deepseek", "deepseek-flash", usage, None, peak).total == Decimal("0.3")
    shanghai = datetime(2026, 11, 18, 10, tzinfo=timezone(timedelta(hours=8)))
    assert book.price("deepseek", "deepseek-flash", usage, None, shanghai).total == Decimal("0.3")
    assert book.price("openai", "gpt-4o", usage, None, None).total == Decimal("2.5")


def test_the_book_forgets_what_it_need_not_know() -> None:
    """A stream of made-up names does not grow it without bound."""
    book = PriceBook.load()
    for i in range(5000):
        book.price("openai", f"made-up-{i}", _usage(input=1), None, NOW)
        book.price("openrouter", f"made-up-{i}", Usage(billed=Decimal(1)), None, NOW)
    assert len(book._routes) <= 4096
    assert len(book._billed) <= 4096


def test_the_book_is_small_and_converts_what_is_asked_for() -> None:
    """Under 5 MB for thousands of entries, none of which is read before its price is asked for.

    How long loading takes is in ``benchmarks/pricing.py``.
    """
    PriceBook.load()
    tracemalloc.start()
    book = PriceBook.load()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert book.entries > 2000
    assert size < 5_000_000
    assert not book._catalogs[0]._entries
    assert book.price("openai", "gpt-4o", _usage(input=1), None, NOW).total is not None
    assert list(book._catalogs[0]._entries) == ["openai/gpt-4o"]


def test_every_component_has_a_unit_on_its_line() -> None:
    """A book that prices every component gives each a line with the unit of the contract."""
    rates = {name: "1" for name in COMPONENTS if name != "billed_request"}
    book = PriceBook.load(overrides={"acme/all": rates})
    cost = book.price("acme", "all", Usage(dict.fromkeys(rates, 1), source="response"), None, NOW)
    billed = {line.component: line for line in cost.lines}
    assert all(billed[name].unit == COMPONENTS[name].unit for name in billed)
    assert all(line.rate_per == (1_000_000 if line.unit == "token" else 1) for line in cost.lines)
    assert cost.status == "priced"
