"""From the wire to :class:`~flask_llm_cost.records.Usage`. This file is the only registry of hosts, paths and formats."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote

from flask_llm_cost.usage.anthropic import Messages
from flask_llm_cost.usage.any_shape import AnyShape
from flask_llm_cost.usage.batches import (
    AnthropicBatch,
    AnthropicBatchCreation,
    AnthropicBatchState,
    BatchState,
    GeminiBatchCreation,
    GeminiBatchFile,
    OpenAIBatch,
    OpenAIBatchCreation,
)
from flask_llm_cost.usage.bedrock import Converse, Invoke
from flask_llm_cost.usage.cohere import Chat, Embed, Rerank
from flask_llm_cost.usage.first_look import first_look
from flask_llm_cost.usage.format import Format, MalformedUsageError
from flask_llm_cost.usage.gemini import EmbedContent, GenerateContent, Predict
from flask_llm_cost.usage.mistral import Conversations, Ocr
from flask_llm_cost.usage.ollama import Generate
from flask_llm_cost.usage.openai import ChatCompletions, ChatThinkingBeside, Embeddings
from flask_llm_cost.usage.openai_media import Images, Speech, TranscriptionEvents, Transcriptions
from flask_llm_cost.usage.openai_realtime import Realtime
from flask_llm_cost.usage.openai_responses import Responses, SettledResponses
from flask_llm_cost.usage.reading import (
    MALFORMED_USAGE,
    BodyCollector,
    batch_news,
    fed_scanner,
    read_body,
    read_json,
    read_stream,
    scanner,
)
from flask_llm_cost.usage.recognition import HostMap, Route, introduced

__all__ = [
    "BILLED_BY_PROVIDER",
    "MALFORMED_USAGE",
    "BodyCollector",
    "Format",
    "HostMap",
    "MalformedUsageError",
    "Route",
    "batch_news",
    "fed_scanner",
    "first_look",
    "known_provider",
    "known_route",
    "named_format",
    "provider_format",
    "read_body",
    "read_json",
    "read_stream",
    "route",
    "scanner",
    "stream_format",
]

_CHAT, _RESPONSES, _SETTLED, _EMBEDDINGS = ChatCompletions(), Responses(), SettledResponses(), Embeddings()
_CHAT_THINKING_BESIDE, _REALTIME = ChatThinkingBeside(), Realtime()
_IMAGES, _TRANSCRIPTIONS, _SPEECH, _MESSAGES = Images(), Transcriptions(), Speech(), Messages()
_CONTENT, _EMBED_CONTENT, _CONVERSE, _INVOKE = GenerateContent(), EmbedContent(), Converse(), Invoke()
_COHERE, _COHERE_EMBED, _RERANK, _OLLAMA, _CONVERSATIONS = Chat(), Embed(), Rerank(), Generate(), Conversations()

#: Those that can be told by their shape, those first that say most about themselves.
_BY_SHAPE: Final[tuple[Format, ...]] = (
    _IMAGES, _SPEECH, TranscriptionEvents(), _REALTIME, _RESPONSES, _CONVERSATIONS, _MESSAGES, _CONTENT, _CONVERSE, _COHERE,
    _OLLAMA, _CHAT,
)  # fmt: skip
_ANY: Final = AnyShape(_BY_SHAPE)

#: How the path of a POST ends, the operation that it is, and the format that it speaks.
_PATHS: Final[Mapping[str, tuple[str, Format]]] = {
    "/chat/completions": ("chat.completions", _CHAT),
    "/completions": ("completions", _CHAT),
    "/responses": ("responses", _RESPONSES),
    "/responses/compact": ("responses.compact", _RESPONSES),
    "/embeddings": ("embeddings", _EMBEDDINGS),
    "/images/generations": ("images.generations", _IMAGES),
    "/images/edits": ("images.edits", _IMAGES),
    "/images/variations": ("images.variations", _IMAGES),
    "/audio/transcriptions": ("audio.transcriptions", _TRANSCRIPTIONS),
    "/audio/translations": ("audio.translations", _TRANSCRIPTIONS),
    "/audio/speech": ("audio.speech", _SPEECH),
    "/batches": ("batch", OpenAIBatchCreation()),
    "/messages": ("messages", _MESSAGES),
    "/messages/batches": ("batch", AnthropicBatchCreation()),
    "/v1/chat": ("chat", _COHERE),
    "/v2/chat": ("chat", _COHERE),
    "/v1/embed": ("embed", _COHERE_EMBED),
    "/v2/embed": ("embed", _COHERE_EMBED),
    "/rerank": ("rerank", _RERANK),
    "/ocr": ("ocr", Ocr()),
    "/conversations": ("conversations", _CONVERSATIONS),
    "/api/chat": ("chat", _OLLAMA),
    "/api/generate": ("generate", _OLLAMA),
    "/api/embed": ("embed", _OLLAMA),
}

#: What a path with a name in it ends with: the method, the pattern, the operation, the format, the framing of its stream.
#: ``model`` is the model's name, ``subject`` the provider's id of what is asked for.
_PATTERNS: Final[tuple[tuple[str, str, str, Format, str | None], ...]] = (
    ("WEBSOCKET", r"/realtime", "realtime", _REALTIME, None),
    ("WEBSOCKET", r"/responses", "responses", _RESPONSES, None),
    ("GET", r"/responses/(?P<subject>[^/]+)", "responses", _SETTLED, None),
    ("POST", r"/responses/(?P<subject>[^/]+)/cancel", "responses", _SETTLED, None),
    ("POST", r"/conversations/[^/]+(?:/restart)?", "conversations", _CONVERSATIONS, None),
    ("GET", r"/files/(?P<subject>[^/]+)/content", "batch", OpenAIBatch(), "ndjson"),
    ("GET", r"/messages/batches/(?P<subject>[^/]+)/results", "batch", AnthropicBatch(), "ndjson"),
    ("GET", r"/messages/batches(?:/[^/]+)?", "batch", AnthropicBatchState(), None),
    ("GET", r"/batches(?:/(?P<subject>[^/]+))?", "batch", BatchState(), None),
    ("POST", r"/batches/(?P<subject>[^/]+)/cancel", "batch", BatchState(), None),
    ("GET", r"/files/(?P<subject>[^/]+):download", "batch", GeminiBatchFile(), "ndjson"),
    ("POST", r"/(?:models|tunedModels|endpoints)/(?P<model>[^/:]+):generateContent", "generate_content", _CONTENT, None),
    (
        "POST",
        r"/(?:models|tunedModels|endpoints)/(?P<model>[^/:]+):streamGenerateContent",
        "generate_content",
        _CONTENT,
        "json-array",
    ),
    (
        "POST",
        r"/models/(?P<model>[^/:]+):(?:batchGenerateContent|asyncBatchEmbedContent)",
        "batch",
        GeminiBatchCreation(),
        None,
    ),
    ("POST", r"/models/(?P<model>[^/:]+):(?:embedContent|batchEmbedContents)", "embed_content", _EMBED_CONTENT, None),
    ("POST", r"/models/(?P<model>[^/:]+):predict", "predict", Predict(), None),
    ("POST", r"/publishers/anthropic/models/(?P<model>[^/:]+):(?:rawPredict|streamRawPredict)", "messages", _MESSAGES, None),
    ("POST", r"/models/(?P<model>[^/:]+):(?:rawPredict|streamRawPredict)", "raw_predict", _ANY, None),
    ("POST", r"/model/(?P<model>.{1,1024})/converse(?:-stream)?", "converse", _CONVERSE, None),
    ("POST", r"/model/(?P<model>.{1,1024})/invoke(?:-with-response-stream)?", "invoke_model", _INVOKE, None),
)
_MATCHERS: Final = tuple(
    (method, re.compile(pattern + r"/?\Z"), operation, wire, events)
    for method, pattern, operation, wire, events in _PATTERNS
)

#: How the path of a call ends. Some clients write a colon as %3A.
_ENDS: Final = (
    *(re.escape(path[1:]) for path in _PATHS),
    r"responses/[^/]+(?:/cancel)?|files/[^/]+(?:/content|(?::|%3[Aa])download)|messages/batches/[^/]+(?:/results)?",
    r"batches/[^/]+(?:/cancel)?|(?:models|tunedModels|endpoints)/[^/:]+(?::|%3[Aa])\w+",
    r"model/.{1,1024}/(?:invoke|converse)(?:-[a-z-]+)?|conversations/[^/]+(?:/restart)?|realtime",
)
_PATH: Final = re.compile("/(?:" + "|".join(_ENDS) + r")/?\Z")
first_look.teach(ends=_ENDS)

#: Azure's URL names the deployment, in the older style.
_DEPLOYMENT: Final = re.compile(r"/openai/deployments/(?P<model>[^/]+)/")

#: Calls that cost nothing, or nothing yet, on hosts where every other path is taken for a call.
_FREE: Final = re.compile(
    r"/(?:moderations|count_tokens|input_tokens|models|files|uploads|batches|vector_stores|api/(?:tags|show|ps|version))(?:/|\Z)"
    r"|/(?:chat/completions/chatcmpl-[^/]+|threads/[^/]+/runs/run_[^/]+|cachedContents(?:/.+)?)\Z"  # stored, with its usage
    r"|:(?:countTokens|batchGenerateContent|asyncBatchEmbedContent)\Z|/count-tokens:"
)

#: A host, or the end of one, and the provider behind it.
_HOSTS: Final[Mapping[str, str]] = {
    "api.openai.com": "openai",
    ".api.openai.com": "openai",
    ".openai.azure.com": "azure",
    ".openai.azure.us": "azure",
    ".cognitiveservices.azure.com": "azure",
    ".cognitiveservices.azure.us": "azure",
    ".services.ai.azure.com": "azure",
    ".api.cognitive.microsoft.com": "azure",
    "api.anthropic.com": "anthropic",
    "generativelanguage.googleapis.com": "gemini",
    "generativelanguage.mtls.googleapis.com": "gemini",
    "aiplatform.googleapis.com": "vertex",
    "aiplatform.mtls.googleapis.com": "vertex",
    "openrouter.ai": "openrouter",
    "api.deepseek.com": "deepseek",
    "api.groq.com": "groq",
    "api.x.ai": "xai",
    ".api.x.ai": "xai",
    "api.mistral.ai": "mistral",
    "codestral.mistral.ai": "mistral",
    "api.perplexity.ai": "perplexity",
    "api.together.xyz": "together",
    "api.together.ai": "together",
    "api.fireworks.ai": "fireworks",
    "api.cerebras.ai": "cerebras",
    "api.cohere.com": "cohere",
    "api.cohere.ai": "cohere",
    "dashscope.aliyuncs.com": "dashscope",
    "dashscope-intl.aliyuncs.com": "dashscope",
    "ollama.com": "ollama",
    "localhost:11434": "ollama",
    "127.0.0.1:11434": "ollama",
}

#: Hosts with a region in their name.
_REGIONAL: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (
        re.compile(
            r"(?:vpce-[a-z0-9-]{1,64}\.)?bedrock(?:-runtime|-mantle)?(?:-fips)?\.[a-z0-9-]{1,32}\."
            r"(?:(?:vpce\.)?amazonaws\.com(?:\.cn)?|api\.aws)"
        ),
        "bedrock",
    ),
    (
        re.compile(
            r"[a-z0-9-]{1,32}-aiplatform(?:\.mtls)?\.googleapis\.com|aiplatform\.[a-z0-9-]{1,32}\.rep\.googleapis\.com"
        ),
        "vertex",
    ),
    (re.compile(r"aws-external-anthropic\.[a-z0-9-]{1,32}\.api\.aws"), "anthropic"),
)

#: OpenAI's regional hosts hold the data in a zone, which some models charge for.
_RESIDENCY: Final[Mapping[str, str]] = {"us.api.openai.com": "residency:us", "eu.api.openai.com": "residency:eu"}

#: What a provider speaks where nothing else says so. Any other speaks OpenAI's format.
_PROVIDER_FORMATS: Final[Mapping[str, Format]] = {
    "anthropic": _MESSAGES,
    "gemini": _CONTENT,
    "vertex": _CONTENT,
    "bedrock": _CONVERSE,
    "cohere": _COHERE,
    "ollama": _OLLAMA,
}

#: Providers that count thoughts beside the completion where they speak OpenAI's format.
_THINK_BESIDE: Final = frozenset({"gemini", "vertex", "xai"})

#: Names in a usage block that only one format has.
_TELLING: Final[tuple[tuple[str, Format], ...]] = (
    ("connector_tokens", _CONVERSATIONS),
    ("input_token_details", _REALTIME),
    ("prompt_tokens", _CHAT),
    ("promptTokenCount", _CONTENT),
    ("totalTokenCount", _CONTENT),
    ("inputTokens", _CONVERSE),
    ("billed_units", _COHERE),
    ("eval_count", _OLLAMA),
    ("prompt_eval_count", _OLLAMA),
    ("cache_creation_input_tokens", _MESSAGES),
    ("cache_read_input_tokens", _MESSAGES),
)

#: Providers whose OpenAI-shaped streams take ``stream_options.include_usage`` (from their public API references).
#: Not OpenRouter: it always sends the event with the usage, which is then the app's own.
_TAKES_STREAM_OPTIONS: Final = frozenset({"openai", "deepseek", "groq", "xai", "together", "fireworks", "cerebras"})

#: Providers whose reply says what they charged, so that their word is the bill.
BILLED_BY_PROVIDER: Final = frozenset({"openrouter", "perplexity", "xai"})


def route(hosts: HostMap, method: str, host: str, path: str, headers: Mapping[str, str], marked: bool) -> Route | None:
    """Recognise a call by its path, then by host, SDK or mark. ``None`` for almost all traffic.

    :param host: lower case, with its port where the URL has one
    :param method: of HTTP, or ``WEBSOCKET`` for a connection that has become one
    :param marked: whether an SDK's own request method is on the stack
    """
    if method not in ("POST", "GET", "WEBSOCKET"):
        return None
    if hosts.formats and (wire := hosts.registered(host, path)) is not None and method == "POST":
        return _route_of_registered(hosts, host, path, wire)
    end = _PATH.search(path)
    if end is None:
        return _route_on_mapped_host(hosts, host, path) if method == "POST" else None
    found = _operation(method, path, end.group().rstrip("/"))
    if found is None:
        return None
    operation, wire, model, events, subject = found
    provider = hosts.configured(host, path) or known_provider(host)
    name = provider or host
    certain = marked or provider is not None or introduced(headers)
    if operation in ("batch", "conversations") and not certain:
        return None  # ordinary words, and files: on a host that nobody knows they are somebody else's
    if wire is _CONVERSATIONS:
        if provider in ("openai", "azure"):
            return None  # they keep conversations at the same address: to make one costs nothing, and no budget is asked
        certain = provider == "mistral"
    return Route(
        provider=name,
        operation=operation,
        format=_CHAT_THINKING_BESIDE if wire is _CHAT and name in _THINK_BESIDE else wire,
        certain=certain,
        model=model,
        residency=_RESIDENCY.get(host.partition(":")[0]),
        takes_stream_options=wire is _CHAT and hosts.takes_stream_options(host, name in _TAKES_STREAM_OPTIONS),
        events=events,
        believes_cost=name in BILLED_BY_PROVIDER,
        subject=subject,
    )


def _operation(method: str, path: str, end: str) -> tuple[str, Format, str | None, str | None, str | None] | None:
    """``(operation, format, model, framing, subject)`` of a path that ends like a call's."""
    if method == "POST":
        if (plain := _PATHS.get(end)) is not None:
            deployment = _DEPLOYMENT.search(path)
            return *plain, unquote(deployment["model"]) if deployment else None, None, None
        if "/count-tokens:" in path:
            return None
    for asked, pattern, operation, wire, events in _MATCHERS:
        if asked == method and (found := pattern.search(path)) is not None:
            names = found.groupdict()
            model, subject = names.get("model"), names.get("subject")
            return operation, wire, unquote(model) if model else None, events, subject
    return None


