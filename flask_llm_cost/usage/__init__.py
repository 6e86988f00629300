"""From the wire to :class:`~flask_llm_cost.records.Usage`. This file is the only registry of hosts, paths and formats."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from flask_llm_cost.records import Reading, Usage
from flask_llm_cost.usage.anthropic import Messages
from flask_llm_cost.usage.format import Format, MalformedUsageError
from flask_llm_cost.usage.openai import ChatCompletions, Embeddings, Responses

__all__ = [
    "BILLED_BY_PROVIDER",
    "Format",
    "HostMap",
    "MalformedUsageError",
    "Route",
    "provider_format",
    "read_body",
    "read_json",
    "read_stream",
    "route",
]

_CHAT, _RESPONSES, _EMBEDDINGS, _MESSAGES = ChatCompletions(), Responses(), Embeddings(), Messages()

#: How a path ends, the operation that it is, and the format that it speaks.
_PATHS: Final[Mapping[str, tuple[str, Format]]] = {
    "/chat/completions": ("chat.completions", _CHAT),
    "/completions": ("completions", _CHAT),
    "/responses": ("responses", _RESPONSES),
    "/embeddings": ("embeddings", _EMBEDDINGS),
    "/messages": ("messages", _MESSAGES),
}
_PATH: Final = re.compile(r"(?:/chat/completions|/completions|/responses|/embeddings|/messages)/?\Z")

#: Calls that cost nothing, or nothing yet, on hosts where every other path is taken for a call.
_FREE: Final = re.compile(r"/(?:moderations|count_tokens|input_tokens|models|files|uploads|batches|vector_stores)(?:/|\Z)")

#: A host, or the end of one, and the provider behind it.
_HOSTS: Final[Mapping[str, str]] = {
    "api.openai.com": "openai",
    ".api.openai.com": "openai",
    ".openai.azure.com": "azure",
    ".cognitiveservices.azure.com": "azure",
    ".services.ai.azure.com": "azure",
    "api.anthropic.com": "anthropic",
    "openrouter.ai": "openrouter",
    "api.deepseek.com": "deepseek",
    "api.groq.com": "groq",
    "api.x.ai": "xai",
    ".api.x.ai": "xai",
    "api.mistral.ai": "mistral",
    "api.perplexity.ai": "perplexity",
    "api.together.xyz": "together",
    "api.together.ai": "together",
    "api.fireworks.ai": "fireworks",
    "api.cerebras.ai": "cerebras",
    "generativelanguage.googleapis.com": "gemini",
}

#: OpenAI's regional hosts hold the data in a zone, which some models charge for.
_RESIDENCY: Final[Mapping[str, str]] = {"us.api.openai.com": "residency:us", "eu.api.openai.com": "residency:eu"}

#: What a provider speaks where the path does not say. Any other speaks OpenAI's format.
_PROVIDER_FORMATS: Final[Mapping[str, Format]] = {"anthropic": _MESSAGES}

#: Providers whose OpenAI-shaped streams take ``stream_options.include_usage`` (from their public API references).
_TAKES_STREAM_OPTIONS: Final = frozenset(
    {"openai", "openrouter", "deepseek", "groq", "xai", "together", "fireworks", "cerebras"}
)

#: Providers whose reply says what they charged, so that their word is the bill.
BILLED_BY_PROVIDER: Final = frozenset({"openrouter"})

#: Headers by which the SDKs introduce themselves, or that only this provider's API has.
_FINGERPRINTS: Final = ("x-stainless-lang", "anthropic-version")
_USER_AGENTS: Final = re.compile(r"(?:Async)?(?:OpenAI|Anthropic|AzureOpenAI)(?:Bedrock|Vertex|Foundry)?/Python", re.ASCII)


@dataclass(frozen=True, slots=True)
class Route:
    """What a request looks like before it is sent.

    :param certain: whether host or SDK prove that this is a call; otherwise the shape of the reply decides
    :param residency: the pricing mode that the host alone implies
    :param takes_stream_options: whether a stream may be asked for its usage
    """

    provider: str
    operation: str
    format: Format
    certain: bool
    residency: str | None = None
    takes_stream_options: bool = False


class HostMap:
    """Which provider is behind a host: an app's ``LLM_COST_HOSTS`` first, then the hosts that everybody knows."""

    __slots__ = ("_configured", "_stream_usage")

    def __init__(self, configured: Mapping[str, str], stream_usage: bool | Sequence[str]) -> None:
        by_host: dict[str, list[tuple[str, str]]] = {}
        for key, provider in configured.items():
            host, slash, prefix = key.partition("/")
            by_host.setdefault(host, []).append((slash + prefix, provider))
        for entries in by_host.values():
            entries.sort(key=lambda entry: len(entry[0]), reverse=True)
        self._configured = by_host
        self._stream_usage = stream_usage

    def configured(self, host: str, path: str) -> str | None:
        """The provider that the app's configuration names for ``host``, ``host:port`` or the longest ``host/prefix``."""
        for name in (host, host.partition(":")[0]):
            for prefix, provider in self._configured.get(name, ()):
                if not prefix or path == prefix or path.startswith(prefix + "/"):
                    return provider
        return None

    def takes_stream_options(self, host: str, provider: str) -> bool:
        """Whether streams of this host may be asked for their usage."""
        if self._stream_usage is False:
            return False
        if self._stream_usage is not True and (host in self._stream_usage or host.partition(":")[0] in self._stream_usage):
            return True
        return provider in _TAKES_STREAM_OPTIONS


