"""The shape of a price: what an operator may write, and what is said of a slip."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from flask_llm_cost.errors import PriceBookError
from flask_llm_cost.pricing import PriceBook
from flask_llm_cost.records import Cost, Usage

NOW = datetime(2026, 11, 18, 12, tzinfo=UTC)


def _load(entry: Any, key: str = "acme/model") -> PriceBook:
    return PriceBook.load(overrides={key: entry})


def _cost(book: PriceBook, mode: str | None = None, at: datetime = NOW, model: str = "model", **quantities: Any) -> Cost:
    return book.price("acme", model, Usage(quantities, source="response"), mode, at)


@pytest.mark.parametrize("rate", ["0.30", Decimal("0.30"), 0.3, " 0.3 "])
def test_a_rate_is_exact_however_it_is_written(rate: Any) -> None:
    """A text, a Decimal, or a float of the environment: what was written counts, not its binary neighbour."""
    assert _cost(_load({"input": rate}), input=1).total == Decimal("0.0000003")


def test_both_forms_are_one() -> None:
    """The short form is the rates of the full one."""
    short, full = _load({"input": "1", "output": "2"}), _load({"rates": {"input": "1", "output": "2"}})
    assert _cost(short, input=5, output=7).total == _cost(full, input=5, output=7).total


def test_other_names_of_the_cache_components() -> None:
    """Anthropic's five-minute writes and the older gem's names are ours."""
    names = {"cache_write_5m": "1", "cache_read_input": "2", "cache_write_extended_input": "3", "input": "4"}
    cost = _cost(_load(names), cache_write=1, cache_read=1, cache_write_1h=1)
    assert [line.rate for line in cost.lines] == [1, 2, 3]
    assert _cost(_load({"cache_write_input": "5"}), cache_write=1_000_000).total == 5


def test_an_override_derives_no_cache_rate() -> None:
    """What an operator left out is not known, even on OpenAI."""
    book = PriceBook.load(overrides={"openai/gpt-4o": {"input": "2", "output": "8"}})
    cost = book.price("openai", "gpt-4o", Usage({"input": 1, "cache_read": 1}, source="response"), None, NOW)
    assert cost.status == "partial"


FULL: dict[str, Any] = {
    "currency": "EUR",
    "rates": {"input": "2.5", "cache_read": "0.25", "output": "15", "audio_minutes": "0.006", "pages": "4"},
    "per": {"pages": "1000"},
    "modes": {"batch": {"input": "1.25", "output": "7.5"}, "priority": None, "residency:eu+batch": {"input": "9"}},
    "tiers": [
        {"above": 1000, "rates": {"input": "20", "output": "90"}},
        {"above": 100, "inclusive": True, "rates": {"input": "5", "output": "22.5"}, "modes": {"batch": {"input": "2"}}},
    ],
    "multipliers": {"residency:eu": "1.1", "fast": "2"},
    "tools": {"web_search": {"rate": "10", "per": "1000"}},
    "history": [
        {"until": "2026-03-01", "rates": {"input": "8"}},
        {"until": "2026-02-01", "rates": {"input": "9"}, "tiers": []},
    ],
    "scheduled": [{"from": "2027-01-01T08:00:00+02:00", "rates": {"input": "3", "output": "16"}}],
    "_source": "our contract",
    "_source_version": "7",
}


@pytest.mark.parametrize(
    ("mode", "at", "quantities", "total", "status"),
    [
        (None, NOW, {"input": 99, "output": 1}, "0.0002625", "priced"),
        (None, NOW, {"input": 99, "cache_read": 1, "output": 1}, None, "partial"),
        (None, NOW, {"input": 100, "output": 1}, "0.0005225", "priced"),
        (None, NOW, {"input": 1000, "output": 0}, "0.005", "priced"),
        (None, NOW, {"input": 1001}, "0.02002", "priced"),
        ("batch", NOW, {"input": 10, "output": 10}, "0.0000875", "priced"),
        ("batch", NOW, {"input": 100}, "0.0002", "priced"),
        ("batch", NOW, {"input": 1001}, None, "unpriced"),
        ("priority", NOW, {"input": 10}, None, "unpriced"),
        ("flex", NOW, {"input": 10}, None, "unpriced"),
        ("fast", NOW, {"input": 10}, "0.00005", "priced"),
        ("fast", NOW, {"input": 1001}, "0.04004", "priced"),
        ("fast+residency:eu", NOW, {"input": 10}, "0.000055", "priced"),
        ("batch+residency:eu", NOW, {"input": 10}, "0.00009", "priced"),
        ("residency:eu", NOW, {"input": 10}, "0.0000275", "priced"),
        ("residency:jp", NOW, {"input": 10}, None, "unpriced"),
        (None, NOW, {"web_search": 3}, "0.03", "priced"),
        ("batch", NOW, {"input": 10, "web_search": 3}, "0.0300125", "priced"),
        ("residency:eu", NOW, {"web_search": 3}, "0.03", "priced"),
        (None, NOW, {"pages": 3}, "0.012", "priced"),
        (None, NOW, {"audio_minutes": 2}, "0.012", "priced"),
        (None, NOW, {"audio_seconds": 30}, "0.003", "priced"),
        (None, datetime(2026, 2, 28, 23, 59, 59, tzinfo=UTC), {"input": 10}, "0.00008", "priced"),
        (None, datetime(2026, 2, 28, tzinfo=UTC), {"output": 10}, None, "unpriced"),
        (None, datetime(2026, 2, 28, tzinfo=UTC), {"input": 1001}, "0.02002", "priced"),
        (None, datetime(2026, 1, 31, tzinfo=UTC), {"input": 1001}, "0.009009", "priced"),
        (None, datetime(2026, 3, 1, tzinfo=UTC), {"input": 10}, "0.000025", "priced"),
        (None, datetime(2027, 1, 1, 5, 59, 59, tzinfo=UTC), {"input": 10}, "0.000025", "priced"),
        (None, datetime(2027, 1, 1, 6, tzinfo=UTC), {"input": 10}, "0.00003", "priced"),
    ],
)
def test_a_full_entry(mode: str | None, at: datetime, quantities: dict[str, int], total: str | None, status: str) -> None:
    """Modes, tiers, factors, fees, units and dates of one entry, each by its own rule."""
    cost = _cost(_load(FULL), mode, at, **quantities)
    assert cost.status == status
    if status == "priced":
        assert cost.total == Decimal(total or "")
        assert cost.currency == "EUR"
        assert cost.price is not None
        assert cost.price.source_version.endswith("our contract 7")


@pytest.mark.parametrize(
    ("at", "rate"),
    [
        ("2026-11-16T22:00", "9"),  # a Monday
        ("2026-11-16T21:59", "1"),
        ("2026-11-17T01:59", "9"),
        ("2026-11-17T02:00", "1"),
        ("2026-11-22T23:00", "7"),  # a Sunday, into Monday
        ("2026-11-16T00:30", "7"),
        ("2026-11-16T01:00", "1"),
    ],
)
def test_hours_of_the_week(at: str, rate: str) -> None:
    """A window runs from its start, inclusive, to its end, exclusive, past midnight and past the week's end."""
    book = _load(
        {
            "rates": {"input": "1"},
            "windows": [
                {"days": [1], "utc": ["22:00-02:00"], "rates": {"input": "9"}},
                {"days": [7], "utc": ["23:00-01:00"], "rates": {"input": "7"}},
            ],
        }
    )
    assert _cost(book, at=datetime.fromisoformat(at).replace(tzinfo=UTC), input=1_000_000).total == Decimal(rate)


