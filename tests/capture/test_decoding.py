"""Undoing a Content-Encoding on our copy of a reply."""

from __future__ import annotations

import contextlib
import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard

from flask_llm_cost.capture.decoding import decoder_for

TEXT = b"data: {}\n\n" * 500

RAW = zlib.compressobj(wbits=-zlib.MAX_WBITS)
ENCODED = {
    "gzip": gzip.compress(TEXT),
    "deflate": zlib.compress(TEXT),
    "raw deflate": RAW.compress(TEXT) + RAW.flush(),
    "br": brotli.compress(TEXT),
    "zstd": zstandard.compress(TEXT),
    "frames of zstd": b"".join(zstandard.compress(TEXT[start : start + 100]) for start in range(0, len(TEXT), 100)),
    "listed gzip, br": brotli.compress(gzip.compress(TEXT)),
    "listed br, identity": brotli.compress(TEXT),
}


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_every_encoding_is_undone_piece_by_piece(name: str, size: int) -> None:
    """Whatever the encoding and the size of the pieces, the text comes out whole."""
    decoder = decoder_for(name.partition("listed ")[2] or name.rpartition(" ")[2])
    assert decoder is not None
    encoded = ENCODED[name]
    pieces = [encoded[start : start + size] for start in range(0, len(encoded), size)]
    assert b"".join(part for piece in pieces for part in decoder.decode(piece)) == TEXT


def test_what_cannot_be_undone_is_an_error() -> None:
    """An unknown encoding, or too many of them, is a LookupError, and none at all needs no decoder."""
    with pytest.raises(LookupError):
        decoder_for("secret")
    with pytest.raises(LookupError):
        decoder_for(", ".join(["gzip"] * 5))
    assert decoder_for("identity") is None


WRONG = (ValueError, EOFError, zlib.error, brotli.error, zstandard.ZstdError)


def packed_quickly(text: bytes) -> bytes:
    return brotli.compress(text, quality=2)


BOMB = b"\0" * 50_000_000


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("br", packed_quickly), ("zstd", zstandard.compress)],
)
def test_a_bomb_stops(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    """What becomes fifty megabytes stops at four, and is in memory by parts of a quarter of one."""
    decoder = decoder_for(encoding)
    assert decoder is not None
    packed, parts = pack(BOMB), []
    tracemalloc.start()
    with pytest.raises(ValueError, match="too large"):
        parts += (len(part) for part in decoder.decode(packed))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(parts) <= 4 * 1024 * 1024
    assert peak < 1024 * 1024


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_a_codec_that_is_not_the_one_that_was_said(encoding: str) -> None:
    """Text that is not encoded as it says is an error of the package, or nothing: never other text."""
    decoder = decoder_for(encoding)
    assert decoder is not None
    said = b""
    with contextlib.suppress(*WRONG):
        for start in range(0, len(TEXT), 100):
            said += b"".join(decoder.decode(TEXT[start : start + 100]))
    assert said == b""