def route(hosts: HostMap, method: str, host: str, path: str, headers: Mapping[str, str], marked: bool) -> Route | None:
    """Recognise a call by its path, then by host, SDK or mark. ``None`` for almost all traffic.

    :param host: lower case, with its port where the URL has one
    :param marked: whether an SDK's own request method is on the stack
    """
    if method != "POST":
        return None
    found = _PATH.search(path)
    if found is None:
        return _route_on_mapped_host(hosts, host, path)
    operation, wire = _PATHS[found.group().rstrip("/")]
    provider = hosts.configured(host, path) or known_provider(host)
    certain = marked or provider is not None or _introduced(headers)
    name = provider or host
    return Route(
        provider=name,
        operation=operation,
        format=wire,
        certain=certain,
        residency=_RESIDENCY.get(host),
        takes_stream_options=wire is _CHAT and hosts.takes_stream_options(host, name),
    )


def _route_on_mapped_host(hosts: HostMap, host: str, path: str) -> Route | None:
    """On a host that the app named, a path that says nothing speaks the provider's format: the reply must fit it."""
    provider = hosts.configured(host, path)
    if provider is None or _FREE.search(path):
        return None
    operation = path.rstrip("/").rpartition("/")[2][:64]
    return Route(provider=provider, operation=operation, format=provider_format(provider), certain=False)


def provider_format(provider: str, usage: Mapping[str, Any] | None = None) -> Format:
    """The format that a provider speaks where nothing else says so.

    :param usage: a usage block of it, whose names tell OpenAI's two formats apart
    """
    wire = _PROVIDER_FORMATS.get(provider, _CHAT)
    return _RESPONSES if wire is _CHAT and usage is not None and "input_tokens" in usage else wire


def known_provider(host: str) -> str | None:
    """The provider behind a well-known host."""
    host = host.partition(":")[0]
    if (provider := _HOSTS.get(host)) is not None:
        return provider
    return next((name for end, name in _HOSTS.items() if end[0] == "." and host.endswith(end)), None)


def _introduced(headers: Mapping[str, str]) -> bool:
    return any(name in headers for name in _FINGERPRINTS) or bool(_USER_AGENTS.match(headers.get("user-agent", "")))


_LARGE: Final = 64 * 1024
_END_READ: Final = 8 * 1024


def read_body(found: Route, content: bytes) -> Reading | None:
    """Read a reply's body. ``None`` when it is not the reply of a call.

    :raises MalformedUsageError: when its usage block says something impossible
    """
    if found.format.usage_comes_last and len(content) > _LARGE and (body := _end_of_body(content)) is not None:
        return read_json(found, body)
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, Mapping):
        # A call all the same, if its host says so: one whose usage nobody can know.
        return Reading() if found.certain else None
    return read_json(found, body)


def read_json(found: Route, body: Mapping[str, Any]) -> Reading | None:
    """Read a reply's parsed body. ``None`` when it is not the reply of a call.

    :raises MalformedUsageError: when its usage block says something impossible
    """
    if not found.certain and not found.format.fits(body):
        return None
    return _as_served(found, found.format.read(body))


def read_stream(found: Route, events: Sequence[Mapping[str, Any]], ended: bool) -> Reading | None:
    """Read the events of a stream. ``None`` when it is not the stream of a call.

    :raises MalformedUsageError: when its usage block says something impossible
    """
    if not found.certain and not any(found.format.fits(event) for event in events):
        return None
    return _as_served(found, found.format.read_stream(events, ended))


def _as_served(found: Route, reading: Reading) -> Reading:
    if found.residency:
        reading = replace(reading, mode="+".join(filter(None, (reading.mode, found.residency))))
    usage = reading.usage
    if usage.billed is not None and found.provider not in BILLED_BY_PROVIDER:
        reading = replace(reading, usage=replace(usage, billed=None))
    return reading


_MODEL: Final = re.compile(rb'"model"\s*:\s*("(?:[^"\\]|\\.){0,512}")')
_USAGE: Final = re.compile(rb'"usage"\s*:\s*(?=\{)')


def _end_of_body(content: bytes) -> dict[str, Any] | None:
    """Usage and model from the end of a large body; ``None`` where they are not there, so that all of it must be read."""
    end = content[-_END_READ:]
    places = list(_USAGE.finditer(end))
    models = list(_MODEL.finditer(end)) or list(_MODEL.finditer(content[:_END_READ]))
    if not places or not models:
        return None
    try:
        usage, _ = json.JSONDecoder().raw_decode(end[places[-1].end() :].decode())
        return {"usage": usage, "model": json.loads(models[-1].group(1))}
    except ValueError:
        return None


#: Usage of which nothing is known, with the mark that says that a block was there and made no sense.
MALFORMED_USAGE: Final = Usage(flags=("usage_malformed",))