def test_inherit_takes_the_rest_from_below() -> None:
    """An override of one rate keeps the others, modes, tiers and fees; and holds on every date and at every hour."""
    book = PriceBook.load(
        overrides={
            "gemini/gemini-3.8-flash": {"inherit": True, "rates": {"input": "0.5"}},
            "deepseek/deepseek-flash": {"inherit": True, "rates": {"input": "0.1"}, "modes": {"batch": {"input": "0.05"}}},
        }
    )
    usage = Usage({"input": 1_000_000, "output": 1_000_000, "grounding_query": 1000}, source="response")
    assert book.price("gemini", "gemini-3.8-flash", usage, None, NOW).total == Decimal("0.5") + Decimal("3.75") + 14
    later = datetime(2027, 2, 1, tzinfo=UTC)
    assert book.price("gemini", "gemini-3.8-flash", usage, None, later).total == Decimal("0.5") + Decimal("7.5") + 14
    assert book.price("gemini", "gemini-3.8-flash", usage, "batch", NOW).total == Decimal("0.375") + Decimal("1.875") + 14
    peak = datetime(2026, 11, 18, 2, tzinfo=UTC)
    plain = Usage({"input": 1_000_000, "output": 1_000_000}, source="response")
    assert book.price("deepseek", "deepseek-flash", plain, None, peak).total == Decimal("0.1") + Decimal("1.2")
    batch = book.price("deepseek", "deepseek-flash", Usage({"input": 1_000_000}, source="response"), "batch", peak)
    assert batch.total == Decimal("0.05")


