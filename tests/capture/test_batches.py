"""Batches: their lines are bills with the tags of whoever created the batch, once, whoever reads them and how often."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import anthropic
import openai
import pytest
from flask import Flask
from google import genai
from played_app import ledger_of

from flask_llm_cost import tags
from flask_llm_cost.ledger import Call
from flask_llm_cost.testing import capture_calls
from flask_llm_cost.testing.provider import PlayedProvider

Ledger = Callable[[], list[Call]]

BATCH = {
    "id": "batch_1",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
    "input_file_id": "file-in",
    "created_at": 1790000000,
    "status": "validating",
}
TOTALS = {"input_tokens": 30, "output_tokens": 12, "total_tokens": 42}
DONE = {**BATCH, "status": "completed", "output_file_id": "file-out", "usage": TOTALS}
MESSAGE_BATCH = {
    "id": "msgbatch_1",
    "type": "message_batch",
    "processing_status": "in_progress",
    "request_counts": {"canceled": 0, "errored": 0, "expired": 0, "processing": 2, "succeeded": 0},
    "created_at": "2026-09-21T14:13:20Z",
    "expires_at": "2026-09-22T14:13:20Z",
}


def openai_lines(count: int) -> bytes:
    usage = {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}
    lines = [
        {
            "id": f"batch_req_{number}",
            "custom_id": f"line-{number}",
            "response": {
                "status_code": 200,
                "body": {"id": f"c{number}", "object": "chat.completion", "created": 1790000000, "model": "gpt-4o"}
                | {"choices": [], "usage": usage},
            },
        }
        for number in range(count)
    ]
    failed = {"id": "batch_req_x", "custom_id": "x", "response": None, "error": {"code": "batch_expired"}}
    return b"".join(json.dumps(line).encode() + b"\n" for line in (failed, *lines))


def message_lines() -> bytes:
    usage = {"input_tokens": 7, "output_tokens": 3}
    message = {"id": "m", "type": "message", "role": "assistant", "model": "claude-sonnet-4-6", "content": []}
    message |= {"stop_reason": "end_turn", "stop_sequence": None, "usage": usage}
    lines = [{"custom_id": name, "result": {"type": "succeeded", "message": message}} for name in ("a", "b")]
    lines.append({"custom_id": "c", "result": {"type": "expired"}})
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def said(found: list[Call]) -> list[tuple[str, int | None, int | None, dict[str, str]]]:
    return [
        (call.usage_source, call.input_tokens, call.output_tokens, {tag.key: tag.value for tag in call.tags})
        for call in found
    ]


def create(client: openai.OpenAI) -> str:
    return client.batches.create(input_file_id="file-in", endpoint="/v1/chat/completions", completion_window="24h").id


def test_openai_lines_are_their_creators(
    app: Flask, calls: Ledger, provider: PlayedProvider, openai_client: openai.OpenAI
) -> None:
    """A created batch waits as one pending call; its lines take its place, with its tags, once, at the batch's price."""
    provider.reply_with("/batches", body=BATCH)
    provider.reply_with("/batches/batch_1", body={**BATCH, "status": "in_progress"})
    provider.reply_with("/batches/batch_1", body=DONE, times=3)
    provider.reply_with("/files/file-out/content", body=openai_lines(3), times=2)
    with app.app_context():
        with tags(feature="nightly"):
            create(openai_client)
        assert said(calls()) == [("pending", None, None, {"feature": "nightly"})]
        with tags(feature="poller"):
            for _ in range(3):
                openai_client.batches.retrieve("batch_1")
            assert said(calls()) == [("pending", None, None, {"feature": "nightly"})]
            openai_client.files.content("file-out")
            calls()
            openai_client.files.content("file-out")
            openai_client.batches.retrieve("batch_1")
    found = calls()
    assert said(found) == [("batch", 10, 4, {"feature": "nightly"})] * 3
    assert {(call.model, call.pricing_mode, call.cost_status) for call in found} == {("gpt-4o", "batch", "priced")}
    assert len({call.occurred_at for call in found}) == 1


