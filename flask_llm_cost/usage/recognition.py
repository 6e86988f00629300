"""What a request looks like before it is sent, and which provider an app says is behind a host."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from flask_llm_cost.usage.first_look import first_look
from flask_llm_cost.usage.format import Format


@dataclass(frozen=True, slots=True)
class Route:
    """A request that is a call, as far as it can be told before the reply.

    :param certain: whether host or SDK prove that this is a call; otherwise the shape of the reply decides
    :param model: the model or deployment that the URL names
    :param residency: the pricing mode that the host alone implies
    :param takes_stream_options: whether a stream may be asked for its usage
    :param events: how a stream is framed where its content type does not tell: ``ndjson`` or ``json-array``
    :param believes_cost: whether the amount that the reply says was charged is the bill
    :param subject: the provider's id of what is asked for, where the path has one: of a response, a file, a batch
    """

    provider: str
    operation: str
    format: Format
    certain: bool
    model: str | None = None
    residency: str | None = None
    takes_stream_options: bool = False
    events: str | None = None
    believes_cost: bool = False
    subject: str | None = None


#: Hosts that a provider is played on while a test runs, for all apps of the process.
_played: Final[dict[str, list[tuple[str, str]]]] = {}


@contextmanager
def playing(hosts: Mapping[str, str]) -> Iterator[None]:
    """Let every app take *hosts*, written as in ``LLM_COST_HOSTS``, for the providers that they play."""
    added: dict[str, list[tuple[str, str]]] = {}
    for key, provider in hosts.items():
        host, slash, prefix = key.partition("/")
        added.setdefault(host, []).append((slash + prefix, provider))
    _played.update(added)
    first_look.teach(hosts=added)
    try:
        yield
    finally:
        for host in added:
            _played.pop(host, None)


class HostMap:
    """Which provider is behind a host: an app's ``LLM_COST_HOSTS`` first, then the hosts that everybody knows."""

    __slots__ = ("_configured", "_stream_usage", "formats")

    def __init__(
        self, configured: Mapping[str, str], stream_usage: bool | Sequence[str], formats: Sequence[Format] = ()
    ) -> None:
        by_host: dict[str, list[tuple[str, str]]] = {}
        for key, provider in configured.items():
            host, slash, prefix = key.partition("/")
            by_host.setdefault(host, []).append((slash + prefix, provider))
        for entries in by_host.values():
            entries.sort(key=lambda entry: len(entry[0]), reverse=True)
        self._configured = by_host
        self._stream_usage = stream_usage
        #: What ``costs.register_format`` taught this app, the latest first.
        self.formats: tuple[Format, ...] = ()
        first_look.teach(hosts=by_host)
        for wire in reversed(formats):
            self.register(wire)

    def register(self, wire: Format) -> None:
        """Teach a wire shape. It is asked before those that are built in.

        :raises ValueError: it has no name, or neither paths nor hosts by which a call could be recognised
        """
        if not wire.name or not (wire.paths or wire.hosts):
            raise ValueError("a format needs a name, and paths or hosts by which its calls are recognised")
        self.formats = (wire, *self.formats)
        first_look.teach(ends=() if wire.hosts else map(_end, wire.paths), hosts=wire.hosts)

    def registered(self, host: str, path: str) -> Format | None:
        """The app's own format for a request, where it has one."""
        for wire in self.formats:
            if wire.hosts and host not in wire.hosts and host.partition(":")[0] not in wire.hosts:
                continue
            if not wire.paths or path.rstrip("/").endswith(tuple(wire.paths)):
                return wire
        return None

    def configured(self, host: str, path: str) -> str | None:
        """The provider that the app's configuration names for ``host``, ``host:port`` or the longest ``host/prefix``."""
        for name in (host, host.partition(":")[0]):
            entries: list[tuple[str, str]] = [*self._configured.get(name, ()), *_played.get(name, ())]
            for prefix, provider in entries:
                if not prefix or path == prefix or path.startswith(prefix + "/"):
                    return provider
        return None

    def takes_stream_options(self, host: str, known: bool) -> bool:
        """Whether streams of this host may be asked for their usage.

        :param known: whether the provider is known to accept it
        """
        if self._stream_usage is False:
            return False
        if self._stream_usage is not True and (host in self._stream_usage or host.partition(":")[0] in self._stream_usage):
            return True
        return known


#: Headers by which the SDKs introduce themselves, or that only this provider's API has.
_FINGERPRINTS: Final = ("x-stainless-lang", "anthropic-version", "x-goog-api-client")
_USER_AGENTS: Final = re.compile(
    r"(?:Async)?(?:OpenAI|Anthropic|AzureOpenAI)(?:Bedrock|Vertex|Foundry|AWS)?/Python|google-genai-sdk/|ollama-python/|"
    r"mistral-client-python/",
    re.ASCII,
)


def introduced(headers: Mapping[str, str]) -> bool:
    """Whether a request's headers, by lower-case name, say that a provider's SDK sends it."""
    return any(name in headers for name in _FINGERPRINTS) or bool(_USER_AGENTS.match(headers.get("user-agent", "")))


def _end(path: str) -> str:
    """The pattern of a path's end that an app gave: whole segments, or the end of one."""
    pattern = re.escape(path.strip("/")).replace(":", "(?::|%3[Aa])")
    return pattern if path[:1] == "/" else "[^/?#]*" + pattern