def _route_of_registered(hosts: HostMap, host: str, path: str, wire: Format) -> Route:
    """A call whose format the app itself taught: a host that the format names is proof enough."""
    named = hosts.configured(host, path) or wire.provider or known_provider(host)
    return Route(
        provider=named or host,
        operation=path.rstrip("/").rpartition("/")[2][:64],
        format=wire,
        certain=bool(wire.hosts or named),
        believes_cost=True,
    )


def _route_on_mapped_host(hosts: HostMap, host: str, path: str) -> Route | None:
    """On a host that the app named, a path that says nothing speaks any format: the reply must fit it."""
    provider = hosts.configured(host, path)
    if provider is None or _FREE.search(path):
        return None
    return Route(
        provider=provider,
        operation=path.rstrip("/").rpartition("/")[2][:64],
        format=stream_format(provider),
        certain=False,
        takes_stream_options=hosts.takes_stream_options(host, known=False),
        believes_cost=provider in BILLED_BY_PROVIDER,
    )


def provider_format(provider: str, usage: Mapping[str, Any] | None = None) -> Format:
    """The format that a provider speaks where nothing else says so.

    :param usage: a usage block of it, whose names tell formats apart
    """
    wire = _PROVIDER_FORMATS.get(provider, _CHAT)
    if usage is not None:
        told = next((wire for name, wire in _TELLING if name in usage), None)
        if told is not None:
            return told
        if "input_tokens" in usage:
            return _RESPONSES if wire is _CHAT else _MESSAGES
    return wire


