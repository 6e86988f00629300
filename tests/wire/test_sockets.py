"""The corpus over real websockets: each shape whose events are messages gives the records that reading it gives."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable

import pytest
from corpus import Shape, shapes
from flask import Flask
from played_socket import playing_socket
from test_clients import compare, expected
from websockets.asyncio.client import connect as connect_async
from websockets.sync.client import connect

from flask_llm_cost.testing import capture_calls

SHAPES = [pytest.param(shape, id=shape.name) for shape in shapes() if shape.method == "WEBSOCKET"]

Carry = Callable[[Shape, socket.socket], None]


def carry(shape: Shape, way: socket.socket) -> None:
    with connect(f"ws://{shape.host}{shape.path}", sock=way) as connection:
        assert [json.loads(message) for message in connection] == shape.reply["events"]


def carry_async(shape: Shape, way: socket.socket) -> None:
    async def run() -> None:
        async with connect_async(f"ws://{shape.host}{shape.path}", sock=way) as connection:
            assert [json.loads(message) async for message in connection] == shape.reply["events"]

    asyncio.run(run())


@pytest.mark.parametrize("by", [carry, carry_async], ids=["sync", "asyncio"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_over_a_websocket(app: Flask, shape: Shape, by: Carry) -> None:
    """Host, path and messages of a session give the records that reading its events gives, to the shape's own host."""
    with playing_socket() as played, app.app_context(), capture_calls() as calls:
        played.opening, played.code = shape.reply["events"], 1000
        by(shape, socket.create_connection(("127.0.0.1", played.port)))
    compare(calls, expected(shape), shape.name)
