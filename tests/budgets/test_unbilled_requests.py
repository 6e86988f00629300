"""Requests that are no calls: budgets neither stop them nor hold anything for them."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx
import openai
from budget_apps import BODY, NOTHING, AppMaker
from google import genai

from flask_llm_cost.testing.provider import PlayedProvider

CAP: Any = {"name": "cap", "limit": "5", "period": "day", "action": "block"}
BATCH: Any = {
    "id": "batch_1", "object": "batch", "endpoint": "/v1/chat/completions", "status": "validating",
    "input_file_id": "file_1", "completion_window": "24h", "created_at": 1_700_000_000,
}  # fmt: skip
MESSAGE_BATCH: Any = {
    "id": "msgbatch_1", "type": "message_batch", "processing_status": "in_progress", "created_at": "2026-11-26T00:00:00Z",
    "request_counts": {"processing": 1, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0},
    "expires_at": "2026-11-27T00:00:00Z", "ended_at": None, "results_url": None, "archived_at": None,
    "cancel_initiated_at": None,
}  # fmt: skip
CANCELLED: Any = {
    "id": "resp_1", "object": "response", "created_at": 1_700_000_000, "status": "cancelled", "background": True,
    "model": "gpt-4o", "output": [], "usage": None,
}  # fmt: skip


def test_a_batch_holds_nothing(sqlite_app: AppMaker, provider: PlayedProvider) -> None:
    """A batch is paid for when its results are read: to create one holds nothing, whoever's batch it is."""
    hosts = {**provider.hosts, provider.host: "gemini"}
    app = sqlite_app(CAP, {**CAP, "name": "calls", "unit": "calls"}, hosts=hosts)
    provider.reply_with("/batches", body=BATCH)
    provider.reply_with("/messages/batches", body=MESSAGE_BATCH)
    provider.reply_with(":batchGenerateContent", body={"name": "batches/1", "metadata": {"state": "BATCH_STATE_PENDING"}})
    with app.flask.app_context():
        with openai.OpenAI(base_url=provider.openai_url, api_key="test") as client:
            client.batches.create(input_file_id="file_1", endpoint="/v1/chat/completions", completion_window="24h")
        with anthropic.Anthropic(base_url=provider.anthropic_url, api_key="test") as client:
            asked: Any = {**BODY, "model": "claude-sonnet-4-5"}
            client.messages.batches.create(requests=[{"custom_id": "a", "params": asked}])
        gemini = genai.Client(api_key="test", http_options={"base_url": provider.url})
        inlined: Any = [{"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}]
        gemini.batches.create(model="gemini-2.5-flash", src=inlined)
        gemini.close()
    app.flush()
    assert [call.operation for call in app.calls()] == ["batch"] * 3
    assert app.holds() == []


def test_what_stops_spending_is_never_stopped(sqlite_app: AppMaker, provider: PlayedProvider) -> None:
    """With a budget that is used up, the app can still cancel what it has under way, and create what is paid for later."""
    app = sqlite_app(NOTHING)
    provider.reply_with("/responses/resp_1/cancel", body=CANCELLED)
    provider.reply_with("/batches/batch_1/cancel", body={**BATCH, "status": "cancelling"})
    provider.reply_with("/batches", body=BATCH)
    with app.flask.app_context(), openai.OpenAI(base_url=provider.openai_url, api_key="test") as client:
        client.responses.cancel("resp_1")
        client.batches.cancel("batch_1")
        client.batches.create(input_file_id="file_1", endpoint="/v1/chat/completions", completion_window="24h")
    app.flush()
    assert len(provider.requests) == 3
    assert [call.outcome for call in app.calls() if call.outcome == "blocked"] == []


def test_a_response_that_is_cancelled_is_billed(sqlite_app: AppMaker, provider: PlayedProvider) -> None:
    """What a background response has used until it was cancelled is spent, and nothing is held for it any more."""
    app = sqlite_app(CAP)
    provider.reply_with("/responses", body={**CANCELLED, "status": "queued"})
    usage = {"input_tokens": 1000, "output_tokens": 1000, "total_tokens": 2000}
    provider.reply_with("/responses/resp_1/cancel", body={**CANCELLED, "usage": usage})
    with app.flask.app_context():
        asked = {"model": "gpt-4o", "input": "hello", "background": True, "max_output_tokens": 100}
        httpx.post(f"{provider.openai_url}/responses", json=asked)
        app.flush()
        assert app.period().held == app.open_amount() > 0
        httpx.post(f"{provider.openai_url}/responses/resp_1/cancel")
    app.flush()
    assert (app.period().spent, app.period().held, app.period().unresolved) == (app.cost(), 0, 0)
    assert app.cost() > 0
