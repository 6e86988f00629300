"""A test can have the played provider answer anything: errors, cuts, odd bodies, slow and encoded replies."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import anthropic
import httpx
import httpx2
import openai
import pytest

from flask_llm_cost.testing.provider import PlayedProvider

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Hello"}]


def test_errors_come_first_then_the_usual_reply(
    provider: PlayedProvider, openai_client: openai.OpenAI, anthropic_client: anthropic.Anthropic
) -> None:
    """500, 500 and then 200: three requests, one billed exchange. Errors have the shape of their API."""
    provider.reply_with(CHAT, status=500, headers={"retry-after-ms": "1"}, times=2)
    openai_client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    provider.reply_with("/messages", status=529, headers={"x-should-retry": "false"})

    with pytest.raises(anthropic.APIStatusError) as caught:
        anthropic_client.messages.create(model="claude-sonnet-4-6", max_tokens=9, messages=MESSAGES)

    assert caught.value.body["error"]["type"] == "overloaded_error"
    assert [request.headers.get("x-stainless-retry-count") for request in provider.requests] == ["0", "1", "2", "0"]
    assert len(provider.truth) == 1


def test_usage_can_be_dictated(provider: PlayedProvider, openai_client: openai.OpenAI) -> None:
    """A usage block given by the test is in the usual reply and in the truth, for one request only."""
    dictated = {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}
    provider.reply_with(CHAT, usage=dictated)

    replies = [openai_client.chat.completions.create(model="gpt-4o", messages=MESSAGES) for _ in range(2)]

    assert replies[0].usage.total_tokens == 1500
    assert replies[1].usage.total_tokens < 1500
    assert provider.truth[0].usage == dictated


def test_own_body_is_billed_as_it_says(provider: PlayedProvider) -> None:
    """Any body on any path; its usage, model and id are the truth. A body without usage is not billed, unless told."""
    own = {"id": "x-1", "model": "acme-1", "usage": {"total_tokens": 7}}
    provider.reply_with("/acme/generate", body=own)
    provider.reply_with("/acme/generate", body=b"not json")
    provider.reply_with("/acme/generate", body="not json", usage={"total_tokens": 9})

    texts = [httpx.post(f"{provider.url}/acme/generate", json={"model": "asked"}).text for _ in range(3)]

    assert json.loads(texts[0]) == own
    assert texts[1:] == ["not json", "not json"]
    assert [(b.model, b.response_id, b.usage["total_tokens"]) for b in provider.truth] == [
        ("acme-1", "x-1", 7),
        ("asked", None, 9),
    ]


def test_own_events_are_sent_as_given_and_merged_into_the_truth(provider: PlayedProvider) -> None:
    """Mappings become named events, strings data lines, bytes go as they are; later usage is laid over earlier."""
    provider.reply_with(
        "/v1/messages",
        events=[
            {
                "type": "message_start",
                "message": {"id": "m", "model": "c", "usage": {"input_tokens": 5, "output_tokens": 1}},
            },
            b": comment\r\n\r\n",
            {"type": "message_delta", "usage": {"output_tokens": 8, "input_tokens": None}},
            "[DONE]",
        ],
    )

    reply = httpx.post(f"{provider.url}/v1/messages", json={})

    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.text.startswith("event: message_start\ndata: {")
    assert reply.text.endswith("data: [DONE]\n\n")
    assert ": comment\r\n\r\n" in reply.text
    assert dict(provider.truth[0].usage) == {"input_tokens": 5, "output_tokens": 8}


def test_cut_stream_is_billed_but_not_completed(provider: PlayedProvider, openai_client: openai.OpenAI) -> None:
    """A cut closes the connection in the middle; the provider billed all the same and says that the stream was not whole."""
    provider.reply_with(CHAT, cut_after=400)
    stream = openai_client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True)

    with pytest.raises((openai.APIConnectionError, httpx2.RemoteProtocolError)):  # openai 3.0 lets the client's through
        list(stream)

    (billed,) = provider.truth
    assert (billed.streamed, billed.stream_completed) == (True, False)


def test_cut_body_breaks_the_client(provider: PlayedProvider) -> None:
    """A plain body can be cut too, after its headers."""
    provider.reply_with(CHAT, cut_after=0)

    with pytest.raises(httpx.RemoteProtocolError):
        httpx.post(f"{provider.url}{CHAT}", json={"model": "gpt-4o", "messages": MESSAGES})

    assert provider.truth[0].stream_completed is False


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
@pytest.mark.parametrize("stream", [False, True])
def test_encoded_replies(provider: PlayedProvider, encoding: str, stream: bool) -> None:
    """Every encoding that clients accept, in pieces of seven bytes, decodes to the usual reply."""
    provider.reply_with(CHAT, encoding=encoding, chunk_size=7)

    reply = httpx.post(f"{provider.url}{CHAT}", json={"model": "gpt-4o", "messages": MESSAGES, "stream": stream})

    assert reply.headers["content-encoding"] == encoding
    assert "Hello" in reply.text


@pytest.mark.parametrize("chunk_size", [1, "line"])
def test_streams_in_other_pieces_read_the_same(
    provider: PlayedProvider, openai_client: openai.OpenAI, chunk_size: int | str
) -> None:
    """A stream split at every byte or line is the same stream."""
    provider.reply_with(CHAT, chunk_size=chunk_size)
    texts = [
        "".join(
            chunk.choices[0].delta.content or ""
            for chunk in openai_client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True)
        )
        for _ in range(2)
    ]
    assert texts[0] == texts[1]


def test_slow_reply_and_paced_stream() -> None:
    """delay holds a reply back, pace holds each event back."""
    with PlayedProvider(pace=0.01) as provider:
        provider.reply_with(CHAT, delay=0.2)
        request = {"model": "gpt-4o", "messages": MESSAGES, "stream": True}
        started = time.monotonic()
        with httpx.stream("POST", f"{provider.url}{CHAT}", json=request) as reply:
            assert time.monotonic() - started >= 0.2
            lines = [line for line in reply.iter_lines() if line]
        assert time.monotonic() - started >= 0.2 + 0.01 * len(lines)


def test_unknown_paths_are_not_played(provider: PlayedProvider, openai_client: openai.OpenAI) -> None:
    """What is not played answers 404 in the API's shape and bills nothing."""
    with pytest.raises(openai.NotFoundError):
        openai_client.images.generate(prompt="a boat")
    with pytest.raises(openai.NotFoundError):
        openai_client.responses.retrieve("resp_unknown")
    assert provider.truth == []


