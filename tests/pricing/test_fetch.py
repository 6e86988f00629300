"""Prices are fetched over HTTPS from where they are meant to come from and nowhere else, in bounded time and memory."""

from __future__ import annotations

import gzip
import os
import socket
import ssl
import subprocess
import sys
import threading
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from price_server import PriceServer

from flask_llm_cost.errors import PriceSourceError
from flask_llm_cost.pricing import fetch
from flask_llm_cost.pricing.fetch import MAX_BYTES, Download, Trust, download, is_public, own_mirror, read_local
from flask_llm_cost.pricing.sources import LITELLM, OPENROUTER

BODY = b'{"gpt": 1}'


def _get(server: PriceServer, path: str = "/prices", **options: Any) -> Download:
    url = server.url(path)
    return download(url, options.pop("trust", own_mirror(url)), context=server.context(), **options)


def test_what_is_there_is_had_with_its_tag(server: PriceServer) -> None:
    """The body as sent, and the tag to ask with the next time; nothing that tells who asks."""
    server.say("/prices", BODY, ETag='"one"')
    assert _get(server) == Download(server.url("/prices"), BODY, '"one"')
    headers = server.requests[0][1]
    assert set(headers) == {"host", "user-agent", "accept-encoding", "connection"}
    assert headers["user-agent"].startswith("flask-llm-cost/")


def test_what_has_not_changed_is_not_sent_again(server: PriceServer) -> None:
    """The tag is sent back, and 304 means that nothing is to be done."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(304 if handler.headers["If-None-Match"] == '"one"' else 500)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.answers["/prices"] = answer
    assert _get(server, etag='"one"').data is None


def test_a_certificate_that_is_not_trusted_ends_it(server: PriceServer) -> None:
    """By default only the system's authorities count; no byte of the body is read."""
    server.say("/prices", BODY)
    with pytest.raises(PriceSourceError, match="certificate is not trusted"):
        download(server.url("/prices"), own_mirror(server.url("/prices")))
    url = f"https://prices.example:{server.port}/prices"  # a name that the certificate does not have
    with pytest.raises(PriceSourceError, match="certificate is not trusted"):
        download(url, own_mirror(url), context=server.context(), resolve=lambda _, port: [("127.0.0.1", port)])
    assert server.requests == []


@pytest.mark.parametrize(
    "url", ["http://localhost/prices", "ftp://localhost/prices", "file:///etc/passwd", "https://", "https://[::1"]
)
def test_only_https_is_fetched(url: str) -> None:
    """Whoever names the URL, and whatever it looks like."""
    with pytest.raises(PriceSourceError, match=r"only https:// is fetched|cannot be read"):
        own_mirror(url)


def test_credentials_in_a_url_are_refused_and_never_shown() -> None:
    """They would end in a file, a log or a shell's history."""
    with pytest.raises(PriceSourceError) as failure:
        own_mirror("https://me:hunter2@prices.example/prices?key=hunter3")
    assert "hunter" not in str(failure.value)


def test_the_default_sources_are_fetched_by_name(server: PriceServer) -> None:
    """LiteLLM's file and OpenRouter's list, at their hosts, over HTTPS."""
    for feed in (LITELLM, OPENROUTER):
        assert feed.trust is not None
        path = feed.url.partition("//")[2].partition("/")[2]
        server.say(f"/{path}", BODY)
        trust = Trust(feed.trust.hosts, public_only=False)
        found = download(
            feed.url, trust, context=server.context(), resolve=lambda _host, _port: [("127.0.0.1", server.port)]
        )
        assert found.data == BODY


@pytest.mark.parametrize(
    "target",
    [
        "http://{host}/other",
        "https://127.0.0.1:{port}/other",
        "https://169.254.169.254/latest/meta-data",
        "https://localhost/other",
        "https://localhost:{port}@evil.example/other",
        "ftp://{host}/other",
        "file:///etc/passwd",
    ],
)
def test_a_redirect_leads_nowhere_else(server: PriceServer, target: str) -> None:
    """Not to plain HTTP, not to another host or port, not to what only looks like the same."""
    server.redirect("/prices", target.format(host=server.host, port=server.port))
    server.say("/other", BODY)
    with pytest.raises(PriceSourceError):
        _get(server)
    assert [path for path, _ in server.requests] == ["/prices"]


