"""How long it takes to price one call: ours, LiteLLM's and genai-prices', interleaved in one run.

    python -m pip install litellm genai-prices     # only for this; whichever is missing is left out
    python benchmarks/pricing.py [--rounds 200] [--calls 200]

Each prices the same call: input, cached input, a cache write and output. Ours also as a batch above the context tier, which
is its longest way. The figures are medians of rounds, microseconds a call; the amounts are printed, so that equal work
is compared.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flask_llm_cost.pricing import PriceBook
from flask_llm_cost.records import Usage

PROVIDER, MODEL = "anthropic", "claude-sonnet-4-6"
INPUT, CACHED, WRITTEN, OUTPUT = 1_200, 50_000, 3_000, 800
NOW = datetime.now(UTC)


def ours(book: PriceBook) -> dict[str, Callable[[], object]]:
    usage = Usage({"input": INPUT, "cache_read": CACHED, "cache_write": WRITTEN, "output": OUTPUT}, source="response")
    large = Usage({"input": INPUT, "cache_read": 300_000, "cache_write": WRITTEN, "output": OUTPUT}, source="response")
    return {
        "flask-llm-cost": lambda: book.price(PROVIDER, MODEL, usage, None, NOW).total,
        "flask-llm-cost, batch above 272k": lambda: (
            book.price("openai", "gpt-5.6-sol", large, "batch+residency:eu", NOW).total
        ),
    }


def litellm() -> dict[str, Callable[[], object]]:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network for its prices
    try:
        from litellm import cost_per_token
    except ImportError:
        return {}

    def price() -> object:
        return sum(
            cost_per_token(
                model=MODEL,
                custom_llm_provider=PROVIDER,
                prompt_tokens=INPUT + CACHED + WRITTEN,
                completion_tokens=OUTPUT,
                cache_read_input_tokens=CACHED,
                cache_creation_input_tokens=WRITTEN,
            )
        )

    return {"litellm.cost_per_token": price}


def genai_prices() -> dict[str, Callable[[], object]]:
    try:
        from genai_prices import Usage as GenaiUsage
        from genai_prices import calc_price
    except ImportError:
        return {}
    usage = GenaiUsage(
        input_tokens=INPUT + CACHED + WRITTEN, cache_read_tokens=CACHED, cache_write_tokens=WRITTEN, output_tokens=OUTPUT
    )
    return {
        "genai_prices.calc_price": lambda: (
            calc_price(usage, MODEL, provider_id=PROVIDER, genai_request_timestamp=NOW).total_price
        )
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--calls", type=int, default=200, help="in each round")
    options = parser.parse_args()
    loads = []
    for _ in range(20):
        began = time.perf_counter()
        book = PriceBook.load()
        loads.append(time.perf_counter() - began)
    loaded = statistics.median(loads)
    tracemalloc.start()
    kept = PriceBook.load()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    print(f"book: {kept.entries} entries, loaded in {loaded * 1e3:.1f} ms, {size / 1e6:.1f} MB")
    contenders = {**ours(book), **litellm(), **genai_prices()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for price in contenders.values():
        price()
    for _ in range(options.rounds):
        for name, price in contenders.items():
            began = time.perf_counter()
            for _ in range(options.calls):
                price()
            times[name].append((time.perf_counter() - began) / options.calls)
    base = statistics.median(times["flask-llm-cost"])
    for name, found in times.items():
        median = statistics.median(found)
        print(f"{name:<34} {median * 1e6:8.1f} us   {median / base:6.1f} x   {contenders[name]()}")


if __name__ == "__main__":
    main()