def test_closing_leaves_nothing_behind() -> None:
    """close() ends the threads of open keep-alive connections and of slow replies."""
    before = set(threading.enumerate())
    with PlayedProvider() as provider, httpx.Client() as client:
        client.get(f"{provider.url}/v1/models")
        assert set(threading.enumerate()) - before
        provider.reply_with("/v1/models", delay=60)

        def slow_call() -> None:
            with pytest.raises(httpx.HTTPError):
                httpx.get(f"{provider.url}/v1/models")

        thread = threading.Thread(target=slow_call)
        thread.start()
        while len(provider.requests) < 2:
            time.sleep(0.01)
        provider.close()
        thread.join(5)
    assert set(threading.enumerate()) <= before


def test_clear_forgets(provider: PlayedProvider, openai_client: openai.OpenAI) -> None:
    """clear() forgets truth, requests and queued replies, and an exchange that began before is not billed after."""
    openai_client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    provider.reply_with(CHAT, status=400)
    provider.clear()
    assert (provider.truth, provider.requests) == ([], [])
    openai_client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    provider.clear()
    late = threading.Thread(target=openai_client.chat.completions.create, kwargs={"model": "gpt-4o", "messages": MESSAGES})
    provider.reply_with(CHAT, delay=0.5)
    late.start()
    while not provider.requests:
        time.sleep(0.005)
    provider.clear()
    late.join()
    assert provider.truth == []


def test_as_a_process(tmp_path: Path) -> None:
    """As a process it prints its address, logs what it billed as JSON lines, and ends quietly on SIGTERM."""
    log = tmp_path / "truth.jsonl"
    command = [sys.executable, "-m", "flask_llm_cost.testing.provider", "--truth-log", str(log), "--port", "0"]
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        url = process.stdout.readline().strip()
        reply = httpx.post(f"{url}{CHAT}", json={"model": "gpt-4o", "messages": MESSAGES}).json()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=10)

    assert (process.returncode, errors) == (0, "")
    (line,) = log.read_text().splitlines()
    billed = json.loads(line)
    assert (billed["path"], billed["response_id"], billed["usage"]) == (CHAT, reply["id"], reply["usage"])
