"""Undo ``Content-Encoding`` on a copy: a transport sees compressed bytes, the client above it sees text."""

from __future__ import annotations

import importlib
import zlib
from typing import Any, Final, Protocol


class Decoder(Protocol):
    """Decodes a stream, piece by piece."""

    def decode(self, piece: bytes) -> bytes: ...


#: A bomb stops here: what one piece may become.
_MAX_PIECE: Final = 4 * 1024 * 1024


class _Inflate:
    """``gzip``, and ``deflate`` with its header or without, as some servers send it."""

    def __init__(self, window: int) -> None:
        self._inflate = zlib.decompressobj(window) if window > zlib.MAX_WBITS else None
        self._beginning = b""

    def decode(self, piece: bytes) -> bytes:
        if self._inflate is None:
            # Two bytes tell whether there is a header (RFC 1950: method 8, and a multiple of 31).
            self._beginning += piece
            if len(self._beginning) < 2:
                return b""
            piece, first = self._beginning, int.from_bytes(self._beginning[:2], "big")
            has_header = first >> 8 & 0x0F == 8 and first % 31 == 0
            self._inflate = zlib.decompressobj(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)
        decoded = self._inflate.decompress(piece, _MAX_PIECE)
        if self._inflate.unconsumed_tail:
            raise ValueError("a piece becomes too large")
        return decoded


class _Optional:
    """``br`` and ``zstd``, by the packages that the HTTP clients use for them."""

    def __init__(self, decompressor: Any) -> None:
        self._decompress = getattr(decompressor, "process", None) or decompressor.decompress

    def decode(self, piece: bytes) -> bytes:
        decoded: bytes = self._decompress(piece)
        if len(decoded) > _MAX_PIECE:
            raise ValueError("a piece becomes too large")
        return decoded


def decoder_for(encoding: str) -> Decoder | None:
    """A decoder for a ``Content-Encoding``; ``None`` where there is nothing to undo.

    :raises LookupError: when the encoding is unknown, or its package is not installed
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding in ("gzip", "x-gzip"):
        return _Inflate(zlib.MAX_WBITS | 16)
    if encoding == "deflate":
        return _Inflate(zlib.MAX_WBITS)
    try:
        if encoding == "br":
            return _Optional(_first_module("brotlicffi", "brotli").Decompressor())
        if encoding == "zstd":
            return _zstd()
    except ImportError:
        raise LookupError(encoding) from None
    raise LookupError(encoding)


def _zstd() -> Decoder:
    module = _first_module("compression.zstd", "backports.zstd", "zstandard")
    stream = module.ZstdDecompressor()
    return _Optional(stream.decompressobj() if hasattr(stream, "decompressobj") else stream)


def _first_module(*names: str) -> Any:
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError(names[0])