def test_a_redirect_on_the_same_host_is_followed_but_not_for_ever(server: PriceServer) -> None:
    """A file that has moved is found; a circle is a failure."""
    server.redirect("/prices", "/moved")
    server.say("/moved", BODY)
    assert _get(server).data == BODY
    server.redirect("/moved", "/prices")
    with pytest.raises(PriceSourceError, match="answered 302"):
        _get(server)
    assert len(server.requests) < 20


def test_an_address_inside_is_refused_before_it_is_connected_to(server: PriceServer) -> None:
    """A public name that resolves to a private address, at first or after a redirect, is a trap."""
    server.say("/prices", BODY)
    asked = []

    def resolve(host: str, port: int) -> Collection[tuple[str, int]]:
        asked.append(host)
        return [("93.184.216.34", port), ("127.0.0.1", server.port)]

    with pytest.raises(PriceSourceError, match="not on the public internet"):
        _get(server, trust=Trust(frozenset({server.host})), resolve=resolve)
    assert asked == ["localhost"]
    assert server.requests == []


def test_the_address_that_was_looked_at_is_the_one_that_is_used(server: PriceServer) -> None:
    """A name is resolved once a connection: who answers differently the second time is never asked a second time."""
    server.say("/prices", BODY)
    answers: Iterator[list[tuple[str, int]]] = iter([[("127.0.0.1", server.port)]])
    assert _get(server, resolve=lambda _host, _port: next(answers)).data == BODY


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("140.82.121.3", True),
        ("2606:50c0:8000::154", True),
        ("10.0.0.1", False),
        ("172.16.3.4", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00:ec2::254", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:a9fe:a9fe::1", False),
        ("ff02::1", False),
        ("not an address", False),
    ],
)
def test_what_is_public(address: str, public: bool) -> None:
    """Private, link-local, loopback, reserved, multicast, and any of them wrapped in IPv6, are not."""
    assert is_public(address) is public


