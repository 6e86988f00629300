"""What an app gets in place of a reply's stream in ``httpx`` and ``httpx2``."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from types import ModuleType
from typing import Any

from flask_llm_cost.capture.observation import Observation


def _bytes_of(decoded: bytes | Iterator[bytes]) -> bytes:
    """What a decoder gives: bytes in ``httpx``, pieces of them in ``httpx2``."""
    return decoded if isinstance(decoded, bytes) else b"".join(decoded)


class _Observed:
    """A reply's body, the library's own, which answers for all that is not its iteration and its end."""

    def __init__(self, stream: Any, observation: Observation, decoder: Any) -> None:
        self._stream = stream
        self._observation = observation
        self._decoder = decoder
        self._ended = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_stream"], name)


@functools.lru_cache(maxsize=4)
def stream_classes(module: ModuleType) -> tuple[type, type]:
    """The libraries check the type of a stream, so each needs classes of its own."""

    class ObservedStream(_Observed, module.SyncByteStream):  # type: ignore[name-defined, misc]  # one of two modules
        """A reply's body on its way to the app. May be iterated more than once; :meth:`close` ends it."""

        def __iter__(self) -> Iterator[bytes]:
            feed, withholds, decoder = self._observation.feed, self._observation.withheld is not None, self._decoder
            try:
                for piece in self._stream:
                    seen = feed(piece if decoder is None else _bytes_of(decoder.decode(piece)))
                    if seen or not withholds:
                        yield seen
                if decoder is not None and (seen := feed(_bytes_of(decoder.flush()))):
                    yield seen
                self._ended = True
                if rest := self._observation.rest():
                    yield rest
            except GeneratorExit:
                raise
            except BaseException as error:
                self._observation.closed(False, error)
                raise

        def close(self) -> None:
            try:
                self._stream.close()
            finally:
                self._observation.closed(self._ended)

    class ObservedAsyncStream(_Observed, module.AsyncByteStream):  # type: ignore[name-defined, misc]  # one of two modules
        """The same for an async client; :meth:`aclose` ends it."""

        async def __aiter__(self) -> AsyncIterator[bytes]:
            feed, withholds, decoder = self._observation.feed, self._observation.withheld is not None, self._decoder
            pieces = self._stream.__aiter__()
            try:
                async for piece in pieces:
                    seen = feed(piece if decoder is None else _bytes_of(decoder.decode(piece)))
                    if seen or not withholds:
                        yield seen
                if decoder is not None and (seen := feed(_bytes_of(decoder.flush()))):
                    yield seen
                self._ended = True
                if rest := self._observation.rest():
                    yield rest
            except GeneratorExit:
                raise
            except BaseException as error:
                self._observation.closed(False, error)
                raise
            finally:
                if hasattr(pieces, "aclose"):
                    await pieces.aclose()

        async def aclose(self) -> None:
            try:
                await self._stream.aclose()
            finally:
                self._observation.closed(self._ended)

    return ObservedStream, ObservedAsyncStream