def test_long_lines_are_their_creators(
    app: Flask, calls: Ledger, provider: PlayedProvider, openai_client: openai.OpenAI
) -> None:
    """The pending call goes when each line has a row: lines of many vectors are counted, as are those cut to their names."""
    usage = {"prompt_tokens": 80, "total_tokens": 80}
    vectors = [{"object": "embedding", "index": 0, "embedding": [0.123456789] * 1536}] * 10
    endless = [{"object": "embedding", "index": 0, "embedding": [[0.5]] * 100_000}]
    made = {"object": "list", "model": "text-embedding-3-small", "usage": usage}
    lines = [
        {"id": f"r{n}", "custom_id": f"c{n}", "response": {"status_code": 200, "body": {"data": data, **made}}}
        for n, data in enumerate((vectors, endless, vectors))
    ]
    file = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    provider.reply_with("/batches", body=BATCH)
    provider.reply_with("/batches/batch_1", body=DONE)
    provider.reply_with("/files/file-out/content", body=file)
    with app.app_context():
        with tags(feature="nightly"):
            create(openai_client)
        openai_client.batches.retrieve("batch_1")
        openai_client.files.content("file-out")
    assert said(calls()) == [("batch", 80, 0, {"feature": "nightly"})] * 3


def test_all_at_once_is_the_same(app: Flask, calls: Ledger, provider: PlayedProvider, openai_client: openai.OpenAI) -> None:
    """Creation, news and more lines than a transaction takes may reach the ledger together."""
    provider.reply_with("/batches", body=BATCH)
    provider.reply_with("/batches/batch_1", body=DONE)
    provider.reply_with("/files/file-out/content", body=openai_lines(1200))
    with app.app_context():
        with tags(feature="nightly"):
            create(openai_client)
        openai_client.batches.retrieve("batch_1")
        openai_client.files.content("file-out")
    found = calls()
    assert said(found) == [("batch", 10, 4, {"feature": "nightly"})] * 1200


def test_anthropic_lines_are_their_creators(
    app: Flask, calls: Ledger, provider: PlayedProvider, anthropic_client: anthropic.Anthropic
) -> None:
    """Only what succeeded is a bill, and it is the creator's; a read that is broken off leaves the rest to be read."""
    ended = {**MESSAGE_BATCH, "processing_status": "ended", "results_url": "/x", "ended_at": "2026-09-21T15:13:20Z"}
    ended["request_counts"] = {"canceled": 0, "errored": 0, "expired": 1, "processing": 0, "succeeded": 2}
    ended["results_url"] = f"{provider.anthropic_url}/v1/messages/batches/msgbatch_1/results"
    provider.reply_with("/messages/batches", body=MESSAGE_BATCH)
    provider.reply_with("/messages/batches/msgbatch_1", body=ended, times=2)
    lines = {"content-type": "application/x-jsonl"}
    provider.reply_with("/results", body=message_lines(), headers=lines, chunk_size="line", times=2)
    with app.app_context():
        with tags(feature="digest"):
            anthropic_client.messages.batches.create(
                requests=[
                    {
                        "custom_id": name,
                        "params": {
                            "model": "claude-sonnet-4-6",
                            "max_tokens": 5,
                            "messages": [{"role": "user", "content": "x"}],
                        },
                    }
                    for name in ("a", "b", "c")
                ]
            )
        with tags(feature="reader"):
            results = anthropic_client.messages.batches.results("msgbatch_1")
            next(results)
            results.close()
            assert [said[0] for said in said(calls())].count("pending") == 1
            assert len(list(anthropic_client.messages.batches.results("msgbatch_1"))) == 3
    assert said(calls()) == [("batch", 7, 3, {"feature": "digest"})] * 2


