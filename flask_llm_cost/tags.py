"""Tags: who and what a call was for.

A tag block lives in a :class:`~contextvars.ContextVar`, so it follows the code that opened it through ``await``,
``asyncio.to_thread`` and async views; ``carry_tags`` takes it into a thread pool.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType, TracebackType
from typing import Any, Final, TypeAlias, TypeVar

from flask_llm_cost.log import log
from flask_llm_cost.records import REDACTED as REDACTED
from flask_llm_cost.records import TAG_KEY, TAG_KEY_RULE

MAX_TAGS: Final = 32
MAX_VALUE: Final = 256

#: Shapes of secrets. Every repetition is bounded or starts at a fixed word, so that no value makes the search slow.
_SECRET: Final = re.compile(
    r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{16,}"
    r"|\b(?:sk|pk|rk|gsk|xai|hf|r8|pplx|whsec)[-_][A-Za-z0-9_-]{16,}"  # OpenAI, Anthropic, Stripe, Groq, xAI, …
    r"|\bAIza[A-Za-z0-9_-]{30,}"  # Google
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}"  # JSON web tokens
    r"|\b(?i:bearer|basic)(?:\s|%20){1,8}[A-Za-z0-9._~+/-]{12,}"
    r"|\b(?:AKIA|ASIA|AROA)[A-Z0-9]{16}(?![A-Z0-9])"  # AWS
    r"|\b(?i:aws_(?:secret_access_key|session_token))\W{1,8}[A-Za-z0-9+/=]{16,}"
    r"|\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})"
    r"|\b(?:xox[abeoprs]|xapp)-[A-Za-z0-9-]{10,}|\bhooks\.slack\.com/services/\w"  # Slack
    r"|-----BEGIN [A-Z ]{0,32}PRIVATE KEY"
    r"|\b[A-Za-z][A-Za-z0-9+.-]{0,15}://[^/\s:@]{0,256}:[^/\s@]{1,256}@"  # credentials inside a URL
    r"|[?&](?i:(?:api[-_]?)?key|(?:(?:access|auth|id)[-_]?)?token|client[-_]?secret|sig(?:nature)?)=[^\s&#]{16,}"
)

#: Card numbers as their issuers number them. A plain number counts only with a right check digit, since ids are numbers too.
_CARD: Final = re.compile(r"\b(?:4\d{3}|5[1-5]\d{2}|3[47]\d{2}|6011)[ -]?(?:\d{4}[ -]?\d{4}[ -]?\d{4}|\d{6}[ -]?\d{5})\b")

#: What ``json.dumps`` and ``repr`` write for a line break and the like: behind its letter no secret looks like one.
_ESCAPED: Final = re.compile(r"\\{1,16}(?:(?P<nul>x00|u0000)|[abfnrtv]|x[0-9a-f]{2}|u[0-9a-fA-F]{4})")

_SEARCHED: Final = 4096


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """One open block: what applies inside it, and what to go back to."""

    values: Mapping[str, Any]
    outer: _Block | None = None
    opened_by: tags | None = None


_NO_BLOCK: Final = _Block(MappingProxyType({}))
tags_here: ContextVar[_Block] = ContextVar("llm_cost_tags", default=_NO_BLOCK)

_F = TypeVar("_F", bound=Callable[..., Any])
#: Gives a block to enter.
_Opened: TypeAlias = Callable[[], AbstractContextManager[object]]


def ranked(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """All, from weak to strong: a value that wins stands where it ranks, as the weakest go where there are too many."""
    found: dict[str, Any] = {}
    for layer in layers:
        above = dict(layer)
        for key in found.keys() & above.keys():
            del found[key]
        found.update(above)
    return found


class tags:  # noqa: N801 - reads as a word in ``with tags(...)``
    r"""Tag every LLM call made inside a block, or inside a function.

    Works as ``with tags(feature="chat"):`` and as ``@tags(feature="chat")`` on functions, coroutines, generators and async
    generators. Blocks nest; the inner one wins. A value of ``None`` takes a tag away inside the block. One object may be
    used many times, also at the same time.

    Inside a *plain* generator function a ``with`` block leaks to the consumer between two ``yield``\ s, as every context
    variable does; the decorator sets and restores the tags around each step instead.
    """

    __slots__ = ("_values",)

    def __init__(self, **values: Any) -> None:
        self._values = values

    def __enter__(self) -> tags:
        outer = tags_here.get()
        tags_here.set(_Block(ranked(outer.values, self._values), outer, self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A generator may be resumed in another context, where this block was never opened: then there is nothing to close.
        block: _Block | None = tags_here.get()
        while block is not None and block.opened_by is not self:
            block = block.outer
        if block is not None and block.outer is not None:
            tags_here.set(block.outer)

    def __call__(self, function: _F) -> _F:
        return around(function, lambda: Inside(self._values))


class Inside:
    """The tags inside one call of a function. A generator enters at every step, and with it the blocks that it has opened.

    :param alone: whether these are all the tags there, whoever calls
    """

    __slots__ = ("_alone", "_here", "_opened", "_values")

    def __init__(self, values: Mapping[str, Any], *, alone: bool = False) -> None:
        self._values = values
        self._alone = alone
        self._opened: list[tags] = []

    def __enter__(self) -> None:
        outer = tags_here.get()
        self._here = _Block(self._values if self._alone else ranked(outer.values, self._values), outer)
        tags_here.set(self._here)
        for block in self._opened:
            block.__enter__()

    def __exit__(self, *raised: object) -> None:
        self.leave()

    def leave(self) -> bool:
        """Whether this was where it was entered. What is closed by a collector may be anywhere, and leaves nothing there."""
        opened = []
        block = tags_here.get()
        while block is not self._here and block.outer is not None:
            if block.opened_by is not None:
                opened.append(block.opened_by)
            block = block.outer
        if block is not self._here or block.outer is None:
            return False
        self._opened = opened[::-1]
        tags_here.set(block.outer)
        return True


def around(function: _F, block: _Opened) -> _F:
    """*function* inside a block: a plain function, a coroutine, a generator or an async generator, which it stays.

    A generator is inside at each of its steps, and its consumer never.

    :param block: gives what to enter, asked once for each call of the function
    """
    if inspect.isasyncgenfunction(function):
        wrapper = _around_async_generator(function, block)
    elif inspect.isgeneratorfunction(function):
        wrapper = _around_generator(function, block)
    elif inspect.iscoroutinefunction(function):
        wrapper = _around_coroutine(function, block)
    else:
        wrapper = _around_function(function, block)
    return functools.wraps(function)(wrapper)  # type: ignore[return-value]  # the wrapper keeps the signature


def _around_function(function: Callable[..., Any], block: _Opened) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with block():
            return function(*args, **kwargs)

    return call


def _around_coroutine(function: Callable[..., Any], block: _Opened) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        with block():
            return await function(*args, **kwargs)

    return call


def _around_generator(function: Callable[..., Any], block: _Opened) -> Callable[..., Any]:
    def steps(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        inside = block()
        generator = function(*args, **kwargs)
        step, value = generator.send, None
        while True:
            try:
                with inside:
                    produced = step(value)
            except StopIteration as end:
                return end.value
            try:
                step, value = generator.send, (yield produced)
            except GeneratorExit:
                with inside:
                    generator.close()
                raise
            except BaseException as error:
                step, value = generator.throw, error

    return steps


def _around_async_generator(function: Callable[..., Any], block: _Opened) -> Callable[..., Any]:
    async def steps(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        inside = block()
        generator = function(*args, **kwargs)
        step, value = generator.asend, None
        while True:
            try:
                with inside:
                    produced = await step(value)
            except StopAsyncIteration:
                return
            try:
                step, value = generator.asend, (yield produced)
            except GeneratorExit:
                with inside:
                    await generator.aclose()
                raise
            except BaseException as error:
                step, value = generator.athrow, error

    return steps


def current_tags() -> dict[str, Any]:
    """The tags of the blocks that are open here, innermost winning.

    A call made here has more: those of its adapter or transport, of the request and the defaults, which all rank below.
    """
    return dict(tags_here.get().values)


class TagRules:
    """What may be kept as a tag: the rules of one app, applied when a call starts.

    A bad key or an unprintable value is dropped, counted and warned about once; nothing here ever raises.
    """

    def __init__(self, secret_names: Iterable[str]) -> None:
        self._secret_names = frozenset(map(_bare_name, secret_names))
        self._warned: set[str] = set()
        self.dropped = 0

    def clean(self, values: Mapping[str, Any]) -> dict[str, str]:
        """The tags as they are kept: at most 32, valid keys, text values, secrets redacted, empty ones left out.

        :param values: from weak to strong; of too many the weakest are dropped
        """
        cleaned: dict[str, str] = {}
        for key, value in reversed(list(values.items())):
            if value is None:
                continue
            if not isinstance(key, str) or not TAG_KEY.fullmatch(key):
                self._drop(key, f"a key is {TAG_KEY_RULE}")
            elif len(cleaned) == MAX_TAGS:
                self._drop(key, f"a call has at most {MAX_TAGS} tags")
            elif _bare_name(key) in self._secret_names:
                cleaned[key] = REDACTED
            else:
                try:
                    # Cut before the cache, which would keep what it is asked.
                    text = _clean_text((value if isinstance(value, str) else self._to_text(value))[:_SEARCHED])
                except Exception:
                    self._drop(key, "its value cannot be turned into text")
                    continue
                if text:
                    cleaned[key] = text
        return dict(reversed(cleaned.items()))

    def _to_text(self, value: Any) -> str:
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        if isinstance(value, Mapping | list | tuple):
            if not value:
                return ""
            return json.dumps(self._plain(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return str(value)

    def _plain(self, value: Any) -> Any:
        """What JSON can say of a value: with keys that are text, repaired, and nothing under the names of secrets."""
        if isinstance(value, Mapping):
            named = ((_inner_text(_key_text(key)), inner) for key, inner in value.items())
            return {
                name: REDACTED if _bare_name(name) in self._secret_names else self._plain(inner) for name, inner in named
            }
        if isinstance(value, list | tuple):
            return [self._plain(inner) for inner in value]
        return value if value is None or isinstance(value, bool | int | float) else _inner_text(value)

    def _drop(self, key: object, reason: str) -> None:
        self.dropped += 1
        # The name of a tag is the developer's own word, but one that is no valid key may be anything: show its shape only.
        shown = key if isinstance(key, str) and TAG_KEY.fullmatch(key) else f"<{type(key).__name__}>"
        if shown not in self._warned and len(self._warned) < 100:
            self._warned.add(shown)
            log.warning("tag %s dropped: %s", shown, reason)


def _bare_name(name: str) -> str:
    """A name as it is compared: ``API-Key``, ``api_key`` and ``apikey`` are one."""
    return name.lower().replace("-", "").replace("_", "")


def _key_text(key: Any) -> Any:
    return json.dumps(key) if key is None or isinstance(key, bool) else key


def _inner_text(value: Any) -> str:
    """A text inside a mapping or a list."""
    return repaired(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))


@lru_cache(maxsize=4096)
def _clean_text(text: str) -> str:
    # Repair first: a secret with a NUL inside has no such shape, and would be whole again once the NUL is gone.
    text = repaired(text)
    # Redact before the cut to size: half a secret is still a secret, and no longer looks like one.
    return REDACTED if _is_secret(text) else text.strip()[:MAX_VALUE].strip()


def repaired(text: str) -> str:
    """A text that every database takes."""
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace("\0", "")


def _is_secret(text: str) -> bool:
    """Whether there is a secret in a text, as it stands or as what JSON or Python wrote it for."""
    return _looks_secret(text) or ("\\" in text and _looks_secret(_ESCAPED.sub(_unescaped, text)))


def _unescaped(escaped: re.Match[str]) -> str:
    return "" if escaped["nul"] else " "


def _looks_secret(text: str) -> bool:
    return bool(_SECRET.search(text)) or any(_check_digit_is_right(card.group()) for card in _CARD.finditer(text))


def _check_digit_is_right(card: str) -> bool:
    """Luhn's check: every second digit from the right is doubled, and the digits of all add up to a multiple of ten."""
    digits = [int(digit) for digit in reversed(card) if digit.isdigit()]
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0