def stream_format(provider: str) -> Format:
    """What reads a reply of a provider whatever its shape; where no shape tells, it is read as the provider's own."""
    own = _PROVIDER_FORMATS.get(provider, _CHAT)
    if own is _CONVERSE:  # what models speak in InvokeModel, and Bedrock's own count of it
        return AnyShape((own, *_BY_SHAPE[:-1], _INVOKE))
    return _ANY if own is _CHAT else AnyShape((own, *_BY_SHAPE, own))


def named_format(provider: str, taught: Sequence[Format] = ()) -> Format:
    """What reads a stream of which only the provider is known.

    :param taught: the app's own formats, which are asked first, by their provider's name and their own
    """
    return next((wire for wire in taught if provider in (wire.provider, wire.name)), None) or stream_format(provider)


def known_route(provider: str, operation: str, wire: Format, model: str | None) -> Route:
    """A call that somebody else saw, and says whose it was."""
    own = wire.provider == provider or wire.name == provider
    return Route(provider, operation, wire, certain=True, model=model, believes_cost=own or provider in BILLED_BY_PROVIDER)


@functools.lru_cache(maxsize=256)
def known_provider(host: str) -> str | None:
    """The provider behind a well-known host."""
    name = host.partition(":")[0]
    if (provider := _HOSTS.get(host) or _HOSTS.get(name)) is not None:
        return provider
    provider = next((provider for end, provider in _HOSTS.items() if end[0] == "." and name.endswith(end)), None)
    return provider or next((provider for pattern, provider in _REGIONAL if pattern.fullmatch(name)), None)
