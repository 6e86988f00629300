"""Undoing a Content-Encoding on our copy of a reply."""

from __future__ import annotations

import gzip
import zlib

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
}


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_every_encoding_is_undone_piece_by_piece(name: str, size: int) -> None:
    """Whatever the encoding and the size of the pieces, the text comes out whole."""
    decoder = decoder_for(name.rpartition(" ")[2])
    assert decoder is not None
    encoded = ENCODED[name]
    pieces = [encoded[start : start + size] for start in range(0, len(encoded), size)]
    assert b"".join(map(decoder.decode, pieces)) == TEXT


def test_what_cannot_be_undone_is_an_error() -> None:
    """An unknown encoding is a LookupError, none at all needs no decoder, and a bomb stops."""
    with pytest.raises(LookupError):
        decoder_for("secret")
    assert decoder_for("identity") is None
    decoder = decoder_for("gzip")
    assert decoder is not None
    with pytest.raises(ValueError, match="too large"):
        decoder.decode(gzip.compress(b"\0" * 50_000_000))
