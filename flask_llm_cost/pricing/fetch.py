"""The bytes of a price source: a file of the operator's, or a download that trusts nobody.

Only ``flask llm-cost prices`` comes here. Nothing of it runs at import, at start-up, or while a call is recorded.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import socket
import ssl
import stat
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import SplitResult, urlsplit

from flask_llm_cost.errors import PriceSourceError
from flask_llm_cost.version import __version__

MAX_BYTES: Final = 8 * 1024 * 1024
#: LiteLLM's file of 1.109.1, all digits and repeated names, shrinks 20.07 times: a limit of 20 would refuse the first
#: source, and the next edition may shrink more. A bomb shrinks a thousand times, and none gets further than ``MAX_BYTES``.
MAX_RATIO: Final = 64
TOTAL_SECONDS: Final = 10.0
MAX_REDIRECTS: Final = 5
_CHUNK: Final = 64 * 1024
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")

Address = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom a download may talk to.

    :param hosts: ``host`` or ``host:port``; a redirect may not lead elsewhere
    :param public_only: whether every address must be one of the public internet, looked at when it is connected to
    :param proxies: whether ``HTTPS_PROXY`` and ``NO_PROXY`` count
    """

    hosts: frozenset[str]
    public_only: bool = True
    proxies: bool = False


@dataclass(frozen=True, slots=True)
class Download:
    """What was found at a source.

    :param data: ``None`` where it has not changed since *etag*
    """

    name: str
    data: bytes | None
    etag: str | None = None


def own_mirror(url: str) -> Trust:
    """An operator's own mirror: its own host, wherever that is, and no other."""
    return Trust(frozenset({_checked(url).netloc.lower()}), public_only=False, proxies=True)


