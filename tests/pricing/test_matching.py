"""Which entry prices a model, and that no likeness ever does."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

import pytest

from flask_llm_cost.errors import ConfigError
from flask_llm_cost.pricing import PriceBook
from flask_llm_cost.records import CallRecord, Usage

NOW = datetime(2026, 11, 18, 12, tzinfo=UTC)
TOKENS = Usage({"input": 1_000_000}, source="response")


def _match(book: PriceBook, provider: str, model: str | None, at: datetime = NOW) -> tuple[str, str] | None:
    match = book.find(provider, model, at)
    return (match.key, match.kind) if match else None


@pytest.mark.parametrize(
    ("provider", "model", "expected"),
    [
        ("openai", "gpt-4o", ("openai/gpt-4o", "exact")),
        ("openai", "gpt-4o-2024-05-13", ("openai/gpt-4o-2024-05-13", "exact")),
        ("openai", "gpt-4o-2031-01-01", ("openai/gpt-4o", "date_suffix")),
        ("anthropic", "claude-3-7-sonnet-20250219", ("anthropic/claude-3-7-sonnet-latest", "date_suffix")),
        ("anthropic", "claude-opus-4-20250514", ("anthropic/claude-opus-4-0", "alias")),
        ("gemini", "gemini-2.5-flash-preview-05-20", ("gemini/gemini-2.5-flash-preview", "date_suffix")),
        ("gemini", "gemini-2.5-flash-lite-preview-09-2025", ("gemini/gemini-2.5-flash-lite", "date_suffix")),
        ("openai", "ft:gpt-4o-mini-2024-07-18:acme:bot:9x1", ("openai/ft:gpt-4o-mini-2024-07-18", "fine_tune")),
        ("openai", "ft:gpt-4o-mini-2029-07-18:acme::9x1", ("openai/ft:gpt-4o-mini", "fine_tune")),
        ("bedrock", "anthropic.claude-sonnet-4-6", ("bedrock/anthropic.claude-sonnet-4-6", "exact")),
        ("bedrock", "amazon.nova-pro-v1:0", ("bedrock/amazon.nova-pro", "spelling")),
        ("bedrock", "amazon.titan-embed-text-v2:0", ("bedrock/amazon.titan-embed-text-v2:0", "exact")),
        ("vertex", "claude-sonnet-4-5@20250929", ("vertex/claude-sonnet-4-5", "spelling")),
        ("openrouter", "anthropic/claude-sonnet-4.5", ("openrouter/anthropic/claude-sonnet-4.5", "exact")),
        ("groq", "openai/gpt-oss-120b", ("groq/openai/gpt-oss-120b", "exact")),
    ],
)
def test_a_model_is_found_by_the_rule_that_leads_to_it(
    book: PriceBook, provider: str, model: str, expected: tuple[str, str]
) -> None:
    """Exact before alias before date suffix before fine-tune base, and each host's own spelling."""
    assert _match(book, provider, model) == expected


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-4o-min"),
        ("openai", "gpt-4o-mini-high"),
        ("openai", "gpt-4o-2024-13-01"),
        ("openai", "gpt-4o-20241301"),
        ("openai", "gpt-4o-20000000"),
        ("openai", "GPT-4o"),
        ("openai", " gpt-4o"),
        ("openai", "gpt-4o\n"),
        ("openai", "gpt-4o-2024-08-06-2024-08-06"),
        ("openai", "ft:gpt-99:acme::1"),
        ("openai", "ft:gpt-5.4:acme::1"),
        ("openai", "ft:"),
        ("openai", "openai/gpt-4o"),
        ("gemini", "gemini-3.8-flash-cyber"),
        ("openrouter", "anthropic/claude-sonnet-4.5:nitro"),
        ("openrouter", "anthropic/claude-sonnet-4.5:floor"),
        ("openrouter", "openrouter/auto"),
        ("bedrock", "anthropic.claude-sonnet-4-6-v9:9"),
        ("bedrock", "arn:aws:bedrock:us-east-1:1:application-inference-profile/x"),
        ("nobody", "gpt-4o"),
        ("", "gpt-4o"),
        ("openai", ""),
        ("openai", None),
    ],
)
def test_a_likeness_is_never_a_price(book: PriceBook, provider: str, model: str | None) -> None:
    """No prefix, no part of a name, no second date, no other case, no other provider."""
    assert _match(book, provider, model) is None