def test_a_maximum_of_output_is_found_like_a_price() -> None:
    """By key, alias, date and mapping; an override is used whole, unless it inherits; what nobody says is unknown."""
    book = PriceBook.load(
        overrides={
            "acme/model": {"rates": {"output": "1"}, "max_output": "8192", "aliases": ["latest"]},
            "openai/gpt-4o": {"input": "2", "output": "8"},
            "openai/gpt-4o-mini": {"inherit": True, "rates": {"input": "0.1"}},
            "openai/o3": {"inherit": True, "max_output": 50},
        },
        aliases={"gateway/*": "acme/*", "ollama/*": "free"},
    )
    plain = PriceBook.load()
    most = plain.max_output("openai", "gpt-4o-mini", NOW)
    assert most == plain.max_output("openai", "gpt-4o-mini-2024-07-18", NOW) == 16_384
    for provider, model, found in [
        ("acme", "model", 8192),
        ("acme", "model-2026-01-01", 8192),
        ("acme", "latest", 8192),
        ("gateway", "model", 8192),
        ("openai", "gpt-4o", None),
        ("openai", "gpt-4o-mini", most),
        ("openai", "o3", 50),
        ("ollama", "llama", None),
        ("acme", "other", None),
        ("acme", None, None),
        ("", "", None),
    ]:
        assert book.max_output(provider, model, NOW) == found, (provider, model)
    mapped = PriceBook.load(overrides={"openai/acme-9": {"rates": {"output": "1"}, "max_output": 77}})
    assert mapped.max_output("azure", "acme-9", NOW) == 77


def test_there_must_be_something_to_inherit() -> None:
    """An entry that inherits from nothing stops the start, with the remedy."""
    with pytest.raises(PriceBookError, match=r"acme/model.*inherit.*all rates"):
        _load({"inherit": True, "rates": {"input": "1"}})


def test_the_provider_s_fees_can_be_overridden() -> None:
    """Overrides may hold tool fees by provider, as a file does."""
    book = PriceBook.load(overrides={"tools": {"openai": {"web_search": {"rate": "7", "per": "1000"}}}})
    cost = book.price("openai", "gpt-5", Usage({"web_search": 1000, "file_search": 1000}, source="response"), None, NOW)
    assert cost.total == Decimal("9.5")