def download(
    url: str,
    trust: Trust,
    *,
    etag: str | None = None,
    context: ssl.SSLContext | None = None,
    seconds: float = TOTAL_SECONDS,
    resolve: Callable[[str, int], Collection[Address]] | None = None,
) -> Download:
    """Get *url*, in *seconds* all in all, looking up its name and every redirect included.

    :param etag: of what is there already
    :param context: whose certificates count; by default those of the system, or of ``SSL_CERT_FILE``
    :param resolve: from host and port to socket addresses; by default the system's resolver
    :raises PriceSourceError: it cannot be had, or must not be
    """
    name = safe_name(url)
    _allowed(url, trust, name)
    work = _Work(url, name, trust, etag, context or ssl.create_default_context(), resolve or _resolve)
    # A thread of its own, because a resolver has no timeout, and a server that drips never meets one.
    thread = threading.Thread(target=work.run, name="llm-cost-prices", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        work.give_up()
        raise PriceSourceError(name, f"took longer than {seconds:g} seconds; try again, or get it yourself for --from FILE")
    if work.failure is not None:
        raise work.failure
    assert work.result is not None
    return work.result


def read_local(path: Path) -> Download:
    """A file that the operator names.

    :raises PriceSourceError: it is a link, a device or too large, its path climbs with ``..``, or it cannot be read
    """
    name = path.name or str(path)
    if ".." in path.parts:
        raise PriceSourceError(name, "a path with '..' is not followed; give the path itself")
    try:
        # Neither a link nor a pipe that would wait for its writer.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        why = "is a symbolic link; give the file itself" if path.is_symlink() else f"cannot be read ({error.strerror})"
        raise PriceSourceError(name, why) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise PriceSourceError(name, "is no plain file")
    with os.fdopen(handle, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise PriceSourceError(name, f"is larger than {MAX_BYTES:,} bytes")
    return Download(name, data)


def safe_name(url: str) -> str:
    """*url* without what may be a secret: no user, password, query or fragment."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _checked(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise PriceSourceError("the URL", "cannot be read; write https://host/path") from None
    if parts.scheme != "https" or not parts.hostname:
        raise PriceSourceError(safe_name(url), "only https:// is fetched")
    if parts.username or parts.password:
        raise PriceSourceError(
            safe_name(url), "no credentials go into a URL; get the file with a tool of yours and use --from FILE"
        )
    return parts


def _allowed(url: str, trust: Trust, name: str) -> None:
    parts = _checked(url)
    if parts.netloc.lower() not in trust.hosts:
        raise PriceSourceError(name, f"leads to {parts.netloc}, which is none of {', '.join(sorted(trust.hosts))}")


def _resolve(host: str, port: int) -> Collection[Address]:
    return [entry[4] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet: not private, link-local, loopback, reserved or multicast."""
    try:
        ip: Any = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if ip.version == 6:
        if ip in _NAT64:
            ip = ipaddress.ip_address(int(ip) & 0xFFFFFFFF)
        else:
            ip = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None) or ip
    return bool(ip.is_global) and not ip.is_multicast


class _Work:
    """One download, in its own thread."""

    def __init__(
        self,
        url: str,
        name: str,
        trust: Trust,
        etag: str | None,
        context: ssl.SSLContext,
        resolve: Callable[[str, int], Collection[Address]],
    ) -> None:
        self._url = url
        self._name = name
        self._trust = trust
        self._etag = etag
        self._context = context
        self._resolve = resolve
        self._given_up = False
        self.result: Download | None = None
        self.failure: PriceSourceError | None = None

    def run(self) -> None:
        try:
            self.result = self._get()
        except PriceSourceError as error:
            self.failure = error
        except urllib.error.HTTPError as error:
            error.close()
            self.failure = PriceSourceError(self._name, f"answered {error.code}")
        except (OSError, http.client.HTTPException, zlib.error, ValueError) as error:
            # urllib wraps what a connection raised.
            reason = getattr(error, "reason", None)
            cause = reason if isinstance(reason, Exception) else error
            if not isinstance(cause, PriceSourceError):
                cause = PriceSourceError(self._name, f"cannot be had ({_kind(cause)})")
            self.failure = cause

    def give_up(self) -> None:
        self._given_up = True

    def connect(self, address: tuple[str, int], timeout: Any = None, source_address: Any = None) -> socket.socket:
        """A connection to a name whose every address was looked at, to one of those very addresses.

        Whoever owns the name cannot answer once for the look and otherwise for the connection.
        """
        host, port = address
        addresses = self._resolve(host, port)
        if self._trust.public_only and (not addresses or not all(is_public(str(found[0])) for found in addresses)):
            raise PriceSourceError(self._name, f"{host} has an address that is not on the public internet")
        failure: OSError = OSError("no address")
        for found in addresses:
            sock = socket.socket(socket.AF_INET6 if ":" in str(found[0]) else socket.AF_INET, socket.SOCK_STREAM)
            try:
                sock.settimeout(TOTAL_SECONDS)
                sock.connect(found)
            except OSError as error:
                failure = error
                sock.close()
                continue
            return sock
        raise failure

    def _get(self) -> Download:
        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(None if self._trust.proxies else {}),
            _Https(self._context, self.connect),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            _Redirects(self._trust, self._name),
        ):
            opener.add_handler(handler)
        headers = {"User-Agent": f"flask-llm-cost/{__version__}", "Accept-Encoding": "identity"}
        if self._etag:
            headers["If-None-Match"] = self._etag
        try:
            reply = opener.open(urllib.request.Request(self._url, headers=headers), timeout=TOTAL_SECONDS)
        except urllib.error.HTTPError as error:
            if error.code == 304 and self._etag:
                error.close()
                return Download(self._name, None, self._etag)
            raise
        if reply is None:
            raise PriceSourceError(self._name, "only https:// is fetched")
        with reply:
            etag = reply.headers.get("ETag")
            data = b"".join(self._body(reply))
        return Download(self._name, data, etag if etag and len(etag) <= 200 and etag.isprintable() else None)

    def _body(self, reply: Any) -> Iterator[bytes]:
        encoding = (reply.headers.get("Content-Encoding") or "identity").strip().lower()
        if encoding not in ("identity", "gzip"):
            raise PriceSourceError(self._name, f"is encoded as {encoding[:32]!r}, which was not asked for")
        length = reply.headers.get("Content-Length")
        announced = int(length) if length and length.isascii() and length.isdigit() and len(length) < 20 else None
        if announced is not None and announced > MAX_BYTES:
            raise PriceSourceError(self._name, f"is larger than {MAX_BYTES:,} bytes")
        unzip = zlib.decompressobj(wbits=31) if encoding == "gzip" else None
        received = size = 0
        while chunk := reply.read1(_CHUNK):
            if self._given_up:
                return
            received += len(chunk)
            while chunk:
                data, chunk = (unzip.decompress(chunk, _CHUNK), unzip.unconsumed_tail) if unzip else (chunk, b"")
                size += len(data)
                if size > MAX_BYTES:
                    raise PriceSourceError(self._name, f"is larger than {MAX_BYTES:,} bytes")
                if unzip and size > _CHUNK * 4 and size > received * MAX_RATIO:
                    raise PriceSourceError(self._name, f"unpacks to more than {MAX_RATIO} times its size")
                yield data
        if (unzip is not None and not unzip.eof) or (announced is not None and received < announced):
            raise PriceSourceError(self._name, "is cut off")


class _Https(urllib.request.HTTPSHandler):
    """HTTPS whose connections are made by a function of ours."""

    def __init__(self, context: ssl.SSLContext, connect: Callable[..., socket.socket]) -> None:
        super().__init__(context=context)
        self._tls = context
        self._connect = connect

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        def connection(host: str, **options: Any) -> http.client.HTTPSConnection:
            made = http.client.HTTPSConnection(host, timeout=options.get("timeout"), context=self._tls)
            made._create_connection = self._connect  # type: ignore[attr-defined]  # where http.client keeps its own
            return made

        return self.do_open(connection, req)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to where the first request might have gone."""

    max_redirections = MAX_REDIRECTS

    def __init__(self, trust: Trust, name: str) -> None:
        self._trust = trust
        self._name = name

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        fp.close()  # else its body, however long, would be read
        _allowed(newurl, self._trust, self._name)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _kind(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, http.client.IncompleteRead):
        return "it is cut off"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
