"""Requests that are forms with files: what they ask for is known, and the files are read by nobody but the client."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests
from flask import Flask

from flask_llm_cost.ledger import Call
from flask_llm_cost.testing.provider import PlayedProvider

FIELDS = {"response_format": "json", "model": "whisper-1"}


class Recording(io.BytesIO):
    """A file that knows whether anybody has read it."""

    reads = 0

    def read(self, *args: Any) -> bytes:
        self.reads += 1
        return super().read(*args)


def by_httpx(url: str, recording: Recording) -> None:
    httpx.post(url, data=FIELDS, files={"file": recording})


def by_httpx2(url: str, recording: Recording) -> None:
    httpx2.post(url, data=FIELDS, files={"file": recording})


def by_requests(url: str, recording: Recording) -> None:
    requests.post(url, data=FIELDS, files={"file": recording}, timeout=20)


def by_aiohttp(url: str, recording: Recording) -> None:
    async def send(data: Any) -> None:
        async with aiohttp.ClientSession() as session, session.post(url, data=data) as reply:
            await reply.read()

    asyncio.run(send({**FIELDS, "file": recording}))


def by_aiohttps_form(url: str, recording: Recording) -> None:
    async def send() -> None:
        form = aiohttp.FormData(FIELDS)
        form.add_field("file", recording, filename="a.wav")
        async with aiohttp.ClientSession() as session, session.post(url, data=form) as reply:
            await reply.read()

    asyncio.run(send())


@pytest.mark.parametrize("send", [by_httpx, by_httpx2, by_requests, by_aiohttp, by_aiohttps_form])
def test_the_model_of_a_form(
    app: Flask,
    calls: Callable[[], list[Call]],
    provider: PlayedProvider,
    send: Callable[[str, Recording], None],
) -> None:
    """A transcription names its model in the form only: without an SDK it is priced by it, and the file arrives whole."""
    provider.reply_with("audio/transcriptions", body={"text": "Hello.", "usage": {"type": "duration", "seconds": 27}})
    recording = Recording(b"RIFF" * 1000)
    with app.app_context():
        send(f"{provider.openai_url}/audio/transcriptions", recording)
    (call,) = calls()
    assert (call.operation, call.model, call.requested_model) == ("audio.transcriptions", None, "whisper-1")
    assert (call.cost_status, call.total_cost is not None) == ("priced", True)
    (request,) = provider.requests
    assert b"RIFF" * 1000 in request.body


def test_a_form_is_not_read_before_it_is_sent(app: Flask, provider: PlayedProvider) -> None:
    """Files of any length, also ones that can be read once only, go past us unread."""
    provider.reply_with("audio/transcriptions", body={"text": "Hello."}, times=2)
    url = f"{provider.openai_url}/audio/transcriptions"
    reads = []
    for context in (app.app_context(), Flask("bare").app_context()):
        recording = Recording(b"RIFF" * 1000)
        with context:
            by_httpx(url, recording)
        reads.append(recording.reads)
    assert reads[0] == reads[1] > 0