def test_fees_are_in_the_currency_of_their_source() -> None:
    """A fee in dollars is no fee in euros: it is not known, rather than added to another currency."""
    book = PriceBook.load(overrides={"openai/gpt-4o": {"rates": {"input": "2"}, "currency": "EUR"}})
    cost = book.price("openai", "gpt-4o", Usage({"input": 1_000_000, "web_search": 1}, source="response"), None, NOW)
    assert (cost.total, cost.currency, cost.status) == (2, "EUR", "partial")
    euros = {"currency": "EUR", "acme/model": {"input": "2"}, "tools": {"acme": {"web_search": {"rate": "1"}}}}
    usage = Usage({"input": 1_000_000, "web_search": 1}, source="response")
    cost = PriceBook.load(overrides=euros).price("acme", "model", usage, None, NOW)
    assert (cost.total, cost.currency, cost.status) == (3, "EUR", "priced")


def test_whether_a_model_reasons_is_never_guessed() -> None:
    """Where it decides a fee and an entry of your own does not say: the bundled book's word, else the fee is unknown."""
    book = PriceBook.load(
        overrides={
            "openai/o3": {"input": "1"},
            "openai/gpt-4.1": {"input": "1"},
            "openai/mine": {"input": "1"},
            "openai/mine-too": {"rates": {"input": "1"}, "reasoning_model": True},
        }
    )
    usage = Usage({"input": 1_000_000, "web_search_preview": 1000}, source="response")
    for model, total in [("o3", 11), ("gpt-4.1", 26), ("mine", 1), ("mine-too", 11)]:
        cost = book.price("openai", model, usage, None, NOW)
        assert (cost.total, cost.status) == (total, "partial" if model == "mine" else "priced"), model


@pytest.mark.parametrize(("mode", "size"), [("batch", 100), (None, 2000)])
def test_reasoning_priced_apart_is_never_billed_as_output(mode: str | None, size: int) -> None:
    """Also where the mode or the tier says nothing of it: then its part has no price."""
    book = _load(
        {
            "rates": {"input": "1", "output": "2", "reasoning": "4"},
            "modes": {"batch": {"input": "0.5", "output": "1"}},
            "tiers": [{"above": 1000, "rates": {"input": "1", "output": "1"}}],
        }
    )
    usage = Usage({"input": size, "output": 1000}, source="response", reasoning_tokens=900)
    cost = book.price("acme", "model", usage, mode, NOW)
    lines = {line.component: (line.quantity, line.cost) for line in cost.lines}
    assert lines["output"] == (100, Decimal("0.0001"))
    assert lines["reasoning"] == (900, None)
    assert cost.status == "partial"


def test_the_least_that_is_billed_needs_a_price() -> None:
    """Where there is none, three seconds stay three, for whoever prices them later."""
    book = _load({"rates": {"audio_seconds": "1"}, "minimum": {"audio_seconds": "10"}})
    usage = Usage({"audio_seconds": 3}, source="response")
    assert [line.quantity for line in book.price("acme", "model", usage, None, NOW).lines] == [10]
    assert [(line.quantity, line.cost) for line in book.price("acme", "model", usage, "flex", NOW).lines] == [(3, None)]


