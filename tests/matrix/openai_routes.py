"""Every billed call of the ``openai`` package, 1 to 3."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import openai
from driver import Provider, Routes, break_off, break_off_async, consume, consume_async, has

ROUTES = Routes(("openai",))

MAJOR = int(openai.__version__.partition(".")[0])
#: The HTTP library that this version sits on.
HTTP: Any = importlib.import_module("httpx2" if MAJOR >= 3 else "httpx")

QUESTION: Any = [{"role": "user", "content": "what does it cost to ask a question?"}]
CHAT: Any = {"model": "gpt-4o", "messages": QUESTION}
RESPONSE: Any = {"model": "gpt-4o-mini", "input": "hello there, how are you?"}
ASKED: Any = {"stream": True, "stream_options": {"include_usage": True}}

Call = Callable[[Any], Any]

_PROBE = openai.OpenAI(api_key="probe")


def client(provider: Provider, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(**{"base_url": provider.openai_url, "api_key": "test", **options})


def async_client(provider: Provider, **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(**{"base_url": provider.openai_url, "api_key": "test", **options})


def both(
    name: str,
    call: Call,
    needs: str = "",
    reply: Callable[[Provider], None] = lambda provider: None,
    routes: Routes = ROUTES,
    broken: bool = False,
) -> None:
    """One call, by the sync client and by the async one."""

    def sync(provider: Provider) -> None:
        reply(provider)
        with client(provider) as made:
            (break_off if broken else consume)(call(made))

    async def twin(provider: Provider) -> None:
        reply(provider)
        async with async_client(provider) as made:
            await (break_off_async if broken else consume_async)(call(made))

    def there() -> bool:
        return not needs or has(_PROBE, needs)

    routes.add(name, sync, there, broken)
    routes.add(f"async {name}", twin, there, broken)


both("chat", lambda c: c.chat.completions.create(**CHAT))
both("chat stream", lambda c: c.chat.completions.create(**CHAT, stream=True))
both("chat stream, usage asked", lambda c: c.chat.completions.create(**CHAT, **ASKED))
both("chat parse", lambda c: c.chat.completions.parse(**CHAT), "chat.completions.parse")
both("chat stream helper", lambda c: c.chat.completions.stream(**CHAT), "chat.completions.stream")
both("beta chat parse", lambda c: c.beta.chat.completions.parse(**CHAT), "beta.chat.completions.parse")
both("chat raw", lambda c: c.chat.completions.with_raw_response.create(**CHAT))
both("chat raw stream", lambda c: c.chat.completions.with_streaming_response.create(**CHAT))
both("chat options", lambda c: c.with_options(timeout=20).chat.completions.create(**CHAT))
both("chat post", lambda c: c.post("/chat/completions", body=CHAT, cast_to=object))

COMPLETION: Any = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "gpt-3.5-turbo-instruct"}
TEXT: Any = {"model": "gpt-3.5-turbo-instruct", "prompt": "once upon"}


def completion(provider: Provider) -> None:
    usage = {"prompt_tokens": 2, "completion_tokens": 9, "total_tokens": 11}
    choices = [{"index": 0, "text": "a time", "finish_reason": "stop", "logprobs": None}]
    provider.reply_with("/completions", body={**COMPLETION, "choices": choices, "usage": usage})


def completion_stream(provider: Provider) -> None:
    usage = {"prompt_tokens": 2, "completion_tokens": 9, "total_tokens": 11}
    choices = [{"index": 0, "text": "a time", "finish_reason": "stop", "logprobs": None}]
    events = [{**COMPLETION, "choices": choices}, {**COMPLETION, "choices": [], "usage": usage}, "[DONE]"]
    provider.reply_with("/completions", events=events)


both("completions", lambda c: c.completions.create(**TEXT), reply=completion)
both("completions stream", lambda c: c.completions.create(**TEXT, **ASKED), reply=completion_stream)

both("responses", lambda c: c.responses.create(**RESPONSE))
both("responses stream", lambda c: c.responses.create(**RESPONSE, stream=True))
both("responses stream helper", lambda c: c.responses.stream(**RESPONSE))
both("responses parse", lambda c: c.responses.parse(**RESPONSE))
both("responses raw", lambda c: c.responses.with_raw_response.create(**RESPONSE))
both("responses raw stream", lambda c: c.responses.with_streaming_response.create(**RESPONSE))
both("beta responses", lambda c: c.beta.responses.create(**RESPONSE), "beta.responses")
both("beta responses stream", lambda c: c.beta.responses.create(**RESPONSE, stream=True), "beta.responses")

both("embeddings", lambda c: c.embeddings.create(model="text-embedding-3-small", input=["one", "two"]))
both("embeddings floats", lambda c: c.embeddings.create(model="text-embedding-3-large", input="x", encoding_format="float"))


def busy(provider: Provider) -> None:
    """500, 500, and only then an answer."""
    provider.reply_with("chat/completions", status=500, headers={"retry-after-ms": "1"}, times=2)


both("chat retried", lambda c: c.chat.completions.create(**CHAT), reply=busy)
both("chat stream retried", lambda c: c.chat.completions.create(**CHAT, stream=True), reply=busy)
both("chat stream broken off", lambda c: c.chat.completions.create(**CHAT, stream=True), broken=True)
both("responses stream broken off", lambda c: c.responses.create(**RESPONSE, stream=True), broken=True)


@ROUTES
def module_level(provider: Provider) -> None:
    openai.api_key, openai.base_url = "test", provider.openai_url + "/"
    openai.chat.completions.create(**CHAT)
    consume(openai.chat.completions.create(**CHAT, stream=True))
    openai.responses.create(**RESPONSE)
    openai.embeddings.create(model="text-embedding-3-small", input="one")


@ROUTES
def azure_deployment(provider: Provider) -> None:
    options: Any = {"azure_endpoint": provider.at("azure"), "api_version": "2025-04-01-preview", "api_key": "test"}
    with openai.AzureOpenAI(**options) as made:
        made.chat.completions.create(**CHAT)
        consume(made.chat.completions.create(**CHAT, **ASKED))
        made.responses.create(**RESPONSE)
        made.embeddings.create(model="text-embedding-3-small", input="one")


@ROUTES
def azure_v1(provider: Provider) -> None:
    with client(provider, base_url=provider.at("azure/openai/v1")) as made:
        made.chat.completions.create(**CHAT)
        made.responses.create(**RESPONSE)


@ROUTES
async def async_azure_deployment(provider: Provider) -> None:
    options: Any = {"azure_endpoint": provider.at("azure"), "api_version": "2025-04-01-preview", "api_key": "test"}
    async with openai.AsyncAzureOpenAI(**options) as made:
        await made.chat.completions.create(**CHAT)
        await consume_async(made.chat.completions.create(**CHAT, **ASKED))


@ROUTES
def custom_client(provider: Provider) -> None:
    with HTTP.Client(transport=HTTP.HTTPTransport(retries=1)) as http, client(provider, http_client=http) as made:
        made.chat.completions.create(**CHAT)
        consume(made.chat.completions.create(**CHAT, stream=True))


class OwnClient(HTTP.Client):  # type: ignore[misc]  # one of two modules
    """An app's own client, with a ``send`` of its own."""

    def send(self, request: Any, **options: Any) -> Any:
        return super().send(request, **options)


@ROUTES
def own_client_class(provider: Provider) -> None:
    with client(provider, http_client=OwnClient()) as made:
        made.chat.completions.create(**CHAT)


@ROUTES
async def async_custom_client(provider: Provider) -> None:
    async with HTTP.AsyncClient() as http, async_client(provider, http_client=http) as made:
        await made.chat.completions.create(**CHAT)


def legacy_client(provider: Provider) -> None:
    import httpx

    options: Any = {"http_client": httpx.Client()}
    with client(provider, **options) as made:
        made.chat.completions.create(**CHAT)
        consume(made.chat.completions.create(**CHAT, stream=True))


ROUTES.add("legacy_client", legacy_client, lambda: MAJOR >= 3)


@ROUTES
def free(provider: Provider) -> None:
    with client(provider) as made:
        made.moderations.create(input="hello")
        made.models.list()