def test_a_gemini_batch_is_its_creators(make_app: Callable[..., Flask], provider: PlayedProvider) -> None:
    """The responses inside a finished operation are bills of whoever started it."""
    app = make_app(hosts={provider.host: "gemini"})
    running = {"name": "batches/abc", "metadata": {"state": "BATCH_STATE_RUNNING", "name": "batches/abc"}}
    reply = {
        "candidates": [{"content": {"role": "model", "parts": [{"text": "hi"}]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 2, "totalTokenCount": 7},
        "modelVersion": "gemini-2.5-flash",
    }
    inlined = {"inlinedResponses": {"inlinedResponses": [{"response": reply}, {"error": {"code": 3}}, {"response": reply}]}}
    done = {"name": "batches/abc", "done": True, "metadata": {"state": "BATCH_STATE_SUCCEEDED", "output": inlined}}
    provider.reply_with(":batchGenerateContent", body=running)
    provider.reply_with("/batches/abc", body=running)
    provider.reply_with("/batches/abc", body=done, times=2)
    client = genai.Client(api_key="test", http_options={"base_url": provider.url})
    with app.app_context():
        with tags(feature="nightly"):
            client.batches.create(
                model="gemini-2.5-flash", src=[{"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}]
            )
        assert said(ledger_of(app)) == [("pending", None, None, {"feature": "nightly"})]
        for _ in range(3):
            client.batches.get(name="batches/abc")
    client.close()
    assert said(ledger_of(app)) == [("batch", 5, 2, {"feature": "nightly"})] * 2


@pytest.mark.parametrize("status", ["failed", "cancelled", "completed"])
def test_a_batch_that_comes_to_nothing_is_no_call(
    app: Flask, calls: Ledger, provider: PlayedProvider, openai_client: openai.OpenAI, status: str
) -> None:
    """A batch that ends without an output file has billed nothing: no row waits for it."""
    provider.reply_with("/batches", body=BATCH)
    provider.reply_with("/batches", body={"object": "list", "data": [{**BATCH, "status": status}], "has_more": False})
    with app.app_context():
        create(openai_client)
        assert [call.usage_source for call in calls()] == ["pending"]
        list(openai_client.batches.list())
    assert calls() == []


def test_a_batch_from_elsewhere_is_its_readers(
    app: Flask, calls: Ledger, provider: PlayedProvider, openai_client: openai.OpenAI
) -> None:
    """The lines of a batch that nobody here created have the tags of who reads them, and asking for it leaves no row."""
    provider.reply_with("/batches/batch_1", body=DONE)
    provider.reply_with("/files/file-out/content", body=openai_lines(1))
    with app.app_context(), tags(feature="reader"):
        openai_client.batches.retrieve("batch_1")
        assert calls() == []
        openai_client.files.content("file-out")
    assert said(calls()) == [("batch", 10, 4, {"feature": "reader"})]


def test_captured_calls_are_lines_not_news(app: Flask, provider: PlayedProvider, openai_client: openai.OpenAI) -> None:
    """capture_calls() shows the created batch and its lines, and no news of it."""
    provider.reply_with("/batches", body=BATCH)
    provider.reply_with("/batches/batch_1", body=DONE)
    provider.reply_with("/files/file-out/content", body=openai_lines(2))
    with app.app_context(), capture_calls() as captured:
        create(openai_client)
        openai_client.batches.retrieve("batch_1")
        openai_client.files.content("file-out")
    assert [call.usage.source for call in captured] == ["pending", "batch", "batch"]


READER = """
import sys
import openai
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_llm_cost import LlmCostTracker, tags

app = Flask("reader", instance_path=sys.argv[1])
app.config.update(SQLALCHEMY_DATABASE_URI=sys.argv[2], LLM_COST_HOSTS={sys.argv[3]: "openai"})
app.config["LLM_COST_WRITE_MODE"] = sys.argv[4]
db = SQLAlchemy(app)
costs = LlmCostTracker(app)
client = openai.OpenAI(base_url=f"http://{sys.argv[3]}/v1", api_key="test")
with app.app_context(), tags(feature="reader"):
    if sys.argv[5] == "ask":
        client.batches.retrieve("batch_1")
    else:
        client.files.content("file-out")
    assert costs.flush(20)
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["background", "inline"])
def test_every_step_in_a_process_of_its_own(
    make_app: Callable[..., Flask], provider: PlayedProvider, openai_client: openai.OpenAI, tmp_path: Any, mode: str
) -> None:
    """Created here, asked for in a second process, read in a third and a fourth: the creator's lines, once."""
    app = make_app(write_mode=mode)
    provider.reply_with("/batches", body=BATCH)
    provider.reply_with("/batches/batch_1", body=DONE)
    provider.reply_with("/files/file-out/content", body=openai_lines(3), times=2)
    with app.app_context(), tags(feature="nightly"):
        create(openai_client)
    assert len(ledger_of(app)) == 1
    for number, step in enumerate(("ask", "read", "read")):
        folder = tmp_path / f"reader{number}"
        folder.mkdir()
        url = app.config["SQLALCHEMY_DATABASE_URI"]
        subprocess.run([sys.executable, "-c", READER, str(folder), url, provider.host, mode, step], check=True, timeout=60)
    assert said(ledger_of(app)) == [("batch", 10, 4, {"feature": "nightly"})] * 3