BAD: list[tuple[Any, list[str]]] = [
    ({"input": "abc"}, ["acme/model", "rates.input", "'abc'", "0.30"]),
    ({"input": "-1"}, ["rates.input", "'-1'", "leave out"]),
    ({"input": "NaN"}, ["rates.input", "'NaN'"]),
    ({"input": "Infinity"}, ["rates.input", "'Infinity'"]),
    ({"input": float("inf")}, ["rates.input", "inf"]),
    ({"input": None}, ["rates.input", "None"]),
    ({"input": True}, ["rates.input", "True"]),
    ({"input": "1e30"}, ["rates.input", "1e30"]),
    ({"input": "1e-30"}, ["rates.input", "18 decimal places"]),
    ({"imput": "1"}, ["'imput'", "did you mean 'input'?"]),
    ({"rates": {"output_tokens": "1"}}, ["'output_tokens'", "component"]),
    ({"rates": {"input": "1"}, "mode": {}}, ["'mode'", "did you mean 'modes'?"]),
    ({"rates": {"input": "1"}, "output": "1"}, ["'output'", "field"]),
    ({"rates": {"cache_write": "1", "cache_write_5m": "2"}}, ["twice"]),
    ({"modes": {"batch": {"input": "1"}}}, ["rates", "inherit"]),
    ({"rates": {"input": "1"}, "modes": {"night": {"input": "1"}}}, ["'night'", "batch, flex"]),
    ({"rates": {"input": "1"}, "modes": {"batch+flex": {"input": "1"}}}, ["'batch+flex'"]),
    ({"rates": {"input": "1"}, "modes": {"batch": "0.5"}}, ["modes.batch", "table"]),
    ({"rates": {"input": "1"}, "tiers": [{"above": -1, "rates": {}}]}, ["tiers[0].above", "-1"]),
    ({"rates": {"input": "1"}, "tiers": [{"above": 5, "rates": {"input": "1"}}, {"above": 5, "rates": {}}]}, ["same size"]),
    ({"rates": {"input": "1"}, "tiers": [{"above": 5}]}, ["tiers[0].rates"]),
    ({"rates": {"input": "1"}, "tiers": {"above": 5}}, ["tiers", "list"]),
    (
        {"rates": {"input": "1"}, "history": [{"until": "soon", "rates": {"input": "1"}}]},
        ["history[0].until", "'soon'", "2026-08-21"],
    ),
    ({"rates": {"input": "1"}, "history": [{"until": "2026-01-01"}]}, ["history[0]", "at least one"]),
    ({"rates": {"input": "1"}, "scheduled": [{"until": "2026-01-01", "rates": {}}]}, ["'until'", "field"]),
    ({"rates": {"input": "1"}, "windows": [{"utc": ["25:00-26:00"], "rates": {"input": "1"}}]}, ["utc", "25:00"]),
    ({"rates": {"input": "1"}, "windows": [{"days": [0], "rates": {"input": "1"}}]}, ["days", "Monday"]),
    ({"rates": {"input": "1"}, "windows": [{"days": [1]}]}, ["windows[0].rates"]),
    ({"rates": {"input": "1"}, "multipliers": {"batch": "0.5"}}, ["multipliers", "'batch'", "write other modes as rates"]),
    ({"rates": {"input": "1"}, "multipliers": {"fast": "0"}}, ["multipliers.fast"]),
    ({"rates": {"input": "1"}, "per": {"input": "0"}}, ["per.input"]),
    ({"rates": {"input": "1"}, "tools": {"web_serch": {"rate": "1"}}}, ["'web_serch'", "did you mean 'web_search'?"]),
    ({"rates": {"input": "1"}, "tools": {"web_search": {"per": "1"}}}, ["tools.web_search.rate"]),
    ({"rates": {"input": "1"}, "currency": "dollars"}, ["currency", "'dollars'"]),
    ({"rates": {"input": "1"}, "inherit": "yes"}, ["inherit", "'yes'"]),
    ({"rates": {"input": "1"}, "max_output": "many"}, ["max_output", "'many'", "200000"]),
    ({"rates": {"input": "1"}, "max_output": 0}, ["max_output", "0"]),
    ({"rates": {"input": "1"}, "max_output": True}, ["max_output", "True"]),
    ({"rates": {"input": "1"}, "aliases": [3]}, ["aliases[0]", "3"]),
    ({}, ["acme/model", "at least one rate"]),
    ("0.30", ["acme/model", "'0.30'", "table"]),
    ([], ["acme/model", "table"]),
]


@pytest.mark.parametrize(("entry", "said"), BAD, ids=lambda value: str(value)[:60])
def test_a_slip_is_named(entry: Any, said: list[str]) -> None:
    """The error names the configuration key, the entry, the field, the value, and what would be right."""
    with pytest.raises(PriceBookError) as caught:
        _load(entry)
    message = str(caught.value)
    for part in ["LLM_COST_PRICE_OVERRIDES", "acme/model", *said]:
        assert part in message, message


@pytest.mark.parametrize("key", ["openai/*", "openai/gpt-4*"])
def test_a_price_is_not_of_many_models(key: str) -> None:
    """An override for all models of a provider would match none, and nobody would notice: it says where a * may be."""
    with pytest.raises(PriceBookError, match=r"LLM_COST_MODEL_ALIASES takes a \*"):
        _load({"input": "1"}, key)


