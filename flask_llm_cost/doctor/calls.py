"""Does a call arrive? Tried with one through each client library, to a provider that is played on this machine.

The calls are real, and so is the transaction that writes them into the ledger, but it is rolled back. So nothing has to be
removed, whoever else writes meanwhile, and nothing is left when this process is killed.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from flask_llm_cost.capture import patching
from flask_llm_cost.doctor import setup
from flask_llm_cost.doctor.capture import is_installed
from flask_llm_cost.doctor.check import Check
from flask_llm_cost.errors import SchemaMissingError
from flask_llm_cost.extension import AppState
from flask_llm_cost.ledger.faults import Fault
from flask_llm_cost.ledger.transaction import WriteError
from flask_llm_cost.recorder import capturing
from flask_llm_cost.records import CallRecord
from flask_llm_cost.usage.recognition import playing

if TYPE_CHECKING:
    from flask_llm_cost.testing.provider import PlayedProvider

_SECONDS: Final = 5
#: What the provider says that it counted.
_INPUT, _OUTPUT = 7, 5

_CHAT_PATH: Final = "/openai/v1/chat/completions"
_CHAT: Final = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
_CHAT_USAGE: Final = {"prompt_tokens": _INPUT, "completion_tokens": _OUTPUT, "total_tokens": _INPUT + _OUTPUT}
_CONVERSE_MESSAGES: Final = [{"role": "user", "content": [{"text": "Hello"}]}]
_CONVERSE: Final = {
    "output": {"message": {"role": "assistant", "content": [{"text": "Hello"}]}},
    "stopReason": "end_turn",
    "usage": {"inputTokens": _INPUT, "outputTokens": _OUTPUT, "totalTokens": _INPUT + _OUTPUT},
}


# Through each library. None asks the environment for a proxy, a key or a password.


def _httpx(name: str, url: str) -> None:
    library = importlib.import_module(name)
    with library.Client(trust_env=False, timeout=_SECONDS) as client:
        client.post(url + _CHAT_PATH, json=_CHAT)


def _httpx_async(name: str, url: str) -> None:
    library = importlib.import_module(name)

    async def call() -> None:
        async with library.AsyncClient(trust_env=False, timeout=_SECONDS) as client:
            await client.post(url + _CHAT_PATH, json=_CHAT)

    asyncio.run(call())


def _requests(name: str, url: str) -> None:
    library = importlib.import_module(name)
    with library.Session() as session:
        session.trust_env = False
        session.post(url + _CHAT_PATH, json=_CHAT, timeout=_SECONDS)


def _aiohttp(name: str, url: str) -> None:
    library = importlib.import_module(name)

    async def call() -> None:
        timeout = library.ClientTimeout(total=_SECONDS)
        async with (
            library.ClientSession(trust_env=False, timeout=timeout) as session,
            session.post(url + _CHAT_PATH, json=_CHAT) as response,
        ):
            await response.read()

    asyncio.run(call())


def _botocore(name: str, url: str) -> None:
    library = importlib.import_module(name)
    session_module, config = importlib.import_module(f"{name}.session"), importlib.import_module(f"{name}.config")
    # Not the files and the profile of whoever runs this: they hold keys, and the profile may not be there.
    nowhere: dict[str, Any] = dict.fromkeys(("config_file", "credentials_file"), (None, None, os.devnull, None))
    session = session_module.Session(session_vars={**nowhere, "profile": (None, None, None, None)})
    client = session.create_client(
        "bedrock-runtime",
        region_name="us-east-1",
        endpoint_url=f"{url}/bedrock",
        config=config.Config(
            signature_version=library.UNSIGNED,
            proxies={},
            retries={"total_max_attempts": 1},
            connect_timeout=_SECONDS,
            read_timeout=_SECONDS,
        ),
    )
    try:
        client.converse(modelId="amazon.nova-micro-v1:0", messages=_CONVERSE_MESSAGES)
    finally:
        client.close()


@dataclass(frozen=True, slots=True)
class Way:
    """One way in which an app may call.

    :param name: what it calls with
    :param send: makes one call, given the library's name and the provider's address
    """

    name: str
    library: str
    send: Callable[[str, str], None]


WAYS: Final = (
    Way("httpx.Client", "httpx", _httpx),
    Way("httpx.AsyncClient", "httpx", _httpx_async),
    Way("httpx2.Client", "httpx2", _httpx),
    Way("httpx2.AsyncClient", "httpx2", _httpx_async),
    Way("requests.Session", "requests", _requests),
    Way("aiohttp.ClientSession", "aiohttp", _aiohttp),
    Way("botocore client of Bedrock", "botocore", _botocore),
)


def calls(state: AppState) -> Iterator[Check]:
    """Make the calls, then write them and take them back. No receiver of signals hears of them, and no budget is asked."""
    if not state.config.enabled:
        yield _untried("LLM_COST_ENABLED is off; take LLM_COST_ENABLED=0 away")
        return
    ways = [way for way in WAYS if way.library in state.libraries and is_installed(way.library)]
    if not ways:
        yield _untried("no client library that is watched is installed; install the one that the app calls with")
        return
    # Only now: an app at work plays no provider.
    from flask_llm_cost.testing.provider import PlayedProvider

    try:
        provider = PlayedProvider()
    except OSError as error:
        yield _untried(f"no port of 127.0.0.1 could be opened ({type(error).__name__}); allow this process to listen there")
        return
    found: dict[Way, CallRecord] = {}
    with provider, playing({**provider.hosts, f"{provider.host}/bedrock": "bedrock"}):
        provider.reply_with("/chat/completions", usage=_CHAT_USAGE, times=len(ways))
        provider.reply_with("/converse", body=_CONVERSE, times=len(ways))
        for way in ways:
            seen = _try(way, provider)
            if isinstance(seen, Check):
                yield seen
            else:
                found[way] = seen
    if found:
        yield from _written(state, found)


def _untried(why: str) -> Check:
    return Check("Capture", "calls", "warning", f"no call was tried: {why}")


def _try(way: Way, provider: PlayedProvider) -> CallRecord | Check:
    """The call as it was recorded, or what is wrong."""
    records: list[CallRecord] = []
    arrived = len(provider.requests)
    try:
        with capturing(records, provider.host):
            way.send(way.library, provider.url)
    except Exception as error:
        why = f"{type(error).__name__}; call with it yourself, and look for it in 'flask llm-cost report'"
        return Check("Capture", way.name, "warning", f"no call could be tried: making one raised {why}")
    if len(provider.requests) == arrived:
        why = "it never came to 127.0.0.1, so somebody answers in its place; run this where nothing is mocked"
        return Check("Capture", way.name, "warning", f"no call could be tried: {why}")
    if not records:
        return Check("Capture", way.name, "error", f"a call passed unseen{_cause(way.library)}")
    (record, *others) = records
    counted = record.usage.input_tokens, record.usage.output_tokens
    if others or counted != (_INPUT, _OUTPUT):
        said = f"{len(records)} times" if others else f"as {counted[0]} and {counted[1]} tokens, not {_INPUT} and {_OUTPUT}"
        remedy = "a format of costs.register_format() or another instrumentation may be in the way; report it if not"
        return Check("Capture", way.name, "error", f"a call was counted {said}: {remedy}")
    return record


def _cause(library: str) -> str:
    if (why := patching.failure(library)) is not None:
        return f": {library} cannot be watched ({why}); install a version of it that is tested"
    if gone := patching.undone(library):
        return f": somebody replaced {gone[0]} after us; let them do so before LlmCostTracker(app)"
    return "; report it, with the versions of all libraries above"


def _written(state: AppState, found: dict[Way, CallRecord]) -> Iterator[Check]:
    """Write what was seen, look, and take it back."""
    if state.ledger.mode == "log":
        for way in found:
            yield Check("Capture", way.name, "ok", "a call was seen; it would be logged, not kept")
        return
    failure: WriteError | None = None
    there: dict[Any, tuple[int | None, int | None]] = {}
    try:
        for rows in state.ledger.writer.rehearse(found.values()):
            there[rows.id] = rows.call["input_tokens"], rows.call["output_tokens"]
    except WriteError as error:
        failure = error
    for way, record in found.items():
        if failure is not None:
            said = "a call was seen; whether it arrives is open, since the ledger did not take it"
            yield Check("Capture", way.name, "warning", said)
        elif there.get(record.id) != (_INPUT, _OUTPUT):
            said = "a call was seen, but was not in the ledger when it was written; look for triggers on its tables"
            yield Check("Capture", way.name, "error", said)
        else:
            said = f"a call arrived in the ledger with its {_INPUT} input and {_OUTPUT} output tokens, and was taken back"
            yield Check("Capture", way.name, "ok", said)
    if failure is None:
        return
    if failure.fault is Fault.SCHEMA:
        raise SchemaMissingError
    # One cause, one error.
    if not any(check.status == "error" for check in setup.database(state)):
        message = f"the ledger did not take the calls ({failure.name}); {_REMEDIES.get(failure.fault, _REFUSED)}"
        yield Check("Capture", "ledger", "error", message)


_REFUSED: Final = "look for constraints and triggers of yours on its tables, and at the checks of the schema"
_REMEDIES: Final = {
    Fault.RETRY: "somebody else holds the database: run this again, and let the app's transactions be short",
    Fault.AWAY: "let the app's user write to its tables, on a server that takes writes, and see that its disk has room",
}
