"""Undo ``Content-Encoding`` on a copy: a transport sees compressed bytes, the client above it sees text."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Iterator
from typing import Any, Final, Protocol


class Decoder(Protocol):
    """Decodes a stream, piece by piece. What a piece becomes comes in parts, so that a bomb takes no memory."""

    def decode(self, piece: bytes) -> Iterator[bytes]: ...


#: A bomb stops here: what one piece may become, and how much of that at once.
_MAX_PIECE: Final = 4 * 1024 * 1024
_AT_ONCE: Final = 256 * 1024

#: So much goes into a decoder that cannot be told how much may come out.
_SLICE: Final = 8


def _bounded(parts: Iterator[bytes]) -> Iterator[bytes]:
    length = 0
    for part in parts:
        length += len(part)
        if length > _MAX_PIECE:
            raise ValueError("a piece becomes too large")
        yield part


class _Inflate:
    """``gzip``, and ``deflate`` with its header or without, as some servers send it."""

    def __init__(self, window: int) -> None:
        self._inflate = zlib.decompressobj(window) if window > zlib.MAX_WBITS else None
        self._beginning = b""

    def decode(self, piece: bytes) -> Iterator[bytes]:
        return _bounded(self._parts(piece))

    def _parts(self, piece: bytes) -> Iterator[bytes]:
        if self._inflate is None:
            # Two bytes tell whether there is a header (RFC 1950: method 8, and a multiple of 31).
            self._beginning += piece
            if len(self._beginning) < 2:
                return
            piece, first = self._beginning, int.from_bytes(self._beginning[:2], "big")
            has_header = first >> 8 & 0x0F == 8 and first % 31 == 0
            self._inflate = zlib.decompressobj(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)
        while piece:
            yield self._inflate.decompress(piece, _AT_ONCE)
            piece = self._inflate.unconsumed_tail


class _Brotli:
    """``br``, by the packages that the HTTP clients use for it."""

    def __init__(self, decompressor: Any) -> None:
        if not hasattr(decompressor, "can_accept_more_data"):
            # Before 1.2 a few bytes become 16 MiB and more, whoever asks.
            raise LookupError("br")
        self._decompressor = decompressor

    def decode(self, piece: bytes) -> Iterator[bytes]:
        return _bounded(self._parts(piece))

    def _parts(self, piece: bytes) -> Iterator[bytes]:
        yield self._decompressor.process(piece, output_buffer_limit=_AT_ONCE)
        while not self._decompressor.can_accept_more_data():
            yield self._decompressor.process(b"", output_buffer_limit=_AT_ONCE)


class _Zstd:
    """``zstd``, by the package ``zstandard``, or by what is in newer Pythons."""

    def __init__(self, decompressor: Any) -> None:
        self._decompressor = decompressor

    def decode(self, piece: bytes) -> Iterator[bytes]:
        return _bounded(self._parts(piece))

    def _parts(self, piece: bytes) -> Iterator[bytes]:
        decompressor = self._decompressor
        if not hasattr(decompressor, "needs_input"):
            for start in range(0, len(piece), _SLICE):
                yield decompressor.decompress(piece[start : start + _SLICE])
            return
        yield decompressor.decompress(piece, _AT_ONCE)
        while not (decompressor.needs_input or decompressor.eof):
            yield decompressor.decompress(b"", _AT_ONCE)


def decoder_for(encoding: str) -> Decoder | None:
    """A decoder for a ``Content-Encoding``; ``None`` where there is nothing to undo.

    :raises LookupError: when the encoding is unknown, or its package is not installed or cannot be held to a size
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
            return _Brotli(_first_module("brotlicffi", "brotli").Decompressor())
        if encoding == "zstd":
            return _zstd()
    except ImportError:
        raise LookupError(encoding) from None
    raise LookupError(encoding)


def _zstd() -> Decoder:
    module = _first_module("compression.zstd", "backports.zstd", "zstandard")
    stream = module.ZstdDecompressor()
    return _Zstd(stream.decompressobj() if hasattr(stream, "decompressobj") else stream)


def _first_module(*names: str) -> Any:
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError(names[0])
