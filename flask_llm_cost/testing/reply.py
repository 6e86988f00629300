"""How one reply of the played provider goes over the wire."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

from flask_llm_cost.testing.exchange import Exchange, Json, event


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A reply, queued or made up. The fields are the parameters of :meth:`PlayedProvider.reply_with`."""

    body: Json | bytes | str | None = None
    events: Sequence[Json | bytes | str] | None = None
    usage: Json | None = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    encoding: str | None = None
    chunk_size: int | Literal["line"] | None = None
    delay: float = 0.0
    cut_after: int | None = None

    def response_headers(self) -> dict[str, str]:
        """The headers, those of the caller last."""
        request_id = "req_" + uuid4().hex
        kind = "text/event-stream; charset=utf-8" if self.events is not None else "application/json"
        headers = {"Content-Type": kind, "x-request-id": request_id, "request-id": request_id}
        if self.encoding:
            headers["Content-Encoding"] = self.encoding
        own = {name.lower() for name in self.headers}
        return {name: value for name, value in headers.items() if name.lower() not in own} | dict(self.headers)

    def pieces(self) -> list[bytes]:
        """The body in the pieces that are sent, encoded."""
        pieces = [_event_bytes(item) for item in self.events] if self.events is not None else [_body_bytes(self.body)]
        if self.encoding:
            pieces = [_compress(self.encoding, b"".join(pieces))]
        whole = b"".join(pieces)
        if self.chunk_size == "line":
            return whole.splitlines(keepends=True) or [b""]
        if self.chunk_size:
            return [whole[start : start + self.chunk_size] for start in range(0, len(whole), self.chunk_size)] or [b""]
        return pieces or [b""]

    def exchange(self, asked_model: str) -> Exchange:
        """What a reply of the caller's own says of itself: model, id and usage, wherever its shape has them."""
        model, response_id, usage = asked_model, None, dict[str, Any]()
        for document in self._documents():
            for part in (document, document.get("message"), document.get("response")):
                if isinstance(part, Mapping):
                    model = part["model"] if isinstance(part.get("model"), str) and part["model"] else model
                    response_id = part["id"] if isinstance(part.get("id"), str) else response_id
                    if isinstance(block := part.get("usage"), Mapping):
                        usage |= {key: value for key, value in block.items() if value is not None}
        return Exchange(model, usage=self.usage or usage or None, response_id=response_id)

    def _documents(self) -> Iterator[Mapping[str, Any]]:
        for item in self.events if self.events is not None else [self.body]:
            if isinstance(item, (str, bytes)):
                text = item.decode(errors="replace") if isinstance(item, bytes) else item
                lines = [line.removeprefix("data:") for line in text.splitlines()] if self.events is not None else [text]
                for line in lines:
                    try:
                        found = json.loads(line)
                    except ValueError:
                        continue
                    if isinstance(found, dict):
                        yield found
            elif item is not None:
                yield item


def _event_bytes(item: Json | bytes | str) -> bytes:
    if isinstance(item, bytes):
        return item
    if isinstance(item, str):
        return f"data: {item}\n\n".encode()
    return event(item, item.get("type"))


def _body_bytes(body: Json | bytes | str | None) -> bytes:
    if isinstance(body, bytes):
        return body
    if isinstance(body, str):
        return body.encode()
    return b"" if body is None else json.dumps(body).encode()


def _compress(encoding: str, data: bytes) -> bytes:
    if encoding == "gzip":
        return gzip.compress(data)
    if encoding == "deflate":
        return zlib.compress(data)
    if encoding == "br":
        import brotli  # type: ignore[import-untyped, import-not-found, unused-ignore] # optional, has no stubs

        return bytes(brotli.compress(data))
    if encoding == "zstd":
        import zstandard

        return zstandard.compress(data)
    raise ValueError(f"cannot encode as {encoding!r}; gzip, deflate, br and zstd are known")
