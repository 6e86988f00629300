"""What a call may cost: an upper bound wherever one exists, from its request alone.

A byte-level tokenizer makes at most one token of each UTF-8 byte, so the bytes of a request bound the tokens of its text. A
picture, a file and a recording are no text: each counts as a configured allowance of tokens, as does what a provider adds of
its own. The answer is bounded by what the request allows it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from flask_llm_cost.budgets.declaration import Allowance
from flask_llm_cost.pricing import PriceBook
from flask_llm_cost.records import COMPONENTS, CallRecord, Price, Usage

#: Operations whose reply is no text, so that no tokens of output are billed.
_NO_OUTPUT: Final = frozenset({"embeddings", "embed_content", "embed", "rerank", "ocr", "moderations", "speech", "images"})

#: Where a request caps its answer: the providers' own names for it.
_CAPS: Final = (
    ("max_completion_tokens",),
    ("max_output_tokens",),
    ("max_tokens",),
    ("generationConfig", "maxOutputTokens"),
    ("generation_config", "max_output_tokens"),
    ("inferenceConfig", "maxTokens"),
    ("maxOutputTokens",),
    ("textGenerationConfig", "maxTokenCount"),
    ("max_gen_len",),
    ("max_tokens_to_sample",),
    ("options", "num_predict"),
    ("completion_args", "max_tokens"),
)
_COUNTS: Final = (("n",), ("best_of",), ("generationConfig", "candidateCount"), ("num_generations",), ("num_images",))

#: Names of what the provider keeps on its side and reads again.
_CONTEXTS: Final = ("previous_response_id", "conversation", "cachedContent", "cached_content", "prompt")

#: Keys below which there is no text but a picture, a recording or a file.
_MEDIA: Final = frozenset(
    {
        "image_url", "input_audio", "inline_data", "inlineData", "file_data", "fileData", "file_id", "file", "b64_json",
        "bytes", "image", "audio", "video", "source",
    }
)  # fmt: skip
#: Keys of what a model reads as it is, though it be the text of a data URL.
_TEXTS: Final = frozenset({"text", "content", "prompt", "input", "inputs", "system", "instructions", "arguments"})
_DATA_URL: Final = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[^,;]*)*;base64,")
_ADDRESS: Final = re.compile(r"[a-z0-9]{2,5}://")
_LONG_ADDRESS: Final = 2_000
_MODES: Final = frozenset({"priority", "flex", "fast", "ultrafast"})
_SHORT: Final = 64
_USD: Final = "USD"
#: What else a model may be billed by, so that whatever it has a rate for is found.
_PROBES: Final = {"images": 1, "characters": 1, "audio_seconds": 1, "requests": 1, "image_output": 1}


@dataclass(frozen=True, slots=True)
class Request:
    """What a request says that its price depends on.

    :param text: UTF-8 bytes of everything that is no medium
    :param media: pictures, recordings and files
    :param tools: whether tools are offered
    :param context: how much of what is kept on the provider's side is read again
    :param output: tokens that the answer may have in all; ``None`` where the request does not say
    :param answers: how many are asked for
    :param sound: whether something in it, or asked for, is sound
    :param pictures: the same for pictures
    :param cached: whether it asks to be kept in a cache, and so to pay for writing; ``1h`` for an hour
    :param zone: the geography that it asks for, as a pricing mode
    """

    text: int
    media: int = 0
    tools: bool = False
    context: int = 0
    output: int | None = None
    answers: int = 1
    sound: bool = False
    pictures: bool = False
    cached: str | None = None
    mode: str | None = None
    zone: str | None = None


def read(content: bytes | None, length: int = 0) -> Request:
    """Read the body of a request. One that is no JSON is taken as so much text.

    :param content: ``None`` where it is sent piece by piece
    :param length: its length as announced, for that case
    """
    if content is None:
        return Request(length, media=1, context=0 if length else 1)
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        return Request(len(content), sound=True)
    media = list(_media(body))
    tools = bool(body.get("tools") or body.get("toolConfig") or body.get("functions"))
    context = sum(1 for name in _CONTEXTS if isinstance(body.get(name), dict if name == "prompt" else str | dict))
    answers = max(1, *(_whole(_at(body, path)) or 1 for path in _COUNTS)) * _prompts(body.get("prompt"))
    caps = [cap for path in _CAPS if (cap := _whole(_at(body, path))) is not None]
    mode, geo = body.get("service_tier") or body.get("speed"), body.get("inference_geo")
    lifetime = None
    if b'"cache_control"' in content or b'"cachePoint"' in content:
        lifetime = "1h" if b'"1h"' in content else "5m"
    return Request(
        text=max(0, len(content) - sum(media)),
        media=len(media),
        tools=tools,
        context=context,
        output=max(caps) * answers if caps else None,
        answers=answers,
        sound=b"audio" in content or b"AUDIO" in content,
        pictures=b"image" in content or b"IMAGE" in content,
        cached=lifetime,
        mode=mode if mode in _MODES else None,
        zone=f"residency:{geo[:32]}" if geo and isinstance(geo, str) else None,
    )


def _at(body: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    found: Any = body
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _whole(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 10**12:
        return None
    return int(value)


def _prompts(prompt: Any) -> int:
    """How many prompts are answered: a list has several, unless it is the tokens of one."""
    return max(1, sum(not isinstance(item, int) for item in prompt)) if isinstance(prompt, list) else 1


def _media(value: Any) -> Iterator[int]:
    """The bytes of each medium in a body: what is not text, and must not be counted as such."""
    waiting: list[Any] = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, list):
            waiting.extend(found)
        elif isinstance(found, Mapping):
            for key, item in found.items():
                if key in _MEDIA and isinstance(item, str | Mapping) and (data := _data(item)) is not None:
                    yield data
                elif key not in _TEXTS or not isinstance(item, str):
                    waiting.append(item)
        elif isinstance(found, str) and _DATA_URL.match(found) and found.isascii() and len(found.split(None, 1)) == 1:
            yield len(found)


def _data(medium: str | Mapping[str, Any]) -> int | None:
    """How many bytes of data a medium carries; ``None`` where it is text after all."""
    if isinstance(medium, str):
        return None if _reads_as_text(medium) else len(medium)
    if medium.get("type") == "text" or isinstance(medium.get("text"), str):
        return None
    parts = list(medium.values())
    parts += [inner for item in parts if isinstance(item, Mapping) for inner in item.values()]
    return sum(len(item) for item in parts if isinstance(item, str) and len(item) > _SHORT and not _reads_as_text(item))


def _reads_as_text(value: str) -> bool:
    """A tool of the app's own may call a text ``source``. Base64 has neither a space nor a letter beyond ASCII.

    Nor has an address, in the main: what begins like one, and is as short, is one.
    """
    return (" " in value or not value.isascii()) and not (len(value) < _LONG_ADDRESS and _ADDRESS.match(value))


@dataclass(frozen=True, slots=True)
class Tokens:
    """How many a call may use."""

    input: int
    output: int

    @property
    def total(self) -> int:
        return self.input + self.output


def tokens_of(request: Request, operation: str, allowance: Allowance, most: int, expected: bool) -> Tokens:
    """The tokens of a request: at most, or what is to be expected of one: a quarter of its bytes, and of its cap.

    :param most: tokens of one answer, where the request has no cap
    """
    text, output = request.text, request.output
    if output is None:
        output = 0 if operation in _NO_OUTPUT else most * request.answers
    if expected:
        text, output = -(-text // 4), -(-output // 4)
    added = allowance.template + (allowance.tools if request.tools else 0)
    context = request.context or operation == "conversations"  # which the provider keeps, with an agent's instructions
    added += allowance.media * request.media + allowance.context * context
    if operation == "images":
        output = allowance.media * request.answers
    return Tokens(text + added, output)


def cost_of(book: PriceBook, call: CallRecord, tokens: Tokens, request: Request, currency: str = _USD) -> Decimal | None:
    """What so many tokens cost at the dearest rates that may apply; ``None`` where the model has no price.

    :param call: what is known of the call before it is sent: its host decides with
    :param currency: of the rates; those in US dollars are taken where there are none in it
    """
    usage = Usage({"input": tokens.input, "output": tokens.output, **_PROBES})
    zones = {None, call.pricing_mode, request.zone}
    modes = {"+".join(filter(None, (mode, zone))) or None for mode in (None, request.mode) for zone in zones}
    costs = [book.price_record(replace(call, usage=usage, pricing_mode=mode)) for mode in modes]
    amounts: dict[str, Decimal] = {}
    for cost in costs:
        if cost.price is not None:
            amount = _dearest(cost.price, tokens, request)
            amounts[cost.currency] = max(amounts.get(cost.currency, amount), amount)
    found = amounts.get(currency, amounts.get(_USD))
    if found is None and any(cost.status == "free" for cost in costs):
        return Decimal(0)
    return found


def _dearest(price: Price, tokens: Tokens, request: Request) -> Decimal:
    each = {name: rate.rate / rate.per for name, rate in price.rates.items() if name in COMPONENTS}
    inputs = ["input"]
    if not price.key.startswith(("anthropic/", "bedrock/", "vertex/")):
        inputs.append("cache_write")
    elif request.cached:
        inputs += ("cache_write", "cache_write_1h") if request.cached == "1h" else ("cache_write",)
    outputs = ["output", "reasoning"]
    if request.media:
        inputs += ("image_input", "video_input")
    if request.sound:
        inputs.append("audio_input")
        outputs.append("audio_output")
    if request.pictures or not any(name in each for name in outputs):
        outputs.append("image_output")
    total = tokens.input * max((each[name] for name in inputs if name in each), default=Decimal(0))
    total += tokens.output * max((each[name] for name in outputs if name in each), default=Decimal(0))
    for name, quantity in (("requests", 1), ("characters", request.text), ("images", request.answers)):
        total += each.get(name, Decimal(0)) * quantity
    # Sound is hardly ever sent with less than a thousand bytes a second.
    seconds = Decimal(request.text) / 1000
    total += max(each.get("audio_seconds", Decimal(0)) * seconds, each.get("audio_minutes", Decimal(0)) * seconds / 60)
    return total


def dearest_model(book: PriceBook, provider: str, at: datetime, currency: str = _USD) -> str | None:
    """The model of a provider whose answers cost the most, for a call of a model that has no price.

    :param currency: of the rates; those in US dollars are taken where there are none in it
    """
    usage = Usage({"input": 1_000, "output": 1_000})
    dearest: dict[str, tuple[Decimal, str]] = {}
    for key in book.keys:
        name, _, model = key.partition("/")
        if name != provider:
            continue
        cost = book.price(provider, model, usage, None, at)
        if cost.total is not None:
            dearest[cost.currency] = max(dearest.get(cost.currency, (cost.total, model)), (cost.total, model))
    found = dearest.get(currency, dearest.get(_USD))
    return found[1] if found else None
