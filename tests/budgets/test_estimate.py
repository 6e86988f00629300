"""What a budget holds for a call, from its request alone: a bound where one exists, and an allowance where none does."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from flask_llm_cost.budgets.declaration import Allowance
from flask_llm_cost.budgets.estimate import Request, Tokens, cost_of, dearest_model, read, tokens_of
from flask_llm_cost.pricing import PriceBook
from flask_llm_cost.records import CallRecord, new_call_id

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
ALLOWANCE = Allowance(template=7, tools=100, media=5_000, context=32_000)
PICTURE = "iVBORw0KGgo" * 10_000
DEFAULT = 4096


def sent(body: Any) -> Request:
    return read(json.dumps(body, ensure_ascii=False).encode())


def counted(request: Request, *, expected: bool = False, operation: str = "chat.completions") -> Tokens:
    return tokens_of(request, operation, ALLOWANCE, DEFAULT, expected)


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


def cost(entry: Any, request: Request, tokens: Tokens, *, key: str = "acme/m", **known: Any) -> Decimal | None:
    provider, _, model = key.partition("/")
    return cost_of(PriceBook.load(overrides={key: entry}), call(provider, model, **known), tokens, request)


def call(provider: str, model: str | None, **known: Any) -> CallRecord:
    return CallRecord(
        id=new_call_id(), occurred_at=NOW, provider=provider, operation="chat.completions", model=model, **known
    )


@pytest.mark.parametrize("text", ["hello there", "größer", "漢字仮名", "🧮" * 100, 'quoted "text"\n'])
def test_every_byte_may_be_a_token(text: str) -> None:
    """The text of a request counts with all of its UTF-8 bytes, however few characters they are."""
    body = said(text)
    assert counted(sent(body)).input == len(json.dumps(body, ensure_ascii=False).encode()) + ALLOWANCE.template
    assert sent(body).text >= len(text.encode())


@pytest.mark.parametrize(
    ("more", "added"),
    [
        ({}, 0),
        ({"tools": []}, 0),
        ({"tools": [{"type": "web_search"}]}, 100),
        ({"toolConfig": {"tools": [1]}}, 100),
        ({"functions": [{"name": "f"}]}, 100),
        ({"previous_response_id": "resp_1"}, 32_000),
        ({"cachedContent": "cachedContents/1"}, 32_000),
        ({"conversation": {"id": "conv_1"}}, 32_000),
        ({"prompt": {"id": "pmpt_1"}}, 32_000),
        ({"prompt": "a text is no stored prompt"}, 0),
        ({"tools": [1], "previous_response_id": "resp_1"}, 32_100),
    ],
)
def test_what_the_provider_adds_has_an_allowance(more: dict[str, Any], added: int) -> None:
    """Its template always, offered tools once, and each thing that it keeps and reads again."""
    body = said("hello", **more)
    assert counted(sent(body)).input == len(json.dumps(body)) + 7 + added


def test_a_conversation_reads_what_the_provider_keeps() -> None:
    """Its path alone says that there is more to read: what was said before, an agent's instructions."""
    body = {"inputs": "hello"}
    assert counted(sent(body), operation="conversations").input == len(json.dumps(body)) + 7 + 32_000


@pytest.mark.parametrize(
    ("more", "output"),
    [
        ({}, 4096),
        ({"max_tokens": 50}, 50),
        ({"max_completion_tokens": 50}, 50),
        ({"max_output_tokens": 50}, 50),
        ({"maxOutputTokens": 50}, 50),
        ({"generationConfig": {"maxOutputTokens": 50}}, 50),
        ({"generation_config": {"max_output_tokens": 50}}, 50),
        ({"inferenceConfig": {"maxTokens": 50}}, 50),
        ({"textGenerationConfig": {"maxTokenCount": 50}}, 50),
        ({"max_gen_len": 50}, 50),
        ({"max_tokens_to_sample": 50}, 50),
        ({"options": {"num_predict": 50}}, 50),
        ({"completion_args": {"max_tokens": 50}}, 50),
        ({"max_tokens": 50, "max_completion_tokens": 70}, 70),
        ({"max_tokens": 50, "n": 3}, 150),
        ({"max_tokens": 50, "best_of": 4, "n": 2}, 200),
        ({"generationConfig": {"maxOutputTokens": 50, "candidateCount": 3}}, 150),
        ({"max_tokens": 50, "prompt": "hello"}, 50),
        ({"max_tokens": 50, "prompt": ["hello"] * 20}, 1_000),
        ({"max_tokens": 50, "prompt": [[1, 2, 3], [4]]}, 100),
        ({"max_tokens": 50, "prompt": [1, 2, 3]}, 50),
        ({"max_tokens": 50, "prompt": []}, 50),
        ({"max_tokens": 50, "prompt": ["hello"] * 3, "n": 2}, 300),
        ({"prompt": ["hello"] * 3}, 3 * 4096),
        ({"n": 3}, 3 * 4096),
        ({"max_tokens": 50, "n": 0}, 50),
        ({"max_tokens": None}, 4096),
        ({"max_tokens": True}, 4096),
        ({"max_tokens": "50"}, 4096),
        ({"max_tokens": -1}, 4096),
        ({"max_tokens": 0}, 4096),
        ({"max_tokens": 10**30}, 4096),
        ({"generationConfig": [50]}, 4096),
    ],
)
def test_a_cap_bounds_the_answer(more: dict[str, Any], output: int) -> None:
    """By each provider's own name for it, times answers and prompts; what is no number of tokens is no cap."""
    assert counted(sent(said("hello", **more))).output == output


