"""Every billed call of the ``anthropic`` package, 0 to 2."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import anthropic
from driver import Provider, Routes, break_off, break_off_async, consume, consume_async, has

ROUTES = Routes(("anthropic",))

MAJOR = int(anthropic.__version__.partition(".")[0])
#: The HTTP library that this version sits on.
HTTP: Any = importlib.import_module("httpx2" if MAJOR >= 1 else "httpx")

MESSAGE: Any = {
    "model": "claude-sonnet-4-6",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "what does it cost to ask a question?"}],
}

Call = Callable[[Any], Any]

_PROBE = anthropic.Anthropic(api_key="probe")


def both(
    name: str,
    call: Call,
    needs: str = "",
    reply: Callable[[Provider], None] = lambda provider: None,
    broken: bool = False,
) -> None:
    """One call, by the sync client and by the async one."""

    def sync(provider: Provider) -> None:
        reply(provider)
        with anthropic.Anthropic(base_url=provider.anthropic_url, api_key="test") as made:
            (break_off if broken else consume)(call(made))

    async def twin(provider: Provider) -> None:
        reply(provider)
        async with anthropic.AsyncAnthropic(base_url=provider.anthropic_url, api_key="test") as made:
            await (break_off_async if broken else consume_async)(call(made))

    def there() -> bool:
        return not needs or has(_PROBE, needs)

    ROUTES.add(name, sync, there, broken)
    ROUTES.add(f"async {name}", twin, there, broken)


both("messages", lambda c: c.messages.create(**MESSAGE))
both("messages stream", lambda c: c.messages.create(**MESSAGE, stream=True))
both("messages stream helper", lambda c: c.messages.stream(**MESSAGE))
both("messages parse", lambda c: c.messages.parse(**MESSAGE), "messages.parse")
both("messages raw", lambda c: c.messages.with_raw_response.create(**MESSAGE))
both("messages raw stream", lambda c: c.messages.with_streaming_response.create(**MESSAGE))
both("messages options", lambda c: c.with_options(timeout=20).messages.create(**MESSAGE))
both("messages post", lambda c: c.post("/v1/messages", body=MESSAGE, cast_to=object))
both("beta messages", lambda c: c.beta.messages.create(**MESSAGE))
both("beta messages stream", lambda c: c.beta.messages.create(**MESSAGE, stream=True))
both("beta messages stream helper", lambda c: c.beta.messages.stream(**MESSAGE))
both("beta messages parse", lambda c: c.beta.messages.parse(**MESSAGE), "beta.messages.parse")
both("beta messages raw", lambda c: c.beta.messages.with_raw_response.create(**MESSAGE))
both(
    "tool runner",
    lambda c: c.beta.messages.tool_runner(**MESSAGE, tools=[]).until_done(),
    "beta.messages.tool_runner",
)


@ROUTES
def two_turns_of_tools(provider: Provider) -> None:
    """The runner calls again with what the tool says: two bills for one SDK call."""

    @anthropic.beta_tool
    def price(item: str) -> str:
        """The price of an item."""
        return f"{item}: 3"

    usage = {"input_tokens": 40, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0, "output_tokens": 12}
    asks = {"type": "tool_use", "id": "toolu_1", "name": "price", "input": {"item": "tea"}}
    reply = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-6", "stop_sequence": None}
    provider.reply_with("messages", body={**reply, "content": [asks], "stop_reason": "tool_use", "usage": usage})
    with anthropic.Anthropic(base_url=provider.anthropic_url, api_key="test") as made:
        made.beta.messages.tool_runner(**MESSAGE, tools=[price]).until_done()


def busy(provider: Provider) -> None:
    """500, 529, and only then an answer."""
    for status in (500, 529):
        provider.reply_with("messages", status=status, headers={"retry-after-ms": "1"})


both("messages retried", lambda c: c.messages.create(**MESSAGE), reply=busy)
both("messages stream retried", lambda c: c.messages.create(**MESSAGE, stream=True), reply=busy)
both("messages stream broken off", lambda c: c.messages.create(**MESSAGE, stream=True), broken=True)


@ROUTES
def custom_client(provider: Provider) -> None:
    with HTTP.Client() as http:
        made = anthropic.Anthropic(base_url=provider.anthropic_url, api_key="test", http_client=http)
        made.messages.create(**MESSAGE)
        consume(made.messages.stream(**MESSAGE))


@ROUTES
def foundry(provider: Provider) -> None:
    with anthropic.AnthropicFoundry(base_url=provider.at("azure/anthropic"), api_key="test") as made:
        made.messages.create(**MESSAGE)
        consume(made.messages.create(**MESSAGE, stream=True))


@ROUTES
def free(provider: Provider) -> None:
    with anthropic.Anthropic(base_url=provider.anthropic_url, api_key="test") as made:
        made.messages.count_tokens(model="claude-sonnet-4-6", messages=MESSAGE["messages"])
        made.models.list()
