"""LiteLLM and OpenRouter, played over HTTPS for a price file, and what is read of the file afterwards."""

from __future__ import annotations

import functools
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from price_server import PriceServer

from flask_llm_cost.pricing import PriceBook, upkeep
from flask_llm_cost.pricing.fetch import own_mirror
from flask_llm_cost.pricing.pricefile import PriceFile
from flask_llm_cost.pricing.sources import Feed
from flask_llm_cost.pricing.sync import describe
from flask_llm_cost.records import Usage

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
Entry = dict[str, Any]


class Sources:
    """LiteLLM and OpenRouter, played on one server."""

    def __init__(self, server: PriceServer) -> None:
        self.server = server
        self.litellm: dict[str, Entry] = {}
        self.openrouter: dict[str, Entry] = {}
        self.broken: set[str] = set()

    def models(self, **models: Entry) -> None:
        """Entries of provider ``acme``: rates in USD per million by LiteLLM's short names."""
        names = {
            "input": "input_cost_per_token",
            "output": "output_cost_per_token",
            "cache_read": "cache_read_input_token_cost",
        }
        self.litellm = {
            f"acme/{name}": {
                "litellm_provider": "acme",
                "mode": "chat",
                **{
                    names.get(field, field): value / 1e6 if isinstance(value, float | int) else value
                    for field, value in raw.items()
                },
            }
            for name, raw in models.items()
        }

    def sync(
        self, path: Path, now: datetime = NOW, *, save: bool = True, accept: bool = False, **options: Any
    ) -> upkeep.Sync:
        listed = [{"id": name, "pricing": prices} for name, prices in self.openrouter.items()]
        for name, data in (("litellm", self.litellm), ("openrouter", {"data": listed})):
            if name in self.broken:
                self.server.say(f"/{name}", b"", 500)
            else:
                self.server.say(f"/{name}", json.dumps(data).encode(), ETag=f'"{hash(json.dumps(data))}"')
        feeds = tuple(
            Feed(name, self.server.url(f"/{name}"), own_mirror(self.server.url(f"/{name}")))
            for name in ("litellm", "openrouter")
        )
        fetch = functools.partial(upkeep.fetch, context=self.server.context())
        done = upkeep.synchronise(path, now, whole_book=False, feeds=feeds, fetch=fetch, accept=accept, **options)
        if save:
            done.save(now, accept=accept)
        return done


def write_models(path: Path, **models: Entry) -> None:
    path.write_text(json.dumps({"models": {f"acme/{name}": raw for name, raw in models.items()}}))


def entry_of(path: Path, name: str) -> Any:
    return PriceFile.load(path).models[f"acme/{name}"]


def total_of(path: Path, name: str, at: datetime = NOW, mode: str | None = None, **usage: int) -> Decimal | None:
    book = PriceBook.load(file=path)
    return book.price("acme", name, Usage(usage or {"input": 1_000_000}, source="response"), mode, at).total


def said_of(done: upkeep.Sync) -> str:
    return "\n".join(describe(done.plan))
