"""A wire shape of the app's own, as the page says it, over real HTTP."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_llm_cost import LlmCostTracker
from flask_llm_cost.records import Reading
from flask_llm_cost.testing import capture_calls
from flask_llm_cost.testing.provider import PlayedProvider
from flask_llm_cost.usage import Format, HostMap, read_body, read_stream, route

PAGE = Path(__file__).parents[2] / "docs" / "formats.rst"


def sample() -> str:
    """The code on the page."""
    (block,) = re.findall(r"\.\. code-block:: python\n\n((?:   .*\n|\n)+)", PAGE.read_text(encoding="utf-8"))
    return re.sub(r"^   ", "", block, flags=re.MULTILINE)


@pytest.fixture
def costs(tmp_path: Path) -> Iterator[LlmCostTracker]:
    app = Flask(__name__, instance_path=str(tmp_path))
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    app.config["TESTING"] = True
    app.config["LLM_COST_PRICE_OVERRIDES"] = {"acme/acme-7": {"input": "2", "output": "8"}}
    SQLAlchemy(app)
    tracker = LlmCostTracker(app)
    with app.app_context():
        yield tracker
    app.extensions["llm_cost"].ledger.close()


def test_the_sample_of_the_page(costs: LlmCostTracker) -> None:
    """Ten lines teach a shape: bodies and streams of it are counted and priced, other replies on its path are no calls."""
    exec(compile(sample(), "formats.rst", "exec"), {"costs": costs})
    billing = {"billing": {"in": 1000, "out": 500}, "engine": "acme-7"}
    with PlayedProvider() as provider, capture_calls() as calls, httpx.Client(base_url=provider.url) as client:
        provider.reply_with("/v1/ask", body={"answer": "Hello.", **billing})
        assert client.post("/v1/ask", json={}).json()["answer"] == "Hello."
        provider.reply_with("/v1/ask", events=[{"text": "Hel"}, {"text": "lo."}, billing])
        client.post("/v1/ask", json={"stream": True})
        provider.reply_with("/v1/ask", body={"answer": "Hello.", "billing": {"in": -1, "out": 500}, "engine": "acme-7"})
        client.post("/v1/ask", json={})
    assert [(call.provider, call.operation, call.model, call.total_cost) for call in calls] == [
        ("acme", "ask", "acme-7", Decimal("0.006")),
        ("acme", "ask", "acme-7", Decimal("0.006")),
        ("acme", "ask", None, None),
    ]
    assert [call.usage.source for call in calls] == ["response", "stream_final", "unknown"]
    assert calls[2].usage.flags == ("usage_malformed",)


class Broken(Format):
    """Raises whatever a format of somebody else may raise."""

    name = "broken"
    hosts = ("broken.example",)

    def fits(self, body: Any) -> bool:
        raise LookupError("no")

    def read(self, body: Any) -> Reading:
        raise KeyError("no")


def test_a_format_that_raises_still_makes_a_call() -> None:
    """A fault of the app's own format costs it the usage, never the call; on an unproven host there is none."""
    hosts = HostMap({}, True, [Broken()])
    found = route(hosts, "POST", "broken.example", "/anything", {}, marked=False)
    assert found is not None
    (reading,) = read_body(found, b'{"model": "m", "id": "i"}')
    assert (reading.usage.flags, reading.malformed, reading.model, reading.response_id) == (
        ("usage_malformed",),
        "KeyError",
        "m",
        "i",
    )
    (reading,) = read_stream(found, [{"model": "m"}], True)
    assert (reading.malformed, reading.model) == ("LookupError", "m")
    Broken.hosts, Broken.paths = (), ("/ask",)
    try:
        found = route(hosts, "POST", "other.example", "/ask/", {}, marked=False)
        assert found is not None
        assert read_body(found, b"{}") == []
    finally:
        Broken.hosts, Broken.paths = ("broken.example",), ()


def test_what_is_registered_wins_by_host_and_path() -> None:
    """A registered format is asked first, and only where its host and path both fit; the latest one wins."""

    class One(Format):
        name = "one"
        paths = ("/v1/chat/completions",)
        hosts = ("llm.example", "llm.example:8443")

    class Two(One):
        name = "two"

    hosts = HostMap({}, True)
    hosts.register(One())

    def name(host: str, path: str, method: str = "POST") -> str | None:
        found = route(hosts, method, host, path, {}, marked=False)
        return found.format.name if found else None

    assert name("llm.example", "/v1/chat/completions") == "one"
    assert name("llm.example:8443", "/team/v1/chat/completions/") == "one"
    assert name("api.openai.com", "/v1/chat/completions") == "openai.chat"
    assert name("llm.example", "/v1/embeddings") == "openai.embeddings"
    hosts.register(Two())
    assert name("llm.example", "/v1/chat/completions") == "two"
    assert HostMap({}, True).formats == ()


@pytest.mark.parametrize("given", [{"name": ""}, {"paths": ()}])
def test_a_format_by_which_nothing_is_recognised_is_refused(given: dict[str, Any]) -> None:
    """Registering a format without a name, or without paths and hosts, says so at once."""
    wire = type("Given", (Format,), {"name": "given", "paths": ("/x",), **given})()
    with pytest.raises(ValueError, match="needs a name"):
        HostMap({}, True).register(wire)