def test_a_model_that_only_one_provider_has_needs_no_provider() -> None:
    """A bare name matches where exactly one entry of all has it, and else not at all."""
    book = PriceBook.load(
        overrides={"acme/only-here": {"input": "1"}, "acme/shared": {"input": "1"}, "bolt/shared": {"input": "2"}}
    )
    assert _match(book, "", "only-here") == ("acme/only-here", "bare")
    assert _match(book, "", "shared") is None


def test_an_override_stands_before_the_file_and_the_file_before_the_bundled_book(tmp_path: Path) -> None:
    """The first source that has an entry by any rule is used, whole: its gaps are not filled from below."""
    file = tmp_path / "prices.json"
    file.write_text(
        '{"models": {"openai/gpt-4o": {"rates": {"input": "7"}}, "openai/gpt-4.1": {"rates": {"input": "8"}}}}', "utf-8"
    )
    book = PriceBook.load(overrides={"openai/gpt-4o": {"input": "9"}}, file=file)
    for model, source, rate in (("gpt-4o", "overrides", 9), ("gpt-4.1", "file", 8), ("gpt-5", "bundled", "1.25")):
        cost = book.price("openai", model, TOKENS, None, NOW)
        assert cost.price is not None
        assert (cost.price.source, str(cost.total)) == (source, str(cost.total))
        assert cost.total == type(cost.total)(rate)
    whole = book.price("openai", "gpt-4o", Usage({"input": 1, "output": 1}, source="response"), None, NOW)
    assert whole.status == "partial"
    assert _match(book, "openai", "gpt-4o-2024-08-06") == ("openai/gpt-4o", "date_suffix")


def test_an_operator_s_price_stands_before_the_bundled_one_of_a_region(tmp_path: Path) -> None:
    """Of each source the region's key comes first; what an operator wrote for the model goes before all that is below."""
    host = "bedrock-runtime.ap-northeast-1.amazonaws.com"
    record = _record("bedrock", "deepseek.v3.2", host)
    regional = PriceBook.load().price_record(record)
    assert regional.price is not None
    assert regional.price.key == "bedrock/ap-northeast-1/deepseek.v3.2"
    own = PriceBook.load(overrides={"bedrock/deepseek.v3.2": {"input": "0.01"}})
    assert own.price_record(record).total == Decimal("0.01")
    aliased = PriceBook.load(
        overrides={"bedrock/deepseek.v3.2": {"input": "0.01"}}, aliases={"bedrock/arn": "bedrock/deepseek.v3.2"}
    )
    assert aliased.price_record(_record("bedrock", "arn", host)).total == Decimal("0.01")
    both = PriceBook.load(
        overrides={"bedrock/deepseek.v3.2": {"input": "1"}, "bedrock/ap-northeast-1/deepseek.v3.2": {"input": "2"}}
    )
    assert both.price_record(record).total == 2
    file = tmp_path / "prices.json"
    for source, total in (("manual", Decimal("0.01")), ("litellm", regional.total)):
        entry = {"rates": {"input": "0.01"}, "_source": source}
        file.write_text(json.dumps({"models": {"bedrock/deepseek.v3.2": entry}}), "utf-8")
        # What was synchronised is a list's price for elsewhere.
        assert PriceBook.load(file=file).price_record(record).total == total


