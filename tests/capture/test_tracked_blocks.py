"""A provider's own usage block that is handed in: nothing that it says of the bill is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from flask import Flask, request
from played_app import ledger_of

from flask_llm_cost import tags, track, track_stream
from flask_llm_cost.testing import capture_calls


@pytest.mark.parametrize(
    ("maker", "model", "block", "mode"),
    [
        ("anthropic", "claude-opus-4-6", {"input_tokens": 5, "output_tokens": 1, "service_tier": "batch"}, "batch"),
        (
            "anthropic",
            "claude-opus-4-6",
            {"input_tokens": 5, "output_tokens": 1, "speed": "fast", "inference_geo": "us"},
            "fast+residency:us",
        ),
        ("vertex", "gemini-2.5-flash", {"promptTokenCount": 5, "trafficType": "ON_DEMAND_PRIORITY"}, "priority"),
        ("anthropic", "claude-opus-4-6", {"input_tokens": 5, "output_tokens": 1, "service_tier": "standard"}, None),
    ],
)
def test_the_tier_in_a_providers_own_block_is_the_mode(
    make_app: Callable[..., Flask], maker: str, model: str, block: dict[str, Any], mode: str | None
) -> None:
    """Unless the caller says another, for calls that were made as for a quote: it is not billed as standard."""
    app = make_app()
    with app.app_context():
        record = track(maker, model=model, usage=block)
        assert record.pricing_mode == mode
        quoted = app.extensions["llm_cost"].tracker.quote(maker, model, usage=block)
        assert (quoted.total, quoted.status) == (record.total_cost, record.cost.status)  # type: ignore[union-attr]
        assert track(maker, model=model, usage=block, mode="standard").pricing_mode is None


FALLEN_BACK = {
    "input_tokens": 300,
    "output_tokens": 30,
    "iterations": [
        {"type": "message", "model": "claude-opus-4-6", "input_tokens": 100, "output_tokens": 10},
        {"type": "fallback_message", "model": "claude-sonnet-4-6", "input_tokens": 200, "output_tokens": 20},
    ],
}
ADVISED = {
    "input_tokens": 300,
    "output_tokens": 30,
    "iterations": [{"type": "advisor_message", "model": "claude-opus-4-6", "input_tokens": 1000, "output_tokens": 10}],
}


@pytest.mark.parametrize("asked", ["claude-sonnet-4-6", "claude-opus-4-6"])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_providers_own_block_of_several_models(make_app: Callable[..., Flask], asked: str, streamed: bool) -> None:
    """Each model that took part has a record, whichever the caller asked for; the first is that of the one that answered."""
    with make_app().app_context(), capture_calls() as calls:
        if streamed:
            with track_stream("anthropic", model=asked) as stream:
                stream.set_usage(FALLEN_BACK)
            first = stream.call
        else:
            first = track("anthropic", model=asked, usage=FALLEN_BACK)
        track("anthropic", model="claude-sonnet-4-6", usage=ADVISED)
        track("anthropic", model="claude-sonnet-4-6", usage=ADVISED, billed="0.5")
    assert [(call.model, call.usage["input"], call.usage["output"]) for call in calls] == [
        ("claude-sonnet-4-6", 200, 20),
        ("claude-opus-4-6", 100, 10),
        *[("claude-sonnet-4-6", 300, 30), ("claude-opus-4-6", 1000, 10)] * 2,
    ]
    assert first is not None
    assert (first.id, first.requested_model) == (calls[0].id, asked)
    assert [call.total_cost for call in calls[-2:]] == [Decimal("0.5"), 0]


def test_a_tracked_stream_has_the_tags_with_which_it_began(make_app: Callable[..., Flask]) -> None:
    """A generator that is dropped during somebody else's request, of another app, stays a call of whoever began it."""
    app, other_app = make_app(), make_app()
    app.extensions["llm_cost"].tracker.request_tagger(lambda: {"user_id": request.args["user"]})
    begun = []

    def pieces() -> Iterator[str]:
        with track_stream("openai", model="gpt-4o", tags={"job": "x"}) as stream:
            stream.set_usage(input=5)
            yield "first"
            yield "last"

    @app.get("/begin")
    def begins() -> str:
        begun.append(pieces())
        with tags(feature="began"):
            return next(begun[0])

    @app.get("/drop")
    def drops() -> str:
        with tags(feature="ended"):
            begun.clear()
        return ""

    other_app.add_url_rule("/drop", "drop", drops)
    for ends_in in (app, other_app):
        app.test_client().get("/begin?user=ada")
        ends_in.test_client().get("/drop?user=bob")
    assert [{tag.key: tag.value for tag in call.tags} for call in ledger_of(app)] == [
        {"endpoint": "begins", "user_id": "ada", "feature": "began", "job": "x"}
    ] * 2
    assert ledger_of(other_app) == []
