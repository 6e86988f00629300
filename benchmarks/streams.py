"""What reading a stream costs by its length: time over chunks, time over the size of an event, and the memory that is held.

    python benchmarks/streams.py [--rounds 5] [--largest 16]

Bytes are fed to the scanners that read the wire, without client and network, in pieces of 1,400 bytes, with the usage at
the end. Sizes double, and each is compared with the smallest of its framing in one interleaved run. The slope says how time
grows with size: 1 is in proportion, 2 would be quadratic. Memory is the most that a stream held, beside what is fed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator

from flask_llm_cost.usage.json_array import ArrayScanner
from flask_llm_cost.usage.lines import LineScanner
from flask_llm_cost.usage.scanner import Scanner
from flask_llm_cost.usage.sse import EventScanner

PIECE = 1400
USAGE = {"usage": {"prompt_tokens": 420, "completion_tokens": 120, "total_tokens": 540}}

FRAMINGS: dict[str, tuple[type[Scanner], bytes, bytes]] = {
    "events": (EventScanner, b"data: ", b"\n\n"),
    "lines": (LineScanner, b"", b"\n"),
    "array": (ArrayScanner, b"", b","),
}


def chunks(count: int) -> list[bytes]:
    """A stream of *count* words."""
    words = [json.dumps({"model": "m", "choices": [{"delta": {"content": "word " * 30}}]}).encode()] * count
    return [*words, json.dumps({"model": "m", "choices": [], **USAGE}).encode()]


def one_event(size: int) -> list[bytes]:
    """A stream whose second event is a picture of *size* bytes."""
    picture = json.dumps({"model": "m", "b64_json": "A" * size, **USAGE}).encode()
    return [json.dumps({"model": "m"}).encode(), picture]


def pieces_of(framing: str, events: list[bytes]) -> list[bytes]:
    _, before, after = FRAMINGS[framing]
    text = b"".join(before + event + after for event in events)
    text = b"[" + text if framing == "array" else text
    return [text[start : start + PIECE] for start in range(0, len(text), PIECE)]


def read(framing: str, pieces: list[bytes]) -> None:
    scanner = FRAMINGS[framing][0](b'"usage"', True)
    for piece in pieces:
        scanner.feed(piece)
    scanner.finish()
    if "usage" not in scanner.events[-1]:
        raise SystemExit("the usage was not found")


def measured(framing: str, sizes: list[list[bytes]], rounds: int) -> Iterator[tuple[float, int]]:
    """Seconds, the median of interleaved rounds, and the most bytes held, for each size."""
    times: list[list[float]] = [[] for _ in sizes]
    for _ in range(rounds):
        for number, pieces in enumerate(sizes):
            start = time.thread_time()
            read(framing, pieces)
            times[number].append(time.thread_time() - start)
    for number, pieces in enumerate(sizes):
        tracemalloc.start()
        read(framing, pieces)
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        yield statistics.median(times[number]), held


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--largest", type=int, default=16, help="how many times the smallest the largest is")
    chosen = options.parse_args()
    factors = [2**power for power in range(int(math.log2(max(2, chosen.largest))) + 1)]
    kinds: dict[str, tuple[int, Callable[[int], list[bytes]]]] = {
        "chunks": (5_000, chunks),
        "bytes in an event": (250_000, one_event),
    }
    print(f"{'':8}{'':>26}{'time':>10}{'ratio':>8}{'slope':>8}{'held':>10}", flush=True)
    for framing in FRAMINGS:
        for kind, (smallest, make) in kinds.items():
            sizes = [pieces_of(framing, make(smallest * factor)) for factor in factors]
            first = 0.0
            for factor, (seconds, held) in zip(factors, measured(framing, sizes, chosen.rounds), strict=True):
                first = first or seconds
                slope = f"{math.log(seconds / first) / math.log(factor):8.2f}" if factor > 1 else f"{'':8}"
                size = f"{smallest * factor:,} {kind}"
                print(
                    f"{framing:8}{size:>26}{seconds * 1000:8.1f}ms{seconds / first:8.1f}{slope}{held / 1024:7.0f} KiB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