def test_an_operator_s_azure_price_without_a_zone_s_factor_is_no_price_of_that_zone() -> None:
    """It is used whole: neither the bundled price of the zone nor its own without a factor is guessed to be right."""
    rates = {"input": "1", "output": "1"}
    plain = PriceBook.load(overrides={"azure/gpt-4o": rates})
    assert plain.price("azure", "gpt-4o", TOKENS, None, NOW).total == 1
    assert plain.price("azure", "gpt-4o", TOKENS, "residency:eu", NOW).status == "unpriced"
    assert "residency:eu factor" in str(plain.explain("azure", "gpt-4o", mode="residency:eu"))
    told = PriceBook.load(overrides={"azure/gpt-4o": {"rates": rates, "multipliers": {"residency:eu": "1.1"}}})
    assert told.price("azure", "gpt-4o", TOKENS, "residency:eu", NOW).total == Decimal("1.1")
    zoned = PriceBook.load(overrides={"azure/gpt-4o": rates, "azure/eu/gpt-4o": {"input": "3"}})
    assert zoned.price("azure", "gpt-4o", TOKENS, "residency:eu", NOW).total == 3


def test_an_alias_stands_for_another_key_at_another_time() -> None:
    """A dated alias decides by the time of the call, its start counting and its end not."""
    book = PriceBook.load(
        overrides={
            "acme/one": {"rates": {"input": "1"}, "aliases": [{"name": "latest", "until": "2026-03-16"}]},
            "acme/two": {"rates": {"input": "2"}, "aliases": [{"name": "latest", "from": "2026-03-16"}, "second"]},
        }
    )
    before, after = datetime(2026, 3, 15, 23, 59, 59, tzinfo=UTC), datetime(2026, 3, 16, tzinfo=UTC)
    assert _match(book, "acme", "latest", before) == ("acme/one", "alias")
    assert _match(book, "acme", "latest", after) == ("acme/two", "alias")
    assert book.price("acme", "latest", TOKENS, None, before).total == 1
    assert book.price("acme", "latest", TOKENS, None, after).total == 2
    assert _match(book, "acme", "second", before) == ("acme/two", "alias")


def test_names_that_only_the_operator_knows() -> None:
    """LLM_COST_MODEL_ALIASES: a deployment, a gateway by wildcard, free, prepaid; the longest pattern wins."""
    book = PriceBook.load(
        aliases={
            "azure/my-resource/my-deployment": "azure/gpt-4o",
            "internal_gateway/*": "openai/*",
            "internal_gateway/house-*": "prepaid",
            "ollama/*": "free",
            "azure/ptu/*": "prepaid",
        }
    )
    assert _match(book, "azure", "my-resource/my-deployment") == ("azure/gpt-4o", "alias")
    assert _match(book, "internal_gateway", "gpt-4o") == ("openai/gpt-4o", "alias")
    assert _match(book, "internal_gateway", "gpt-none") is None
    assert _match(book, "internal_gateway", "house-model") == ("internal_gateway/house-*", "prepaid")
    for provider, model, kind in (("ollama", "llama4", "free"), ("azure", "ptu/any", "prepaid")):
        cost = book.price(provider, model, Usage({"input": 5, "audio_seconds": 9}, source="response"), "batch", NOW)
        assert (cost.total, cost.status) == (0, "free")
        assert cost.price is not None
        assert cost.price.match == kind
        assert all(line.status == "free" for line in cost.lines)


@pytest.mark.parametrize(
    "aliases",
    [
        {"gpt-4o": "openai/gpt-4o"},
        {"a/*/b": "openai/*"},
        {"a/b": "openai/*"},
        {"a/b": "nonsense"},
        {"a/*b": "openai/x"},
        {"a/b": 3},
    ],
)
def test_an_alias_that_makes_no_sense_stops_the_start(aliases: dict[str, str]) -> None:
    """The error names the configuration key and says what to write."""
    with pytest.raises(ConfigError, match="LLM_COST_MODEL_ALIASES"):
        PriceBook.load(aliases=aliases)


def _record(provider: str, model: str | None, host: str, **more: object) -> CallRecord:
    return CallRecord(
        id=uuid4(),
        occurred_at=NOW,
        provider=provider,
        operation="chat.completions",
        host=host,
        model=model,
        usage=TOKENS,
        **more,
    )  # type: ignore[arg-type]  # the test's own keywords


