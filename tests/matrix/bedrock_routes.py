"""Bedrock by ``boto3``, and by the clients for it in ``anthropic``; Vertex by the one in ``anthropic``."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from contextlib import closing
from typing import Any

import anthropic
import boto3
from driver import Provider, Routes, consume

ROUTES = Routes(("boto3", "anthropic"))

MODEL = "anthropic.claude-sonnet-4-6"
BODY = json.dumps({"anthropic_version": "bedrock-2023-05-31", "max_tokens": 9, "messages": []})
QUESTION: Any = [{"role": "user", "content": [{"text": "what does it cost?"}]}]
MESSAGE: Any = {"max_tokens": 9, "messages": [{"role": "user", "content": "what does it cost?"}]}

USAGE = {"input_tokens": 5, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0, "output_tokens": 7}
REPLY: Any = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-6",
    "content": [{"type": "text", "text": "3"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": USAGE,
}
EVENTS: Any = [
    {"type": "message_start", "message": {**REPLY, "content": [], "usage": {**USAGE, "output_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "3"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 7}},
    {"type": "message_stop"},
]
CONVERSED = {"inputTokens": 11, "outputTokens": 13, "totalTokens": 24}


def frame(kind: str, body: Any) -> bytes:
    """One message of ``application/vnd.amazon.eventstream`` (Amazon's event stream encoding)."""
    headers = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + struct.pack("!H", len(value)) + value.encode()
        for name, value in ((":message-type", "event"), (":event-type", kind), (":content-type", "application/json"))
    )
    payload = json.dumps(body).encode()
    head = struct.pack("!II", 16 + len(headers) + len(payload), len(headers))
    head += struct.pack("!I", zlib.crc32(head))
    return head + headers + payload + struct.pack("!I", zlib.crc32(head + headers + payload))


def frames(provider: Provider, path: str, messages: list[bytes], usage: Any) -> None:
    headers = {"Content-Type": "application/vnd.amazon.eventstream", "x-amzn-bedrock-content-type": "application/json"}
    provider.reply_with(path, events=messages, headers=headers, usage=usage)


def chunks() -> list[bytes]:
    return [frame("chunk", {"bytes": base64.b64encode(json.dumps(event).encode()).decode()}) for event in EVENTS]


def client(provider: Provider) -> Any:
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    return closing(boto3.client("bedrock-runtime", endpoint_url=provider.at("bedrock"), region_name="us-east-1", **keys))


@ROUTES
def invoke(provider: Provider) -> None:
    provider.reply_with("/invoke", body=REPLY)
    with client(provider) as made:
        assert json.loads(made.invoke_model(modelId=MODEL, body=BODY)["body"].read()) == REPLY


@ROUTES
def invoke_stream(provider: Provider) -> None:
    frames(provider, "/invoke-with-response-stream", chunks(), USAGE)
    with client(provider) as made:
        reply = made.invoke_model_with_response_stream(modelId=MODEL, body=BODY)
        assert [json.loads(event["chunk"]["bytes"]) for event in reply["body"]] == EVENTS


@ROUTES
def converse(provider: Provider) -> None:
    message = {"role": "assistant", "content": [{"text": "3"}]}
    body = {"usage": CONVERSED, "output": {"message": message}, "stopReason": "end_turn", "metrics": {"latencyMs": 3}}
    provider.reply_with("/converse", body=body, usage={"input": 11, "output": 13})
    with client(provider) as made:
        assert made.converse(modelId=MODEL, messages=QUESTION)["usage"]["outputTokens"] == 13


@ROUTES
def converse_stream(provider: Provider) -> None:
    messages = [
        frame("messageStart", {"role": "assistant"}),
        frame("contentBlockDelta", {"delta": {"text": "3"}, "contentBlockIndex": 0}),
        frame("messageStop", {"stopReason": "end_turn"}),
        frame("metadata", {"usage": CONVERSED, "metrics": {"latencyMs": 3}}),
    ]
    frames(provider, "/converse-stream", messages, {"input": 11, "output": 13})
    with client(provider) as made:
        assert len(list(made.converse_stream(modelId=MODEL, messages=QUESTION)["stream"])) == 4


def by_anthropic(provider: Provider) -> Any:
    keys = {"aws_access_key": "test", "aws_secret_key": "test", "aws_region": "us-east-1"}
    return anthropic.AnthropicBedrock(base_url=provider.at("bedrock"), **keys)


@ROUTES
def anthropic_on_bedrock(provider: Provider) -> None:
    provider.reply_with("/invoke", body=REPLY)
    with by_anthropic(provider) as made:
        made.messages.create(model=MODEL, **MESSAGE)


@ROUTES
def anthropic_stream_on_bedrock(provider: Provider) -> None:
    frames(provider, "/invoke-with-response-stream", chunks(), USAGE)
    with by_anthropic(provider) as made:
        consume(made.messages.create(model=MODEL, stream=True, **MESSAGE))


@ROUTES
def anthropic_on_vertex(provider: Provider) -> None:
    provider.reply_with(":rawPredict", body=REPLY)
    provider.reply_with(":streamRawPredict", events=EVENTS)
    place: Any = {"region": "us-east5", "project_id": "shop", "access_token": "test"}
    with anthropic.AnthropicVertex(base_url=provider.at("vertex"), **place) as made:
        made.messages.create(model="claude-sonnet-4-6", **MESSAGE)
        consume(made.messages.create(model="claude-sonnet-4-6", stream=True, **MESSAGE))