@pytest.mark.parametrize("key", ["gpt-4o", "/x", "x/", ""])
def test_a_key_needs_its_provider(key: str) -> None:
    """A bare model name would price other providers' models too."""
    with pytest.raises(PriceBookError, match="provider/model"):
        _load({"input": "1"}, key)


def test_two_entries_cannot_have_one_alias() -> None:
    """Unless they are dated, one of the two is a slip."""
    with pytest.raises(PriceBookError, match="this alias too"):
        PriceBook.load(overrides={k: {"rates": {"input": "1"}, "aliases": ["latest"]} for k in ("acme/one", "acme/two")})


def test_a_file_is_json_or_toml(tmp_path: Path) -> None:
    """Both read the same, to the last digit, numbers too."""
    json_file, toml_file = tmp_path / "prices.json", tmp_path / "prices.toml"
    json_file.write_text(
        '{"schema": 1, "version": "ours-3", "models": {"acme/model": {"rates": {"input": 0.1000000000000001}}}}', "utf-8"
    )
    toml_file.write_text('[models."acme/model"]\nrates = {input = 0.1000000000000001}\n', "utf-8")
    for file in (json_file, toml_file):
        book = PriceBook.load(file=file)
        cost = _cost(book, input=1_000_000)
        assert cost.total == Decimal("0.1000000000000001")
        assert cost.price is not None
        assert cost.price.source == "file"
    assert PriceBook.load(file=json_file).version.endswith("+ours-3")
    assert "+sha256:" in PriceBook.load(file=toml_file).version


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "no valid JSON (line 1, column 2); repair it there, or put {} into it and run 'flask llm-cost prices init'"),
        ('{"models": {"a/b": {"input": NaN}}}', "no valid JSON"),
        ("[" * 100_000, "no valid JSON"),
        ("[]", "table"),
        ('{"modls": {}}', "did you mean 'models'?"),
        ('{"schema": 2, "models": {}}', "reads schema 1"),
        ('{"models": {"a/b": {"input": "x"}}}', "rates.input"),
        ('{"models": [], "schema": 1}', "models"),
        ('{"models": {}, "currency": "usd"}', "currency"),
        ('{"models": {}, "tools": {"openai": {"web_search": {"rate": "-1"}}}}', "web_search.rate"),
    ],
)
def test_a_file_that_is_none_stops_the_start(tmp_path: Path, content: str, said: str) -> None:
    """The error names the file by its name, without its folder, and what is wrong."""
    file = tmp_path / "prices.json"
    file.write_text(content, "utf-8")
    with pytest.raises(PriceBookError) as caught:
        PriceBook.load(file=file)
    assert said in str(caught.value)
    assert "prices.json" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_missing_file_stops_the_start(tmp_path: Path) -> None:
    """A price file that was configured and is not there is not passed over."""
    with pytest.raises(PriceBookError, match="LLM_COST_PRICES_FILE"):
        PriceBook.load(file=tmp_path / "none.json")


def test_the_bundled_book_can_be_a_file(tmp_path: Path) -> None:
    """What ships is in the documented shape: as an operator's file it prices the same."""
    from importlib import resources

    file = tmp_path / "copy.json"
    text = resources.files("flask_llm_cost.pricing").joinpath("snapshot.json").read_text("utf-8")
    file.write_text(json.dumps(json.loads(text), indent=2), "utf-8")
    copy, bundled = PriceBook.load(file=file), PriceBook.load()
    usage = Usage({"input": 300_000, "output": 5, "web_search": 1}, source="response")
    for provider, model in (("openai", "gpt-5.4"), ("anthropic", "claude-3-7-sonnet-20250219"), ("xai", "grok-4.3")):
        assert copy.price(provider, model, usage, None, NOW).total == bundled.price(provider, model, usage, None, NOW).total
