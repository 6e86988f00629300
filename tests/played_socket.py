"""OpenAI's websockets, played on loopback by the server of ``websockets``."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

Message = str | bytes | Mapping[str, Any] | list[str]

USAGE = {
    "total_tokens": 253,
    "input_tokens": 132,
    "output_tokens": 121,
    "input_token_details": {
        "text_tokens": 90,
        "audio_tokens": 42,
        "cached_tokens": 64,
        "cached_tokens_details": {"text_tokens": 44, "audio_tokens": 20},
    },
    "output_token_details": {"text_tokens": 30, "audio_tokens": 91},
}
COMPONENTS = {"input": 46, "cache_read": 44, "audio_input": 22, "audio_cache_read": 20, "output": 30, "audio_output": 91}

#: What must not be found anywhere.
SECRET = "the-words-of-the-app"


def session(model: str = "gpt-realtime", transcribing: str | None = None, kind: str = "session.created") -> dict[str, Any]:
    written = {"audio": {"input": {"transcription": {"model": transcribing}}}} if transcribing else {}
    body = {"type": "realtime", "model": model, "instructions": SECRET, **written}
    return {"type": kind, "event_id": "event_0", "session": body}


def created(key: str = "resp_1") -> dict[str, Any]:
    response = {"object": "realtime.response", "id": key, "status": "in_progress", "output": [], "usage": None}
    return {"type": "response.created", "event_id": "event_1", "response": response}


def done(key: str = "resp_1", status: str = "completed", usage: Any = USAGE) -> dict[str, Any]:
    said = {"type": "output_text", "text": f'{SECRET} "usage": {{"input_tokens": 1}}'}
    output = [{"type": "message", "role": "assistant", "content": [said]}]
    response = {"object": "realtime.response", "id": key, "status": status, "output": output, "usage": usage}
    return {"type": "response.done", "event_id": "event_2", "response": response}


def transcribed(**usage: Any) -> dict[str, Any]:
    kind = "conversation.item.input_audio_transcription.completed"
    return {
        "type": kind,
        "event_id": "event_3",
        "item_id": "item_1",
        "content_index": 0,
        "transcript": SECRET,
        "usage": usage,
    }


class PlayedSocket:
    """Says *opening* to each client, and for each message that it gets the next of *turns*. A list is sent in fragments.

    After the last turn it closes the connection with *code*, or lets it stand.
    """

    def __init__(self) -> None:
        self.opening: Sequence[Message] = (session(),)
        self.turns: Sequence[Sequence[Message]] = ()
        self.code: int | None = None
        self.received: list[str | bytes] = []
        self.port = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The address of a session."""
        return f"ws://{self.host}/v1/realtime?model=gpt-realtime"

    def _play(self, connection: ServerConnection) -> None:
        try:
            self._say(connection, self.opening)
            for turn in self.turns:
                self.received.append(connection.recv())
                self._say(connection, turn)
            if self.code is not None:
                connection.close(self.code)
            for message in connection:
                self.received.append(message)
        except ConnectionClosed:
            return

    @staticmethod
    def _say(connection: ServerConnection, messages: Sequence[Message]) -> None:
        for message in messages:
            connection.send(json.dumps(message) if isinstance(message, Mapping) else message)


@contextmanager
def playing_socket() -> Iterator[PlayedSocket]:
    played = PlayedSocket()
    with serve(played._play, "127.0.0.1", 0) as server:
        played.port = server.socket.getsockname()[1]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield played
        finally:
            server.shutdown()
            thread.join()