@pytest.mark.parametrize("operation", ["embeddings", "embed_content", "rerank", "moderations", "speech"])
def test_what_has_no_answer_of_text_holds_none(operation: str) -> None:
    """Nothing is held for output that cannot come."""
    assert counted(sent({"model": "m", "input": "hello"}), operation=operation).output == 0


def test_pictures_that_are_made_have_the_allowance_of_media() -> None:
    """Each picture that is asked for counts as one medium of output."""
    assert counted(sent({"model": "m", "prompt": "a cat", "n": 3}), operation="images").output == 3 * ALLOWANCE.media


def test_expected_is_a_quarter_of_what_may_be() -> None:
    """Of the bytes and of the cap, rounded up; the allowances are what is expected already."""
    request = sent(said("hello " * 100, max_tokens=101, tools=[1]))
    most, expected = counted(request), counted(request, expected=True)
    added = ALLOWANCE.template + ALLOWANCE.tools
    assert expected.output == 26
    assert expected.input - added == -(-(most.input - added) // 4)
    assert expected.total == expected.input + 26
    assert counted(sent(said("hello")), expected=True).output == DEFAULT // 4


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}},
        {"type": "input_image", "image_url": f"data:image/png;base64,{PICTURE}"},
        {"type": "input_audio", "input_audio": {"data": PICTURE, "format": "wav"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}},
        {"inline_data": {"mime_type": "image/png", "data": PICTURE}},
        {"inlineData": {"mimeType": "image/png", "data": PICTURE}},
        {"image": {"format": "png", "source": {"bytes": PICTURE}}},
        {"type": "document_url", "document_url": f"data:application/pdf;base64,{PICTURE}"},
        {"type": "image", "data": f"data:image/svg+xml;charset=utf-8;base64,{PICTURE}"},
        {"image_url": {"url": f"data:image/png;base64,{PICTURE}"}},
        {"image_url": "https://example.com/画像 1.png"},
    ],
)
def test_a_medium_is_no_text(part: dict[str, Any]) -> None:
    """It counts as the allowance, not with its bytes; and two of them count twice."""
    plain = len(json.dumps(said("hello")))
    for count in (1, 2):
        request = sent({"model": "m", "messages": [{"content": [{"type": "text", "text": "hello"}, *[part] * count]}]})
        assert request.media == count
        assert plain < counted(request).input - count * ALLOWANCE.media < plain + count * 200


def test_a_medium_by_its_address_counts_too() -> None:
    """What is only named is fetched by the provider: its address is text, and it has the allowance."""
    body = said("x") | {
        "messages": [{"content": [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]}]
    }
    assert counted(sent(body)).input == len(json.dumps(body)) + 7 + ALLOWANCE.media


