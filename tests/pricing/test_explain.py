"""What ``flask llm-cost prices explain`` prints."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from flask_llm_cost.pricing import PriceBook
from flask_llm_cost.records import Usage

NOW = datetime(2026, 11, 18, 12, tzinfo=UTC)


def test_it_says_source_key_rule_rates_and_arithmetic(book: PriceBook) -> None:
    """All that a person needs to work the bill out again by hand."""
    usage = Usage({"input": 300_000, "cache_read": 5_000, "output": 2_000, "web_search": 3}, source="response")
    text = str(book.explain("openai", "gpt-5.6-sol-2026-07-01", mode="batch+residency:eu", at=NOW, usage=usage))
    for part in (
        "openai/gpt-5.6-sol-2026-07-01",
        f"bundled {book.version}, from litellm ",
        "key       openai/gpt-5.6-sol",
        "rule      date_suffix:",
        "mode      batch+residency:eu",
        ">272000 input tokens",
        "1.1 for region or speed",
        "since 2026-08-21",
        "changes   2026-08-21",
        "300000 x 4.4 / 1,000,000 = 1.32, priced",
        "5000 x 0.44 / 1,000,000 = 0.0022, priced",
        "2000 x 16.5 / 1,000,000 = 0.033, priced",
        "3 x 10 / 1,000 = 0.03, priced",
        "total                    1.3852 USD, priced",
    ):
        assert part in text, text


def test_it_says_the_factors() -> None:
    """Discount and alias are named, and a price to come is."""
    book = PriceBook.load(discounts={"acme": Decimal("0.15")}, aliases={"acme/*": "gemini/*"})
    text = str(book.explain("acme", "gemini-3.8-flash", at=NOW))
    assert "15% by LLM_COST_DISCOUNTS" in text
    assert "LLM_COST_MODEL_ALIASES['acme/*']" in text
    assert "2027-01-01 (ahead)" in text
    assert "arithmetic" not in text


def test_it_says_why_a_mode_has_no_price(book: PriceBook) -> None:
    """Not offered, not in the book, or no mode at all."""
    usage = Usage({"input": 300_000}, source="response")
    above = book.explain("openai", "gpt-5.4", mode="priority", at=NOW, usage=usage)
    assert "priority is not offered for this model" in str(above)
    assert "300000 x ? = unpriced" in str(above)
    assert "no flex rates" in str(book.explain("openai", "gpt-4o", mode="flex", at=NOW))
    assert "no residency:eu factor" in str(book.explain("openai", "gpt-4o", mode="residency:eu", at=NOW))
    hurried = str(book.explain("openai", "gpt-4o", mode="hurry", at=NOW))
    assert "'hurry' is no pricing mode; write batch, flex, priority" in hurried


def test_an_unknown_model_is_explained_with_what_to_do(book: PriceBook) -> None:
    """Why, which keys look alike, the line to paste and the command; and no price is made of a likeness."""
    explanation = book.explain("openai", "gpt-4oo", at=NOW)
    text = str(explanation)
    assert not explanation.found
    assert "openai/gpt-4o" in explanation.nearest
    assert "LLM_COST_PRICE_OVERRIDES = {'openai/gpt-4oo': " in text
    assert "flask llm-cost prices explain openai gpt-4o" in text
    assert "LLM_COST_MODEL_ALIASES = {'openai/gpt-4oo': 'openai/gpt-4o" in text


def test_the_line_to_paste_works(book: PriceBook) -> None:
    """What the explanation says to write is an override that prices the model."""
    text = str(book.explain("nobody", 'odd"name', at=NOW))
    line = next(part for part in text.splitlines() if "LLM_COST_PRICE_OVERRIDES" in part)
    scope: dict[str, dict[str, dict[str, str]]] = {}
    exec(line.split("set it", 1)[1].strip(), {}, scope)
    mended = PriceBook.load(overrides=scope["LLM_COST_PRICE_OVERRIDES"])
    assert mended.price("nobody", 'odd"name', Usage({"input": 1_000_000}, source="response"), None, NOW).total == Decimal(
        "0.30"
    )


def test_what_is_free_says_who_says_so() -> None:
    """The configuration decides, and the explanation names it."""
    book = PriceBook.load(aliases={"ollama/*": "free"})
    text = str(book.explain("ollama", "llama4", at=NOW, usage=Usage({"input": 5}, source="response")))
    assert "LLM_COST_MODEL_ALIASES says that it is free" in text
    assert "0 USD, free" in text


def test_a_provider_s_own_bill_is_shown_beside_the_book_s(book: PriceBook) -> None:
    """Both figures, so that a person sees the drift."""
    usage = Usage({"input": 1_000_000}, source="response", billed=Decimal("2.4"))
    text = str(book.explain("openai", "gpt-4o", at=NOW, usage=usage))
    assert "1 x 2.4 = 2.4, priced" in text
    assert "by the book              2.5 USD" in text


def test_a_gateways_models_are_near_to_their_makers(book: PriceBook) -> None:
    """A provider that the book does not have serves somebody's models: the maker's entry comes first of what is near."""
    explanation = book.explain("llm.corp.example", "gpt-4o-mini-2024-07-18", at=NOW)
    assert explanation.nearest[0].startswith("openai/gpt-4o-mini")
    assert "'llm.corp.example/gpt-4o-mini-2024-07-18': 'openai/gpt-4o-mini" in str(explanation)
