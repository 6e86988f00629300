"""Undo ``Content-Encoding`` on a copy: a transport sees compressed bytes, the client above it sees text."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol

from flask_llm_cost.log import log


class Decoder(Protocol):
    """Decodes a stream, piece by piece. What a piece becomes comes in parts, so that a bomb takes no memory."""

    def decode(self, piece: bytes) -> Iterator[bytes]: ...


#: A bomb stops here: what one piece may become, and how much of that at once.
_MAX_PIECE: Final = 4 * 1024 * 1024
_AT_ONCE: Final = 256 * 1024

#: So much goes into a decoder at once, and into one that cannot be told how much may come out.
_INPUT: Final = 4096
_SLICE: Final = 8

#: The length of a checksum, which may come in one piece with all of the text.
_CHECKSUM: Final = 8

#: More encodings than this, one upon another, are an attack.
_MAX_ENCODINGS: Final = 4


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
        # What precedes a checksum is text, also where that is wrong.
        for part in (piece[:-_CHECKSUM], piece[-_CHECKSUM:]):
            while part:
                yield self._inflate.decompress(part, _AT_ONCE)
                part = self._inflate.unconsumed_tail


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
    """``zstd``, by the package ``zstandard``, or by what is in newer Pythons. A stream may be several frames."""

    def __init__(self, decompressor: Callable[[], Any]) -> None:
        self._new = decompressor
        self._decompressor = decompressor()
        self._is_bounded = hasattr(self._decompressor, "needs_input")

    def decode(self, piece: bytes) -> Iterator[bytes]:
        return _bounded(self._parts(piece))

    def _parts(self, piece: bytes) -> Iterator[bytes]:
        start = 0
        while start < len(piece):
            if self._decompressor.eof:
                self._decompressor = self._new()
            part = piece[start : start + (_INPUT if self._is_bounded else _SLICE)]
            yield from self._of_frame(part)
            start += len(part) - (len(self._decompressor.unused_data) if self._decompressor.eof else 0)

    def _of_frame(self, piece: bytes) -> Iterator[bytes]:
        decompressor = self._decompressor
        if not self._is_bounded:
            yield decompressor.decompress(piece)
            return
        yield decompressor.decompress(piece, _AT_ONCE)
        while not (decompressor.needs_input or decompressor.eof):
            yield decompressor.decompress(b"", _AT_ONCE)


class _Chain:
    """Several encodings, the one that was put on last first."""

    def __init__(self, decoders: Sequence[Decoder]) -> None:
        self._decoders = decoders

    def decode(self, piece: bytes) -> Iterator[bytes]:
        parts: Iterator[bytes] = iter((piece,))
        for decoder in self._decoders:
            parts = _each(decoder, parts)
        return _bounded(parts)


def _each(decoder: Decoder, parts: Iterator[bytes]) -> Iterator[bytes]:
    for part in parts:
        yield from decoder.decode(part)


class Tolerant:
    """Decodes as far as it goes: an error is one log line, and what came before it counts."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.failed = False

    def decode(self, piece: bytes) -> Iterator[bytes]:
        if self.failed:
            return
        try:
            yield from self._decoder.decode(piece)
        except Exception as error:
            self.failed = True
            log.warning("decoding a reply failed with %s: what comes after that is not counted", type(error).__name__)


def decoder_for(encoding: str) -> Decoder | None:
    """A decoder for a ``Content-Encoding``, which may be a list; ``None`` where there is nothing to undo.

    :raises LookupError: when the encoding is unknown, or its package is not installed or cannot be held to a size
    """
    encodings = [name for part in encoding.lower().split(",") if (name := part.strip()) not in ("", "identity")]
    if len(encodings) > _MAX_ENCODINGS:
        raise LookupError(encoding)
    decoders = [_decoder_of(name) for name in reversed(encodings)]
    return _Chain(decoders) if len(decoders) > 1 else decoders[0] if decoders else None


def _decoder_of(encoding: str) -> Decoder:
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

    def decompressor() -> Any:
        stream = module.ZstdDecompressor()
        return stream.decompressobj() if hasattr(stream, "decompressobj") else stream

    return _Zstd(decompressor)


def _first_module(*names: str) -> Any:
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError(names[0])