def test_an_azure_deployment_is_never_a_model() -> None:
    """The operator's word first, then the model that the reply names; a deployment called gpt-4o is no gpt-4o."""
    host = "my-resource.openai.azure.com"
    plain = PriceBook.load()
    told = PriceBook.load(aliases={"azure/my-resource/chat": "azure/gpt-4-turbo"})
    record = _record("azure", "gpt-4o-2024-08-06", host, requested_model="chat")
    assert plain.price_record(record).total == plain.price("azure", "gpt-4o-2024-08-06", TOKENS, None, NOW).total
    assert told.price_record(record).total == 11
    other = _record("azure", "gpt-4o-2024-08-06", "other.openai.azure.com", requested_model="chat")
    assert told.price_record(other).total == plain.price_record(other).total


@pytest.mark.parametrize(
    "host", ["res.openai.azure.com", "res.openai.azure.us", "res.openai.azure.us:443", "res.cognitiveservices.azure.us"]
)
def test_a_deployment_s_alias_counts_in_every_azure_cloud(host: str) -> None:
    """Azure Government's hosts name the resource as the others do."""
    told = PriceBook.load(aliases={"azure/res/chat": "azure/gpt-4-turbo"})
    assert told.price_record(_record("azure", None, host, requested_model="chat")).total == 11
    assert told.price_record(_record("azure", None, "evil.azure.us", requested_model="chat")).status == "unpriced"


def test_azure_government_has_prices_of_its_own(book: PriceBook) -> None:
    """Where the book has them; the operator's own for the model stands before."""
    record = _record("azure", "gpt-5.1", "res.openai.azure.us")
    assert book.price_record(record).total == Decimal("1.71875")
    assert book.price_record(replace(record, host="res.openai.azure.com")).total == Decimal("1.25")
    assert PriceBook.load(overrides={"azure/gpt-5.1": {"input": "3"}}).price_record(record).total == 3


def test_an_azure_call_whose_reply_names_no_model_is_unknown(book: PriceBook) -> None:
    """A deployment may be called gpt-4o and be anything; the operator's alias decides, by the resource or without it."""
    record = _record("azure", None, "my-resource.openai.azure.com", requested_model="gpt-4o")
    assert book.price_record(record).status == "unpriced"
    for name in ("azure/my-resource/gpt-4o", "azure/gpt-4o"):
        cost = PriceBook.load(aliases={name: "azure/gpt-4-turbo"}).price_record(record)
        assert cost.total == 11
    assert book.price_record(_record("openai", None, "api.openai.com", requested_model="gpt-4o")).status == "priced"


@pytest.mark.parametrize(
    ("model", "rate"),
    [
        ("global.anthropic.claude-sonnet-4-5-20250929-v1:0", "3"),
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "3.3"),
        ("eu.anthropic.claude-sonnet-4-5-20250929-v1:0", "3.3"),
        ("jp.anthropic.claude-sonnet-4-5-20250929-v1:0", "3.3"),
        ("au.anthropic.claude-sonnet-4-5-20250929-v1:0", "3.3"),
        ("us-gov.anthropic.claude-sonnet-4-5-20250929-v1:0", "3.6"),
        ("anthropic.claude-sonnet-4-5-20250929-v1:0", "3.3"),
    ],
)
def test_a_bedrock_profile_is_a_price_of_its_own(book: PriceBook, model: str, rate: str) -> None:
    """The profile in front of the name counts; the bare id is in-region, 10% above the worldwide one."""
    usage = Usage({"input": 100_000}, source="response")
    assert (book.price("bedrock", model, usage, None, NOW).total or 0) * 10 == Decimal(rate)


