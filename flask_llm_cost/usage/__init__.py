"""From the wire to :class:`~flask_llm_cost.records.Usage`. This file is the only registry of hosts, paths and formats."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from flask_llm_cost.usage.anthropic import Messages
from flask_llm_cost.usage.format import Format, MalformedUsageError
from flask_llm_cost.usage.openai import ChatCompletions, Embeddings, Responses
from flask_llm_cost.usage.reading import MALFORMED_USAGE, read_body, read_json, read_stream, scanner
from flask_llm_cost.usage.recognition import HostMap, Route

__all__ = [
    "BILLED_BY_PROVIDER",
    "MALFORMED_USAGE",
    "Format",
    "HostMap",
    "MalformedUsageError",
    "Route",
    "provider_format",
    "read_body",
    "read_json",
    "read_stream",
    "route",
    "scanner",
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
        takes_stream_options=wire is _CHAT and hosts.takes_stream_options(host, name in _TAKES_STREAM_OPTIONS),
        believes_cost=name in BILLED_BY_PROVIDER,
    )


def _route_on_mapped_host(hosts: HostMap, host: str, path: str) -> Route | None:
    """On a host that the app named, a path that says nothing speaks the provider's format: the reply must fit it."""
    provider = hosts.configured(host, path)
    if provider is None or _FREE.search(path):
        return None
    operation = path.rstrip("/").rpartition("/")[2][:64]
    return Route(
        provider=provider,
        operation=operation,
        format=provider_format(provider),
        certain=False,
        believes_cost=provider in BILLED_BY_PROVIDER,
    )


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