def _streamed(handler: BaseHTTPRequestHandler, size: int) -> None:
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.close_connection = True
    for _ in range(size // 65536 + 1):
        handler.wfile.write(b" " * 65536)


def test_a_body_that_is_too_large_is_not_read_to_its_end(server: PriceServer) -> None:
    """Announced or not, no more than 8 MiB."""
    assert MAX_BYTES == 8 * 1024 * 1024
    server.answers["/prices"] = lambda handler: _streamed(handler, MAX_BYTES * 4)
    with pytest.raises(PriceSourceError, match="larger than"):
        _get(server)
    server.say("/announced", b"", Content_Length=str(10**12))
    with pytest.raises(PriceSourceError, match="larger than"):
        _get(server, "/announced")


def test_a_packed_body_is_read_and_a_bomb_is_not(server: PriceServer) -> None:
    """A server that packs although it was not asked to is understood, within a ratio and a size."""
    server.say("/prices", gzip.compress(BODY), Content_Encoding="gzip")
    assert _get(server).data == BODY
    server.say("/bomb", gzip.compress(b"0" * 7_000_000), Content_Encoding="gzip")
    with pytest.raises(PriceSourceError, match="unpacks to more than"):
        _get(server, "/bomb")
    server.say("/cut", gzip.compress(os.urandom(1000))[:-300], Content_Encoding="gzip")
    with pytest.raises(PriceSourceError, match="cut off"):
        _get(server, "/cut")
    server.say("/broken", b"no gzip at all", Content_Encoding="gzip")
    with pytest.raises(PriceSourceError, match="cannot be had"):
        _get(server, "/broken")
    server.say("/deflate", zlib.compress(BODY), Content_Encoding="deflate")
    with pytest.raises(PriceSourceError, match="encoded as 'deflate'"):
        _get(server, "/deflate")


def test_a_body_that_is_cut_off_is_no_body(server: PriceServer) -> None:
    """Half of a file would pass for one with many models gone."""
    for path, headers in (("/length", {"Content-Length": "100"}), ("/chunks", {"Transfer-Encoding": "chunked"})):

        def answer(handler: BaseHTTPRequestHandler, headers: dict[str, str] = headers) -> None:
            handler.send_response(200)
            for name, value in headers.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(b"10\r\n{" if "Transfer-Encoding" in headers else BODY)
            handler.close_connection = True

        server.answers[path] = answer
        with pytest.raises(PriceSourceError, match="cut off"):
            _get(server, path)


@pytest.mark.parametrize("status", [404, 500, 429])
def test_an_error_of_the_server_is_named(server: PriceServer, status: int) -> None:
    """By its number, and nothing of its body."""
    server.say("/prices", b"secret reason", status)
    with pytest.raises(PriceSourceError, match=f"answered {status}") as failure:
        _get(server)
    assert "secret" not in str(failure.value)


def test_a_server_that_drips_does_not_hold_the_command(server: PriceServer) -> None:
    """The time is for all of it, however often a byte comes."""
    stop = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not stop.wait(0.02):
            handler.wfile.write(b" ")
            handler.wfile.flush()

    server.answers["/prices"] = answer
    try:
        with pytest.raises(PriceSourceError, match=r"took longer than 0\.3 seconds"):
            _get(server, seconds=0.3)
    finally:
        stop.set()


def test_a_resolver_that_hangs_does_not_hold_the_command(server: PriceServer) -> None:
    """Resolvers have no timeout of their own."""
    stop = threading.Event()

    def resolve(_host: str, _port: int) -> Collection[tuple[str, int]]:
        stop.wait(30)
        return []

    try:
        with pytest.raises(PriceSourceError, match="took longer"):
            _get(server, resolve=resolve, seconds=0.2)
    finally:
        stop.set()


def test_nobody_there_is_a_failure() -> None:
    """A refused connection, an unknown name: one line."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"https://localhost:{free.getsockname()[1]}/prices"
        with pytest.raises(PriceSourceError, match="cannot be had"):
            download(url, own_mirror(url))


@contextmanager
def _tunnel() -> Iterator[tuple[int, list[str]]]:
    """A proxy that knows CONNECT and nothing else."""
    seen: list[str] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass

    def serve() -> None:
        client, _ = listener.accept()
        with client:
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(65536)
            seen.append(head.split(b"\r\n")[0].decode())
            host, _, port = seen[-1].split()[1].rpartition(":")
            with socket.create_connection((host, int(port))) as target:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=pump, args=(target, client), daemon=True)
                back.start()
                pump(client, target)
                back.join(5)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], seen
    finally:
        thread.join(5)
        listener.close()


def test_an_own_mirror_is_reached_by_the_proxy(server: PriceServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """``HTTPS_PROXY`` counts for what the operator names; the default sources are asked directly."""
    server.say("/prices", BODY)
    monkeypatch.setenv("no_proxy", "")
    with _tunnel() as (port, seen):
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        assert _get(server, trust=Trust(frozenset({server.host}), public_only=False)).data == BODY
        assert seen == []
        assert _get(server).data == BODY
    assert seen == [f"CONNECT localhost:{server.port} HTTP/1.1"] or seen == [f"CONNECT localhost:{server.port} HTTP/1.0"]


def test_a_file_is_a_plain_file(tmp_path: Path) -> None:
    """No link, no pipe that waits for ever, no device, no path that climbs, nothing too large."""
    good = tmp_path / "prices.json"
    good.write_bytes(BODY)
    assert read_local(good).data == BODY
    link, pipe, large = tmp_path / "link", tmp_path / "pipe", tmp_path / "large"
    link.symlink_to(good)
    os.mkfifo(pipe)
    with large.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    for path, reason in (
        (link, "symbolic link"),
        (pipe, "no plain file"),
        (large, "larger than"),
        (tmp_path, "no plain file"),
        (Path("/dev/zero"), "no plain file"),
        (tmp_path / "sub" / ".." / "prices.json", "'..'"),
        (tmp_path / "nothing", "cannot be read"),
    ):
        with pytest.raises(PriceSourceError, match=reason):
            read_local(path)


def test_the_app_does_not_load_what_fetches() -> None:
    """No network of ours at import or start-up: the module is not even there."""
    code = "import sys, flask_llm_cost, flask_llm_cost.cli; sys.exit('flask_llm_cost.pricing.fetch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_context_checks_names_and_certificates() -> None:
    """The default is Python's own strict one."""
    context = ssl.create_default_context()
    assert context.check_hostname
    assert fetch.TOTAL_SECONDS == 10
