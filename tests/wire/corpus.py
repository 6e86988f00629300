"""The wire corpus: one JSON file per shape, with what was asked, what came back and what is to be read from it.

Load it from anywhere (``shapes()``). :meth:`Shape.content` and :meth:`Shape.pieces` are the reply's bytes in its own
framing, so that the same shapes can be played over real HTTP to any client library.

A file has

- ``note``: where the shape is from
- ``provider``, ``method`` (``WEBSOCKET`` where each event is a message), ``host``, ``path``, and ``hosts``
  (``LLM_COST_HOSTS``) where it needs any
- ``request``: JSON, or ``{"multipart": fields}``
- ``reply``: ``content_type``, ``headers``, and ``body``, or ``events`` with their ``framing``, or ``base64``; ``cut`` where
  the connection ends early, ``failed`` where the stream says that it failed, ``done`` where ``[DONE]`` comes, ``names``
  where events have an ``event`` line
- ``sdk``: the type of the provider's SDK that the body, or each event, is an instance of
- ``since``: the oldest versions of libraries that are known to read it whole; with older ones they are not asked
- ``expected``: ``null`` where the request is no call, else a list of readings, empty where the reply shows that it was none.
  Of a reading, ``components``, ``model``, ``mode``, ``source`` and ``flags`` are always given; other keys where they matter
"""

from __future__ import annotations

import base64
import functools
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.version import Version

DIRECTORY = Path(__file__).parent / "shapes"


@dataclass(frozen=True)
class Shape:
    """One file of the corpus."""

    name: str
    note: str
    provider: str
    method: str
    host: str
    path: str
    request: Any
    reply: Mapping[str, Any]
    expected: list[dict[str, Any]] | None
    hosts: Mapping[str, str] = field(default_factory=dict)
    sdk: str | None = None
    since: Mapping[str, str] = field(default_factory=dict)

    def known_to(self, library: str) -> bool:
        """Whether the installed version of *library* is not older than this shape."""
        return library not in self.since or Version(metadata.version(library)) >= Version(self.since[library])

    @property
    def streamed(self) -> bool:
        return "events" in self.reply

    @property
    def cut(self) -> bool:
        """Whether the connection ends before the reply does."""
        return bool(self.reply.get("cut"))

    @property
    def failed(self) -> bool:
        """Whether the stream itself says that it failed."""
        return bool(self.reply.get("failed"))

    @property
    def content_type(self) -> str:
        return str(self.reply["content_type"])

    @property
    def headers(self) -> dict[str, str]:
        """The reply's headers."""
        return {"content-type": self.content_type, **self.reply.get("headers", {})}

    @property
    def request_content(self) -> bytes:
        """The body of the request, in JSON or as a form."""
        if self.request is None:
            return b""
        if "multipart" not in self.request:
            return json.dumps(self.request).encode()
        fields = (
            f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in self.request["multipart"].items()
        )
        return "".join((*fields, "--b--\r\n")).encode()

    def pieces(self) -> list[bytes]:
        """The reply in the pieces in which a server would send it."""
        if not self.streamed:
            if "base64" in self.reply:
                return [base64.b64decode(self.reply["base64"])]
            return [json.dumps(self.reply["body"], ensure_ascii=False).encode()]
        return _FRAMINGS[self.reply["framing"]](self.reply)

    def content(self) -> bytes:
        """The whole reply."""
        return b"".join(self.pieces())


def _sse(reply: Mapping[str, Any]) -> list[bytes]:
    pieces = []
    for event in reply["events"]:
        if set(event) == {"comment"}:
            pieces.append(f": {event['comment']}\n\n".encode())
            continue
        name = f"event: {event['type']}\n" if reply.get("names") else ""
        pieces.append(f"{name}data: {json.dumps(event, ensure_ascii=False)}\n\n".encode())
    if reply.get("done"):
        pieces.append(b"data: [DONE]\n\n")
    return pieces


def _lines(reply: Mapping[str, Any]) -> list[bytes]:
    return [json.dumps(event, ensure_ascii=False).encode() + b"\n" for event in reply["events"]]


def _json_array(reply: Mapping[str, Any]) -> list[bytes]:
    pieces = [
        (b"[" if number == 0 else b",\r\n") + json.dumps(event, ensure_ascii=False, indent=2).encode() + b"\n"
        for number, event in enumerate(reply["events"])
    ]
    return pieces if reply.get("cut") else [*pieces, b"]"]


def _aws(reply: Mapping[str, Any]) -> list[bytes]:
    pieces = []
    for event in reply["events"]:
        ((kind, payload),) = event.items()
        if kind == "chunk":
            payload = {"bytes": base64.b64encode(json.dumps(payload).encode()).decode(), "p": "abcdefgh"}
        pieces.append(aws_frame(kind, json.dumps(payload, ensure_ascii=False).encode()))
    return pieces


def aws_frame(kind: str, payload: bytes, message_type: str = "event") -> bytes:
    """One frame of ``application/vnd.amazon.eventstream``, checksums included."""
    headers = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + len(value).to_bytes(2, "big") + value.encode()
        for name, value in (
            (f":{message_type}-type", kind),
            (":content-type", "application/json"),
            (":message-type", message_type),
        )
    )
    prelude = (12 + len(headers) + len(payload) + 4).to_bytes(4, "big") + len(headers).to_bytes(4, "big")
    frame = prelude + zlib.crc32(prelude).to_bytes(4, "big") + headers + payload
    return frame + zlib.crc32(frame).to_bytes(4, "big")


_FRAMINGS = {"sse": _sse, "ndjson": _lines, "json-array": _json_array, "aws": _aws}


@functools.cache
def shapes() -> tuple[Shape, ...]:
    """Every shape, by name."""
    return tuple(
        Shape(name=path.stem, **json.loads(path.read_text(encoding="utf-8"))) for path in sorted(DIRECTORY.glob("*.json"))
    )
