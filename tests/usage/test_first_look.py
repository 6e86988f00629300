"""The first look lets through all that a closer look would call a call, and hardly anything else."""

from __future__ import annotations

import asyncio
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import aiohttp
import httpx
import httpx2
import pytest
import requests
from yarl import URL

from flask_llm_cost.capture import aiohttp as aiohttp_capture
from flask_llm_cost.capture import httpx as httpx_capture
from flask_llm_cost.capture import requests as requests_capture
from flask_llm_cost.usage import Format, HostMap
from flask_llm_cost.usage.first_look import FirstLook, first_look

sys.path.insert(0, str(Path(__file__).parents[1] / "wire"))

from corpus import Shape, shapes

CALLS = [pytest.param(shape, id=shape.name) for shape in shapes() if shape.expected is not None]


@pytest.mark.parametrize("shape", CALLS)
def test_every_known_call_passes(shape: Shape) -> None:
    """Whatever the query, a trailing slash, or an encoded colon: each call of the corpus passes the first look."""
    HostMap(shape.hosts, True)
    for path in (shape.path, quote(shape.path), quote(shape.path).replace("%3A", "%3a"), shape.path.rstrip("/") + "/"):
        for query in ("", "?api-version=1&url=http%3A%2F%2Fx"):
            url = f"https://{shape.host}{path}{query}"
            assert first_look.find(url)
            assert httpx_capture._may_be_call(httpx.Request(shape.method, url))


@pytest.mark.parametrize(
    "path", ["/", "", "/orders", "/api/v2/customers/7/orders?after=/v1/x", "/chat", "/completions.json", "/messages/7"]
)
def test_other_traffic_does_not(path: str) -> None:
    """What no format and no app claims passes with one look."""
    look = FirstLook()
    look.teach(ends=first_look._ends, hosts=["gateway.example:8443", "[::1]:8001"])
    assert not look.find(f"https://shop.example{path}")
    assert look.find(f"https://user:word@gateway.example:99{path or '/'}")
    assert look.find(f"http://[::1]:8001{path or '/'}")
    for module in (httpx, httpx2):
        assert not httpx_capture._may_be_call(module.Request("POST", f"https://shop.example{path}"))


class Taught(Format):
    name = "taught"
    paths = ("/v1/first-look", ":first_look_verb")


def test_what_an_app_teaches_passes_too() -> None:
    """A path that an app registered is let through from then on, by whole segments or by the end of one."""
    assert not first_look.find("https://anywhere.example/v1/first-look?x=1")
    HostMap({}, True, [Taught()])
    for path in ("/v1/first-look", "/a/v1/first-look/?x=1", "/m/x:first_look_verb", "/m/x%3Afirst_look_verb"):
        assert first_look.find(f"https://anywhere.example{path}")


def test_a_relative_address_of_aiohttp_is_on_its_sessions_host() -> None:
    """On a host that an app named, a session's relative address passes; on another one it does not."""
    HostMap({"first-look.example": "openai"}, True)

    async def look(base: str) -> bool:
        async with aiohttp.ClientSession(base) as session:
            return aiohttp_capture._may_be_call(session, "/anything")

    assert asyncio.run(look("https://first-look.example"))
    assert not asyncio.run(look("https://shop.example"))


@pytest.mark.parametrize("address", ["responses", URL("responses"), "/v1/responses?next=http://x"])
def test_a_relative_address_of_aiohttp_is_added_to_its_sessions_base(address: str | URL) -> None:
    """A session whose base has a path is asked for the rest of it, without a first slash: that is a call all the same."""

    async def look() -> bool:
        async with aiohttp.ClientSession("https://api.openai.com/v1/") as session:
            return aiohttp_capture._may_be_call(session, address)

    assert asyncio.run(look())


class Address(str):
    """A text that says when nobody keeps it any more."""

    __slots__ = ("__weakref__",)


def test_an_address_is_remembered_without_its_secrets() -> None:
    """What is kept of an address has no query in it, and one with a name and a password before its host is not kept."""
    look = FirstLook()
    look.teach(ends=first_look._ends, hosts=["gateway.example"])
    kept: list[str] = []
    look._remembered = lambda path: kept.append(path) or look.find(path)  # type: ignore[func-returns-value]
    assert not look.of_url("https://shop.example/orders?token=word")
    assert look.of_url("https://api.example/v1/responses?token=word")
    assert look.of_url("https://user:word@gateway.example/orders")
    assert not look.of_url("https://user:word@shop.example/orders")
    assert kept == ["https://shop.example/orders", "https://api.example/v1/responses"]


def test_no_whole_address_and_no_long_path_is_remembered() -> None:
    """What has a query may have a secret in it, and long paths would take memory for nothing: neither is kept."""
    request = requests.Request("GET", "https://shop.example/").prepare()
    client = httpx.Request("GET", "https://shop.example/")
    for text in ("https://shop.example/orders?token=word", "/orders/" + "a" * 500):
        address = Address(text)
        kept = weakref.ref(address)
        request.url = address
        client.url._uri_reference = SimpleNamespace(path=address, host="shop.example")  # type: ignore[assignment]
        assert not requests_capture._may_be_call(request)
        if "?" not in address:
            assert not httpx_capture._may_be_call(client)
        request.url, client.url, address = None, httpx.URL(), Address()
        assert kept() is None
