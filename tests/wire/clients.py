"""Client libraries that carry a shape to a played provider, each in its own way of reading.

The provider is their HTTP proxy: so each request is made to the shape's own host, whose name says whose call it is.
"""

from __future__ import annotations

import asyncio
import json
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import aiohttp
import boto3
import httpx
import httpx2
import requests
import urllib3
from botocore.config import Config
from corpus import Shape

#: Sends one shape's request and reads the reply: streamed or whole.
Carry = Callable[[Shape], None]

#: What the libraries raise where a reply is cut.
CUT = (httpx.HTTPError, httpx2.HTTPError, requests.RequestException, aiohttp.ClientError, urllib3.exceptions.HTTPError)


def url_of(shape: Shape) -> str:
    return f"http://{shape.host}{shape.path}"


def headers_of(shape: Shape) -> dict[str, str]:
    if shape.request is None:
        return {}
    return {"content-type": "multipart/form-data; boundary=b" if "multipart" in shape.request else "application/json"}


@contextmanager
def by_httpx(library: Any, proxy: str) -> Iterator[Carry]:
    with library.Client(proxy=proxy, trust_env=False) as client:

        def carry(shape: Shape) -> None:
            request = client.build_request(
                shape.method, url_of(shape), content=shape.request_content, headers=headers_of(shape)
            )
            response = client.send(request, stream=shape.streamed)
            if shape.streamed:
                with closing(response):
                    for _ in response.iter_bytes():
                        pass

        yield carry


@contextmanager
def by_async_httpx(library: Any, proxy: str) -> Iterator[Carry]:
    with asyncio.Runner() as runner:
        client = library.AsyncClient(proxy=proxy, trust_env=False)

        async def send(shape: Shape) -> None:
            request = client.build_request(
                shape.method, url_of(shape), content=shape.request_content, headers=headers_of(shape)
            )
            response = await client.send(request, stream=shape.streamed)
            if shape.streamed:
                try:
                    async for _ in response.aiter_bytes():
                        pass
                finally:
                    await response.aclose()

        try:
            yield lambda shape: runner.run(send(shape))
        finally:
            runner.run(client.aclose())


@contextmanager
def by_requests(proxy: str) -> Iterator[Carry]:
    with requests.Session() as session:
        session.trust_env = False
        session.proxies = {"http": proxy}

        def carry(shape: Shape) -> None:
            with session.request(
                shape.method,
                url_of(shape),
                data=shape.request_content,
                headers={**headers_of(shape), "accept-encoding": "gzip, br, zstd"},
                stream=shape.streamed,
            ) as response:
                for _ in response.iter_content(None):
                    pass

        yield carry


@contextmanager
def by_aiohttp(proxy: str) -> Iterator[Carry]:
    async def opened() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(proxy=proxy)

    with asyncio.Runner() as runner:
        session = runner.run(opened())

        async def send(shape: Shape) -> None:
            async with session.request(
                shape.method, url_of(shape), data=shape.request_content or None, headers=headers_of(shape)
            ) as response:
                if shape.streamed:
                    async for _ in response.content.iter_any():
                        pass
                else:
                    await response.read()

        try:
            yield lambda shape: runner.run(send(shape))
        finally:
            runner.run(session.close())


@contextmanager
def by_botocore(proxy: str) -> Iterator[Carry]:
    client = boto3.client(
        "bedrock-runtime",
        endpoint_url="http://bedrock-runtime.us-east-1.amazonaws.com",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(proxies={"http": proxy}, retries={"total_max_attempts": 1}),
    )

    def carry(shape: Shape) -> None:
        model, _, operation = shape.path.removeprefix("/model/").rpartition("/")
        model = urllib.parse.unquote(model)
        if operation == "converse":
            client.converse(modelId=model, **shape.request)
        elif operation == "converse-stream":
            list(client.converse_stream(modelId=model, **shape.request)["stream"])
        elif operation == "invoke":
            client.invoke_model(modelId=model, body=json.dumps(shape.request))["body"].read()
        else:
            list(client.invoke_model_with_response_stream(modelId=model, body=json.dumps(shape.request))["body"])

    try:
        yield carry
    finally:
        client.close()


CLIENTS: Mapping[str, Callable[[str], Any]] = {
    "httpx": lambda proxy: by_httpx(httpx, proxy),
    "httpx async": lambda proxy: by_async_httpx(httpx, proxy),
    "httpx2": lambda proxy: by_httpx(httpx2, proxy),
    "httpx2 async": lambda proxy: by_async_httpx(httpx2, proxy),
    "requests": by_requests,
    "aiohttp": by_aiohttp,
    "botocore": by_botocore,
}


def carries(client: str, shape: Shape, encoding: str | None = None) -> bool:
    """Whether a library can send this request and decode this reply: botocore speaks to Bedrock, undecoded; websockets are
    carried elsewhere."""
    if shape.method == "WEBSOCKET":
        return False
    if client == "botocore":
        ours = shape.name.startswith(("bedrock_converse", "bedrock_invoke")) and shape.known_to("botocore")
        return ours and encoding is None
    return (client, encoding) != ("aiohttp", "zstd") or bool(getattr(aiohttp.compression_utils, "HAS_ZSTD", False))
