"""What watching costs the app: one OpenAI SDK call, bare and watched, in turns, over an in-process transport.

    python benchmarks/overhead.py [--rounds 40] [--calls 25]

Nothing crosses a network, so what is measured is the SDK, the HTTP client and us. The record is durable in the spool when
the call returns. Bare and watched rounds alternate, and the medians of the rounds are compared: the ratio is the figure, the
microseconds depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import openai
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_llm_cost import LlmCostTracker, tags
from flask_llm_cost.capture import patching

CHUNKS = 200

REPLY = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1763856000,
    "model": "gpt-4o-2024-08-06",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 120}, "finish_reason": "stop"}],
    "usage": {
        "prompt_tokens": 420,
        "completion_tokens": 120,
        "total_tokens": 540,
        "prompt_tokens_details": {"cached_tokens": 128, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    },
    "service_tier": "default",
}


def _chunk(number: int) -> bytes:
    delta = {"content": f"word{number} "} if number < CHUNKS - 1 else {}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1763856000,
        "model": "gpt-4o-2024-08-06",
        "service_tier": "default",
        "choices": [{"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}],
    }
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


CHUNK_BYTES = [_chunk(number) for number in range(CHUNKS)]
NULL_USAGE = [chunk.replace(b"}\n\n", b',"usage":null}\n\n') for chunk in CHUNK_BYTES]
USAGE_CHUNK = b"data: " + json.dumps({**REPLY, "object": "chat.completion.chunk", "choices": []}).encode() + b"\n\n"
DONE = b"data: [DONE]\n\n"


class _Pieces(httpx2.SyncByteStream):
    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def __iter__(self):
        return iter(self._pieces)


def answer(request: httpx2.Request) -> httpx2.Response:
    body = json.loads(request.content)
    if not body.get("stream"):
        return httpx2.Response(200, json=REPLY)
    asked = (body.get("stream_options") or {}).get("include_usage")
    pieces = [*NULL_USAGE, USAGE_CHUNK, DONE] if asked else [*CHUNK_BYTES, DONE]
    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=_Pieces(pieces))


def make_client() -> openai.OpenAI:
    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    return openai.OpenAI(api_key="benchmark", http_client=http)


MESSAGES = [{"role": "user", "content": "question " * 100}]


def plain(client: openai.OpenAI) -> None:
    client.chat.completions.create(model="gpt-4o", messages=MESSAGES)


def stream(client: openai.OpenAI) -> None:
    for _ in client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True):
        pass


def stream_with_usage(client: openai.OpenAI) -> None:
    options = {"include_usage": True}
    for _ in client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True, stream_options=options):
        pass


def other_traffic(client: openai.OpenAI) -> None:
    client._client.post("https://shop.example/orders", json={"sku": "1"})


def timed(work: Callable[[openai.OpenAI], None], client: openai.OpenAI, calls: int) -> float:
    """Microseconds of one call: the median of *calls*."""
    times = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        work(client)
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1000


def compare(
    work: Callable[[openai.OpenAI], None], rounds: int, calls: int, flush: Callable[[], bool]
) -> tuple[float, float]:
    """Microseconds of a call, bare and watched.

    The drain writes between the rounds, as it does in an app whose calls take their time: in a loop without any waiting
    it would compete for the interpreter.
    """
    client = make_client()
    bare, watched = [], []
    for number in range(rounds + 2):
        patching.uninstall()
        one = timed(work, client, calls)
        patching.install("auto")
        other = timed(work, client, calls)
        if number >= 2:  # the first rounds warm up
            bare.append(one)
            watched.append(other)
        flush()
    return statistics.median(bare), statistics.median(watched)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=40)
    options.add_argument("--calls", type=int, default=25)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        app = Flask("benchmark", instance_path=folder)
        app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{Path(folder) / 'app.db'}"
        app.config["LLM_COST_SPOOL_DIR"] = str(Path(folder) / "spool")
        database = SQLAlchemy(app)
        costs = LlmCostTracker(app)
        with app.app_context(), tags(feature="benchmark", tenant_id=7):
            database.create_all()
            print(f"{'':34}{'bare':>10}{'watched':>10}{'added':>10}{'ratio':>8}{'a chunk':>10}")
            for name, work, chunks in (
                ("openai, not streamed", plain, 0),
                (f"openai, {CHUNKS} chunks", stream, CHUNKS),
                (f"openai, {CHUNKS} chunks, usage asked", stream_with_usage, CHUNKS),
                ("other POST, not a call", other_traffic, 0),
            ):
                bare, watched = compare(work, chosen.rounds, max(5, chosen.calls // (4 if chunks else 1)), costs.flush)
                added = watched - bare
                each = f"{added / chunks:8.2f}us" if chunks else ""
                print(f"{name:34}{bare:8.0f}us{watched:8.0f}us{added:8.1f}us{watched / bare:8.3f}{each:>10}", flush=True)
            kept = costs.flush(60)
        print("every record is in the database" if kept else "records still wait")


if __name__ == "__main__":
    main()