@pytest.mark.parametrize(
    ("model", "host", "total"),
    [
        ("claude-sonnet-4-5", "aiplatform.googleapis.com", "3"),
        ("claude-sonnet-4-5", "us-east5-aiplatform.googleapis.com", "3.3"),
        ("claude-sonnet-4-5", "aiplatform.eu.rep.googleapis.com", "3.3"),
        ("gemini-2.5-flash", "europe-west1-aiplatform.googleapis.com", "0.3"),
    ],
)
def test_a_vertex_location_costs_more_where_the_entry_says_so(book: PriceBook, model: str, host: str, total: str) -> None:
    """Anywhere but worldwide 10% more for models that have the factor, and the same for those that have none."""
    usage = Usage({"input": 100_000}, source="response")
    record = replace(_record("vertex", model, host), usage=usage)
    assert (book.price_record(record).total or 0) * 10 == Decimal(total)


def test_a_bedrock_profile_s_arn_needs_the_operator_s_word(book: PriceBook) -> None:
    """It says nothing of its model; an alias does."""
    arn = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/a1b2"
    assert _match(book, "bedrock", arn) is None
    told = PriceBook.load(aliases={f"bedrock/{arn}": "bedrock/us.anthropic.claude-opus-4-8"})
    assert _match(told, "bedrock", arn) == ("bedrock/us.anthropic.claude-opus-4-8", "alias")


def test_an_openrouter_variant_is_a_model_of_its_own() -> None:
    """``:free`` by its own key only; a moving or routed name is never a base model; dots in a version may be dashes."""
    book = PriceBook.load(
        overrides={"openrouter/x/one-1-5": {"input": "1"}, "openrouter/x/one-1-5:free": {"input": "0", "output": "0"}}
    )
    assert _match(book, "openrouter", "x/one-1.5") == ("openrouter/x/one-1-5", "spelling")
    assert book.price("openrouter", "x/one-1-5:free", TOKENS, None, NOW).status == "free"
    for model in ("x/one-1-5:nitro", "x/one-1-5:floor", "~x/one-latest", "x/one~latest", "openrouter/auto", "x/two:free"):
        assert _match(book, "openrouter", model) is None


def test_another_gateway_has_no_price_unless_the_file_has_it(book: PriceBook) -> None:
    """Whatever it serves: its name is the operator's, and so is its price."""
    assert _match(book, "my-gateway", "gpt-4o") is None
    assert _match(PriceBook.load(overrides={"my-gateway/gpt-4o": {"input": "1"}}), "my-gateway", "gpt-4o") is not None


def test_azure_falls_back_to_openai_and_says_so() -> None:
    """A model that the book has for OpenAI only is priced by it, marked as mapped."""
    book = PriceBook.load(overrides={"openai/brand-new": {"input": "3"}})
    cost = book.price("azure", "brand-new", TOKENS, None, NOW)
    assert cost.total == 3
    assert cost.price is not None
    assert (cost.price.key, cost.price.match) == ("openai/brand-new", "mapped")


def test_the_region_in_a_host_counts(book: PriceBook) -> None:
    """Bedrock has keys by region; Vertex takes its uplift anywhere but worldwide."""
    model = "claude-sonnet-4-5@20250929"
    assert book.price_record(_record("vertex", model, "aiplatform.googleapis.com")).total == 6
    assert (
        book.price_record(_record("vertex", model, "europe-west1-aiplatform.googleapis.com")).total
        == book.price("vertex", model, TOKENS, "residency:europe-west1", NOW).total
    )
    same = book.price("vertex", "gemini-2.5-pro", TOKENS, "batch+residency:europe-west1", NOW)
    assert same.price is not None
    assert (same.price.mode, same.price.multiplier) == ("batch", 1)
    regional = [key for key in book.keys if key.startswith("bedrock/eu-central-1/")]
    assert regional
    name = sorted(regional)[0].removeprefix("bedrock/eu-central-1/")
    for host in (
        "bedrock-runtime.eu-central-1.amazonaws.com",
        "vpce-0a1b-c2d3.bedrock-runtime.eu-central-1.vpce.amazonaws.com",
    ):
        cost = book.price_record(_record("bedrock", name, host))
        assert cost.price is not None
        assert cost.price.key == f"bedrock/eu-central-1/{name}"
