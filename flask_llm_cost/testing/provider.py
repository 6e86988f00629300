"""A provider played on loopback, for tests that want real HTTP and no bill.

::

    with PlayedProvider() as provider:
        client = OpenAI(base_url=provider.openai_url, api_key="any")
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "Hello"}])
        assert provider.truth[0].usage["prompt_tokens"] == 1

It speaks OpenAI's chat completions, responses, embeddings, moderations and models, and Anthropic's messages and
``count_tokens``, streamed and not, under any prefix. Its *truth* is what it says it billed, to hold a ledger against.

As a process of its own: ``python -m flask_llm_cost.testing.provider --truth-log truth.jsonl --port 0``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self, TypeAlias

from flask_llm_cost.testing import anthropic_shapes, openai_shapes
from flask_llm_cost.testing.exchange import Exchange, Json
from flask_llm_cost.testing.reply import Reply

ChunkSize: TypeAlias = int | Literal["line"] | None

_ROUTE: Final = re.compile(
    r"/(chat/completions|responses/input_tokens|responses/(?P<id>[\w-]+)|responses|embeddings|moderations|models"
    r"|messages/count_tokens|messages)$"
)


@dataclass(frozen=True, slots=True)
class Billed:
    """One exchange that the provider billed.

    :param path: as requested, prefix included, without the query
    :param model: as served
    :param usage: the usage block as sent; in a stream, its parts merged. Known here even where the stream carries none
    :param stream_completed: whether all of a stream was sent; ``True`` for a plain reply that was not cut
    :param time: when the request arrived, UTC
    """

    path: str
    model: str
    usage: Json
    response_id: str | None
    streamed: bool
    stream_completed: bool
    time: datetime


class Received(NamedTuple):
    """A request as it arrived. The names of ``headers`` are lower-case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class PlayedProvider:
    """A provider on ``127.0.0.1``, serving from ``start()`` (or ``with``) until ``close()``. Safe to use from many threads.

    :param port: 0 takes any free one
    :param pace: seconds before each event of a stream
    :param truth_log: a file that gets one JSON line per billed exchange, before its last byte is sent
    """

    def __init__(self, *, port: int = 0, pace: float = 0.0, truth_log: Path | None = None) -> None:
        self.pace = pace
        self._truth_log = truth_log
        self._lock = threading.Lock()
        self._truth: list[Billed] = []
        self._cleared_at = datetime.now(UTC)
        self._requests: list[Received] = []
        self._replies: list[tuple[str, Reply]] = []
        self._background: dict[str, Json] = {}
        self._cached: set[str] = set()
        self._server = _Server(("127.0.0.1", port), self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="played-provider", daemon=True)

    def start(self) -> Self:
        """Serve from now on, in a thread."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop serving, cut open connections, wait for their threads."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.hang_up()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def host(self) -> str:
        """``127.0.0.1:port``"""
        return f"127.0.0.1:{self._server.server_port}"

    @property
    def url(self) -> str:
        """``http://127.0.0.1:port``"""
        return f"http://{self.host}"

    @property
    def openai_url(self) -> str:
        """For ``OpenAI(base_url=...)`` or ``OPENAI_BASE_URL``."""
        return f"{self.url}/openai/v1"

    @property
    def anthropic_url(self) -> str:
        """For ``Anthropic(base_url=...)`` or ``ANTHROPIC_BASE_URL``."""
        return f"{self.url}/anthropic"

    @property
    def hosts(self) -> dict[str, str]:
        """For ``LLM_COST_HOSTS``: which provider each of the two addresses plays."""
        return {f"{self.host}/openai": "openai", f"{self.host}/anthropic": "anthropic"}

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which the SDKs find the two addresses, with keys that are none."""
        return {
            "OPENAI_BASE_URL": self.openai_url,
            "OPENAI_API_KEY": "played",
            "ANTHROPIC_BASE_URL": self.anthropic_url,
            "ANTHROPIC_API_KEY": "played",
        }

    @property
    def truth(self) -> list[Billed]:
        """Every exchange billed so far, in order. An exchange is in it before its last byte is sent."""
        with self._lock:
            return list(self._truth)

    @property
    def requests(self) -> list[Received]:
        """Every request so far, in order of arrival."""
        with self._lock:
            return list(self._requests)

    def clear(self) -> None:
        """Forget truth, requests, queued replies and cached texts, and the exchanges that are still on."""
        with self._lock:
            self._cleared_at = datetime.now(UTC)
            for memory in (self._truth, self._requests, self._replies, self._background, self._cached):
                memory.clear()

    def reply_with(
        self,
        path: str,
        *,
        body: Json | bytes | str | None = None,
        events: Sequence[Json | bytes | str] | None = None,
        usage: Json | None = None,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        encoding: Literal["gzip", "deflate", "br", "zstd"] | None = None,
        chunk_size: ChunkSize = None,
        delay: float = 0.0,
        cut_after: int | None = None,
        times: int = 1,
    ) -> None:
        """Queue the reply to the next request whose path ends with *path*, whatever its method. Earlier ones go first.

        :param body: a JSON body, or raw text or bytes. Without body and events the usual reply is sent, or an error in the
            API's shape from status 400 on
        :param events: a stream: mappings become server-sent events (named by their ``type``), strings their data lines,
            bytes are sent as they are
        :param usage: the usage block of the usual reply; beside *body* or *events*, what the truth says instead of what
            they say
        :param encoding: the content encoding to send it in; ``br`` and ``zstd`` need ``brotli`` and ``zstandard``
        :param chunk_size: send the body in pieces of so many bytes, or by ``"line"``; by default a stream goes by event
        :param delay: seconds before the reply starts
        :param cut_after: close the connection after so many bytes of the body. The exchange is billed all the same
        :param times: how many requests get this reply
        """
        reply = Reply(
            body=body,
            events=events,
            usage=usage,
            status=status,
            headers=dict(headers or {}),
            encoding=encoding,
            chunk_size=chunk_size,
            delay=delay,
            cut_after=cut_after,
        )
        with self._lock:
            self._replies.extend([(path, reply)] * times)

    def _answer(self, request: Received) -> tuple[Reply, Billed | None]:
        """The reply to a request, filled in, and what to bill for it once it is sent."""
        path = request.path.split("?", 1)[0]
        with self._lock:
            began = datetime.now(UTC)  # in here, so that clear() is before or after it
            self._requests.append(request)
            queued = next((entry for entry in self._replies if path.endswith(entry[0])), None)
            if queued:
                self._replies.remove(queued)
        reply = queued[1] if queued else Reply()
        try:
            asked = json.loads(request.body) if request.body else {}
        except ValueError:
            asked = {}
        asked = asked if isinstance(asked, dict) else {}
        if reply.body is None and reply.events is None:
            reply, exchange = self._usual(request, path, asked, reply)
        else:
            exchange = reply.exchange(str(asked.get("model", "")))
        if exchange is None or exchange.usage is None or reply.status >= 400:
            return reply, None
        streamed = reply.events is not None
        billed = Billed(path, exchange.model, exchange.usage, exchange.response_id, streamed, True, began)
        return reply, billed

    def _usual(self, request: Received, path: str, asked: Json, reply: Reply) -> tuple[Reply, Exchange | None]:
        shapes = anthropic_shapes if "anthropic-version" in request.headers or "/messages" in path else openai_shapes
        if reply.status >= 400:
            return replace(reply, body=shapes.error(reply.status, "Played error.")), None
        match = _ROUTE.search(path)
        known = match.group(1) if match else ""
        if request.method == "GET":
            if known == "models":
                return replace(reply, body=shapes.models()), None
            if match and match["id"] in self._background:
                return replace(reply, body=self._background[match["id"]]), None
        if request.method != "POST" or known not in _POSTS or not isinstance(asked.get("model", ""), str):
            status = 400 if known in _POSTS and request.method == "POST" else 404
            return replace(reply, status=status, body=shapes.error(status, "Not played here.")), None
        if known == "messages":
            with self._lock:
                exchange = anthropic_shapes.messages(asked, reply.usage, self._cached)
        else:
            exchange = _POSTS[known](asked, reply.usage)
        if known == "responses" and asked.get("background") and exchange.body is not None:
            with self._lock:
                self._background[str(exchange.response_id)] = exchange.body
            return replace(reply, body={**exchange.body, "status": "queued", "output": [], "usage": None}), exchange
        return replace(reply, body=exchange.body, events=exchange.events), exchange

    def _bill(self, billed: Billed) -> None:
        with self._lock:
            if billed.time >= self._cleared_at:
                self._truth.append(billed)
            if self._truth_log is not None:
                with self._truth_log.open("a", encoding="utf-8") as log:
                    log.write(json.dumps(asdict(billed) | {"time": billed.time.isoformat()}) + "\n")


_POSTS: Final = {
    "chat/completions": openai_shapes.chat,
    "responses": openai_shapes.responses,
    "responses/input_tokens": openai_shapes.input_tokens,
    "embeddings": openai_shapes.embeddings,
    "moderations": openai_shapes.moderations,
    "messages": anthropic_shapes.messages,
    "messages/count_tokens": anthropic_shapes.count,
}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def __init__(self, address: tuple[str, int], provider: PlayedProvider) -> None:
        super().__init__(address, _Handler)
        self.provider = provider
        self.stopping = threading.Event()
        self._open: dict[socket.socket, threading.Thread] = {}
        self._open_lock = threading.Lock()

    def server_bind(self) -> None:
        # Not http.server's own, which asks for the name of this address, of a name server perhaps.
        super(HTTPServer, self).server_bind()
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with self._open_lock:
            self._open[request] = threading.current_thread()
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._open_lock:
                self._open.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def hang_up(self) -> None:
        self.stopping.set()
        with self._open_lock:
            threads = list(self._open.values())
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding"):
            self.send_error(411)
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply, billed = self.server.provider._answer(Received(self.command, self.path, headers, body))
        if self.server.stopping.wait(reply.delay):
            # Woken by the end: it must not answer in the moment before its connection is cut.
            self.close_connection = True
            return
        self._send(reply, billed)

    do_GET = do_PUT = do_PATCH = do_DELETE = do_POST  # noqa: N815 - the names that http.server looks for

    def _send(self, reply: Reply, billed: Billed | None) -> None:
        pieces = reply.pieces()
        size = sum(map(len, pieces))
        chunked = reply.events is not None or reply.chunk_size is not None
        cut = reply.cut_after is not None and reply.cut_after < size
        self.send_response(reply.status)
        for name, value in reply.response_headers().items():
            self.send_header(name, value)
        self.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(size))))
        left = reply.cut_after if cut and reply.cut_after is not None else size
        settled = False
        try:
            self.end_headers()
            for number, piece in enumerate(pieces):
                if reply.events is not None and self.server.provider.pace:
                    self.server.stopping.wait(self.server.provider.pace)
                piece, left = piece[:left], left - len(piece)
                if billed and (left <= 0 or number == len(pieces) - 1):
                    settled = True
                    self.server.provider._bill(replace(billed, stream_completed=not cut))
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked and piece else piece)
                if left <= 0:
                    break
            if cut:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            elif chunked:
                self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True
            if billed and not settled:
                self.server.provider._bill(replace(billed, stream_completed=False))

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: the truth log is the log."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGINT or SIGTERM. The first line printed is the address."""
    parser = argparse.ArgumentParser(prog="python -m flask_llm_cost.testing.provider", description=main.__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes any free one")
    parser.add_argument("--pace", type=float, default=0.0, metavar="SECONDS", help="wait before each event of a stream")
    parser.add_argument("--truth-log", type=Path, metavar="FILE", help="append what was billed, as JSON lines")
    options = parser.parse_args(arguments)
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    with PlayedProvider(port=options.port, pace=options.pace, truth_log=options.truth_log) as provider:
        print(provider.url, flush=True)
        stop.wait()


if __name__ == "__main__":
    main()
