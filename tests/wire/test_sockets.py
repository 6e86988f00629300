"""The corpus over real websockets: each shape whose events are messages gives the records that reading it gives."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from corpus import Shape, shapes
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from test_clients import compare, expected
from websockets.asyncio.client import connect as connect_async
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from flask_llm_cost import LlmCostTracker
from flask_llm_cost.testing import capture_calls

SHAPES = [pytest.param(shape, id=shape.name) for shape in shapes() if shape.method == "WEBSOCKET"]

Carry = Callable[[Shape, socket.socket], None]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    directory: Path = tmp_path_factory.mktemp("sockets")
    app = Flask("sockets", instance_path=str(directory))
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{directory}/app.db"
    SQLAlchemy(app)
    LlmCostTracker(app)
    yield app
    app.extensions["llm_cost"].ledger.close()
    with app.app_context():
        app.extensions["sqlalchemy"].engine.dispose()


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

    def play(connection: ServerConnection) -> None:
        for event in shape.reply["events"]:
            connection.send(json.dumps(event))

    with serve(play, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with app.app_context(), capture_calls() as calls:
                by(shape, socket.create_connection(server.socket.getsockname()))
        finally:
            server.shutdown()
            thread.join()
    compare(calls, expected(shape), shape.name)