@pytest.mark.parametrize(
    ("part", "media"),
    [
        ({"type": "document", "source": {"type": "text", "data": "word " * 5_000}}, 0),
        ({"document": {"format": "txt", "source": {"text": "word " * 5_000}}}, 0),
        ({"type": "tool_use", "input": {"source": "word " * 5_000}}, 0),
        ({"type": "tool_use", "input": {"file": {"body": "word " * 5_000}}}, 1),
        ({"type": "tool_use", "input": {"source": "漢字仮名" * 5_000}}, 0),
        ({"type": "tool_use", "input": {"source": "word" * 300 + " word" * 5_000}}, 0),
        ({"type": "tool_use", "input": {"source": "data: " + "word " * 5_000}}, 0),
        ({"type": "tool_use", "input": {"note": "data: " + "word " * 5_000}}, 0),
        ({"type": "tool_use", "input": {"note": "data:" + "漢字仮名" * 5_000}}, 0),
        ({"type": "tool_use", "input": {"note": "data:text/plain;base64,漢字" * 5_000}}, 0),
        ({"type": "tool_use", "input": {"note": "data:text/plain;base64,word " * 5_000}}, 0),
        ({"type": "tool_use", "input": {"note": "data:text/plain;base64," + "word\n" * 5_000}}, 0),
        ({"type": "text", "text": "data: " + "word " * 5_000}, 0),
        ({"type": "text", "text": f"data:image/png;base64,{PICTURE}"}, 0),
        ({"content": f"data:image/png;base64,{PICTURE}"}, 0),
    ],
)
def test_a_text_is_text_whatever_it_is_called(part: dict[str, Any], media: int) -> None:
    """A document of text, an argument of a tool that has a medium's name, and what begins with ``data:`` or says all of a
    picture's address in a message count with all of their bytes, in whatever script."""
    body = {"messages": [{"content": [part]}]}
    assert (sent(body).media, sent(body).text) == (media, len(json.dumps(body, ensure_ascii=False).encode()))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[1, 2]", b'"text"', b"[" * 100_000, b"--boundary\r\n"])
def test_an_unreadable_body_is_so_much_text(content: bytes) -> None:
    """What is no JSON object bounds its tokens all the same, and is answered up to the model's maximum."""
    request = read(content)
    assert (request.text, request.output) == (len(content), None)
    assert counted(request) == Tokens(len(content) + 7, DEFAULT)


def test_a_body_that_is_sent_piece_by_piece_has_its_announced_length() -> None:
    """It may be a medium as well; and where not even its length is known, it counts as a kept conversation."""
    assert counted(read(None, 1_000)).input == 1_000 + 7 + ALLOWANCE.media
    assert counted(read(None)).input == 7 + ALLOWANCE.media + ALLOWANCE.context


ONE = Tokens(1_000_000, 0)


@pytest.mark.parametrize(
    ("key", "entry", "more", "dollars"),
    [
        ("acme/m", {"input": "2", "output": "9"}, {}, "2"),
        ("acme/m", {"input": "2", "cache_read": "0.2", "cache_write": "2.5", "output": "9"}, {}, "2.5"),
        # Anthropic writes only what the request asks it to.
        ("anthropic/m", {"input": "2", "cache_write": "2.5", "cache_write_1h": "4", "output": "9"}, {}, "2"),
        (
            "anthropic/m",
            {"input": "2", "cache_write": "2.5", "cache_write_1h": "4", "output": "9"},
            {"system": [{"cache_control": {"type": "ephemeral"}}]},
            "2.5",
        ),
        (
            "anthropic/m",
            {"input": "2", "cache_write": "2.5", "cache_write_1h": "4", "output": "9"},
            {"system": [{"cache_control": {"type": "ephemeral", "ttl": "1h"}}]},
            "4",
        ),
        # A million tokens are more than the tier's bound.
        (
            "acme/m",
            {"rates": {"input": "2", "output": "9"}, "tiers": [{"above": 200000, "rates": {"input": "5", "output": "9"}}]},
            {},
            "5",
        ),
        (
            "acme/m",
            {"rates": {"input": "2", "output": "9"}, "tiers": [{"above": 2000000, "rates": {"input": "5", "output": "9"}}]},
            {},
            "2",
        ),
        # A mode that is asked for may be served or not: the dearer of both.
        (
            "acme/m",
            {"rates": {"input": "2", "output": "9"}, "modes": {"priority": {"input": "6", "output": "9"}}},
            {"service_tier": "priority"},
            "6",
        ),
        (
            "acme/m",
            {"rates": {"input": "2", "output": "9"}, "modes": {"flex": {"input": "1", "output": "4"}}},
            {"service_tier": "flex"},
            "2",
        ),
        ("acme/m", {"input": "2", "audio_input": "40", "output": "9"}, {}, "2"),
        ("acme/m", {"input": "2", "audio_input": "40", "output": "9"}, {"modalities": ["text", "audio"]}, "40"),
    ],
)
def test_input_is_held_at_the_dearest_rate_that_may_apply(key: str, entry: Any, more: dict[str, Any], dollars: str) -> None:
    """A million tokens of input: plain, written to a cache, above a tier, in the mode asked for, or as sound."""
    assert cost(entry, sent(said("hello", **more)), ONE, key=key) == Decimal(dollars)


@pytest.mark.parametrize(
    ("key", "known", "more", "dollars"),
    [
        ("openai/m", {}, {}, "2"),
        ("openai/m", {"host": "eu.api.openai.com", "pricing_mode": "residency:eu"}, {}, "2.2"),
        ("openai/m", {"pricing_mode": "residency:eu"}, {"service_tier": "priority"}, "6.6"),
        # No factor is known for this place: it is not less than elsewhere.
        ("openai/m", {"pricing_mode": "residency:mars"}, {}, "2"),
        ("anthropic/m", {}, {"inference_geo": "us"}, "2.4"),
        ("anthropic/m", {}, {"inference_geo": ["us"]}, "2"),
        ("vertex/m", {"host": "europe-west1-aiplatform.googleapis.com"}, {}, "2.2"),
        ("vertex/m", {"host": "aiplatform.googleapis.com"}, {}, "2"),
    ],
)
def test_where_a_call_goes_may_make_it_dearer(key: str, known: Any, more: dict[str, Any], dollars: str) -> None:
    """What the host implies, or the request asks for, is in the hold: by region, and together with a mode."""
    entry = {
        "rates": {"input": "2", "output": "9"},
        "modes": {"priority": {"input": "6", "output": "9"}},
        "multipliers": {"residency:eu": "1.1", "residency:us": "1.2"}
        if not key.startswith("vertex/")
        else {"residency:*": "1.1"},
    }
    assert cost(entry, sent(said("hello", **more)), ONE, key=key, **known) == Decimal(dollars)


def test_a_deployment_costs_what_its_alias_says() -> None:
    """On Azure a hold is taken at the price that the call will be recorded with."""
    book = PriceBook.load(
        overrides={"azure/big": {"input": "20", "output": "90"}, "azure/small": {"input": "2", "output": "9"}},
        aliases={"azure/res/small": "azure/big"},
    )
    asked = call("azure", "small", host="res.openai.azure.com")
    assert cost_of(book, asked, ONE, sent(said("hello"))) == 20


def test_a_picture_in_the_request_may_cost_the_rate_of_pictures() -> None:
    """Where a medium is sent, input is held at the dearest rate of media, too."""
    entry = {"input": "2", "image_input": "8", "output": "9"}
    part = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    assert cost(entry, sent({"messages": [{"content": [part]}]}), ONE) == 8
    assert cost(entry, sent(said("hello")), ONE) == 2


def test_output_is_held_at_the_dearest_rate_that_may_apply() -> None:
    """Reasoning that is priced apart counts, and the fee of a request is added."""
    request = sent(said("hello"))
    assert cost({"input": "0", "output": "9", "reasoning": "12"}, request, Tokens(0, 1_000_000)) == 12
    assert cost({"input": "0", "output": "9", "requests": "0.25"}, request, Tokens(0, 1_000_000)) == Decimal("9.25")


def test_a_model_without_a_price_has_no_estimate() -> None:
    """Unknown is not zero, and neither is another currency; what is free is zero."""
    book = PriceBook.load(
        overrides={"acme/euro": {"rates": {"input": "2", "output": "9"}, "currency": "EUR"}}, aliases={"ollama/*": "free"}
    )
    request = sent(said("hello"))
    for provider, model in (("acme", "nobody-knows"), ("acme", "euro"), ("acme", None), ("", "m")):
        assert cost_of(book, call(provider, model), ONE, request) is None
    assert cost_of(book, call("ollama", "llama"), ONE, request) == 0


def test_the_dearest_model_of_a_provider() -> None:
    """By what the same call would cost; none where the provider has no price at all."""
    book = PriceBook.load(overrides={"acme/a": {"input": "2", "output": "9"}, "acme/b": {"input": "1", "output": "20"}})
    assert dearest_model(book, "acme", NOW) == "b"
    assert dearest_model(book, "nobody", NOW) is None


def test_amounts_in_different_currencies_are_not_compared() -> None:
    """The dearest rates are those in the currency that is asked for, else in dollars, never in whichever has more units."""
    yen = {"currency": "JPY", "rates": {"input": "900", "output": "900"}}
    euros = {"currency": "EUR", "rates": {"input": "1", "output": "1"}}
    book = PriceBook.load(overrides={"acme/a": {"input": "2", "output": "2"}, "acme/b": euros, "acme/c": yen})
    assert [dearest_model(book, "acme", NOW, currency) for currency in ("USD", "EUR", "JPY", "GBP")] == ["a", "b", "c", "a"]
    found = [cost_of(book, call("acme", "b"), ONE, sent(said("x")), currency) for currency in ("EUR", "USD", "GBP")]
    assert [amount is not None for amount in found] == [True, False, False]
