"""Tags: what a block does to the code inside it, and what may be kept."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from flask_llm_cost import carry_tags
from flask_llm_cost.config import SECRET_NAMES
from flask_llm_cost.tags import REDACTED, TagRules, current_tags, tags


def test_blocks_nest_and_the_inner_wins() -> None:
    """Inside, the inner block's tags win; after it, the outer's are back; None takes a tag away."""
    with tags(feature="outer", team="a"):
        with tags(feature="inner", team=None):
            assert current_tags() == {"feature": "inner", "team": None}
        assert current_tags() == {"feature": "outer", "team": "a"}
    assert current_tags() == {}


def test_a_block_that_raises_is_closed() -> None:
    """An exception passes through a block, and the tags of before are back."""
    with pytest.raises(LookupError), tags(feature="x"):
        raise LookupError
    assert current_tags() == {}


def test_functions_of_every_kind_can_be_tagged() -> None:
    """The decorator tags functions, coroutines, generators and async generators, and keeps what kind they are."""
    decorate = tags(feature="x")

    @decorate
    def function() -> dict[str, Any]:
        return current_tags()

    @decorate
    async def coroutine() -> dict[str, Any]:
        await asyncio.sleep(0)
        return current_tags()

    @decorate
    def generator() -> Iterator[dict[str, Any]]:
        yield current_tags()
        yield current_tags()

    @decorate
    async def async_generator() -> AsyncIterator[dict[str, Any]]:
        yield current_tags()
        yield current_tags()

    async def consume() -> list[dict[str, Any]]:
        seen = []
        async for found in async_generator():
            assert current_tags() == {}
            seen.append(found)
        return seen

    seen = []
    for found in generator():
        assert current_tags() == {}
        seen.append(found)
    expected = {"feature": "x"}
    assert function() == expected
    assert asyncio.run(coroutine()) == expected
    assert seen == [expected, expected]
    assert asyncio.run(consume()) == [expected, expected]
    assert function.__name__ == "function"


def test_a_tagged_generator_is_a_whole_generator() -> None:
    """send, throw, close and the return value reach a decorated generator."""
    events = []

    @tags(feature="x")
    def generator() -> Any:
        try:
            events.append((yield "first"))
            yield "second"
        except LookupError:
            events.append(current_tags())
            yield "third"
        finally:
            events.append("closed")
        return "end"

    steps = generator()
    assert next(steps) == "first"
    assert steps.send("sent") == "second"
    assert steps.throw(LookupError()) == "third"
    steps.close()
    assert events == ["sent", {"feature": "x"}, "closed"]
    whole = generator()
    next(whole)
    next(whole)
    with pytest.raises(StopIteration, match="end"):
        next(whole)


def test_a_block_inside_a_tagged_generator_lasts_over_its_steps() -> None:
    """What a decorated generator opens is open until it closes it, and never in its consumer, whose tags it has."""
    shared = tags(feature="x")

    @shared
    def generator() -> Iterator[dict[str, Any]]:
        with tags(step="one"), shared:
            yield current_tags()
            with tags(step="two"):
                yield current_tags()
            yield current_tags()
        yield current_tags()

    @shared
    async def async_generator() -> AsyncIterator[dict[str, Any]]:
        with tags(step="one"):
            yield current_tags()
            await asyncio.sleep(0)
            yield current_tags()
        yield current_tags()

    async def consume() -> list[dict[str, Any]]:
        return [found async for found in async_generator()]

    seen = []
    for found in generator():
        assert current_tags() == {}
        seen.append(found)
    one, two = {"feature": "x", "step": "one"}, {"feature": "x", "step": "two"}
    assert seen == [one, two, one, {"feature": "x"}]
    assert asyncio.run(consume()) == [one, one, {"feature": "x"}]
    steps = generator()
    next(steps)
    with tags(consumer="c"):
        assert next(steps) == {"consumer": "c", **two}
        assert current_tags() == {"consumer": "c"}
    steps.close()
    assert current_tags() == {}


def test_one_object_serves_many_tasks() -> None:
    """Two tasks inside the same tags object keep their own surroundings."""
    shared = tags(feature="shared")

    async def one(name: str) -> None:
        with tags(task=name):
            for _ in range(3):
                with shared:
                    await asyncio.sleep(0)
                    assert current_tags() == {"task": name, "feature": "shared"}
                await asyncio.sleep(0)
                assert current_tags() == {"task": name}

    async def both() -> None:
        await asyncio.gather(one("a"), one("b"))

    asyncio.run(both())


def test_a_block_closed_in_another_context_harms_nobody() -> None:
    """A generator that is resumed elsewhere closes its block there without an error, and leaves that place as it was."""

    def generator() -> Iterator[None]:
        with tags(feature="inside"):
            yield

    steps = generator()
    contextvars.copy_context().run(next, steps)
    with tags(feature="elsewhere"):
        assert next(steps, None) is None
        assert current_tags() == {"feature": "elsewhere"}


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("a secret")


@pytest.fixture
def rules() -> TagRules:
    return TagRules(["password"])


@pytest.mark.parametrize("wrap", [tags(feature="inside"), carry_tags], ids=["tagged", "carried"])
def test_a_call_closed_in_another_context_harms_nobody(wrap: Any) -> None:
    """A coroutine that ends where it never ran, as the collector ends one, leaves that place's tags as they were."""

    class Wait:
        def __await__(self) -> Iterator[None]:
            yield

    @wrap
    async def coroutine() -> None:
        with tags(step="one"):
            await Wait()

    @wrap
    async def async_generator() -> AsyncIterator[None]:
        with tags(step="one"):
            await Wait()
            yield

    for waiting in (coroutine(), async_generator().asend(None)):
        contextvars.copy_context().run(waiting.send, None)
        with tags(feature="elsewhere"):
            waiting.close()
            assert current_tags() == {"feature": "elsewhere"}
        assert current_tags() == {}


def test_values_become_text(rules: TagRules) -> None:
    """Numbers, booleans, ids and mappings are kept as text; None and what is empty mean untagged."""
    number = uuid.UUID(int=7)
    cleaned = rules.clean(
        {
            "a": 7,
            "b": True,
            "c": number,
            "d": {"z": 1, "a": [2]},
            "e": None,
            "f": "",
            "g": "  x ",
            "h": 1.5,
            "i": {},
            "j": [],
        }
    )
    assert cleaned == {"a": "7", "b": "true", "c": str(number), "d": '{"a":[2],"z":1}', "g": "x", "h": "1.5"}


def test_what_no_database_takes_is_repaired(rules: TagRules) -> None:
    """NUL and lone surrogates are repaired, long values cut to 256 characters, a call has at most 32 tags."""
    assert rules.clean({"a": "x\0y", "b": "caf\xe9 \ud800", "c": "x" * 300, "d": b"caf\xc3\xa9 \xff", "e": "\0"}) == {
        "d": "café \ufffd",
        "a": "xy",
        "b": "café ?",
        "c": "x" * 256,
    }
    assert len(rules.clean({f"k{number}": number for number in range(40)})) == 32


def test_mappings_of_any_kind_are_sorted_json(rules: TagRules) -> None:
    """Keys of several kinds are text and in order, what is inside is repaired as it is outside, a text stays that text."""
    kinds = {2: "a", "1": b"caf\xc3\xa9 \xff", b"k": "x\0y", None: "\ud800", ("t", 1): {"z": 1, "b": {3}}, True: 1.5}
    (text,) = rules.clean({"kinds": kinds}).values()
    assert text == ('{"(\'t\', 1)":{"b":"{3}","z":1},"1":"café \ufffd","2":"a","k":"xy","null":"?","true":1.5}')
    assert rules.clean({"text": {"path": "C:\\u0000\\n"}}) == {"text": r'{"path":"C:\\u0000\\n"}'}
    assert rules.dropped == 0


def test_a_bad_tag_is_dropped_and_said_once(rules: TagRules, caplog: pytest.LogCaptureFixture) -> None:
    """A bad key or an unprintable value is dropped, counted and warned about once, without its value; never raised."""
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        assert rules.clean({"Bad Key": 1, "x" * 65: 1, 7: 1, "ok": "yes", "broken": Unprintable()}) == {"ok": "yes"}  # type: ignore[dict-item]  # what an app might do
    assert rules.dropped == 8
    assert caplog.text.count("broken") == 1
    assert "a secret" not in caplog.text
    assert "Bad Key" not in caplog.text


SECRETS = [
    "sk-proj-abcdefghijklmnop1234",
    "sk-ant-api03-abcdefghijklmnop",
    "my key is sk-abcdefghijklmnop1234 thanks",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "Bearer abcdefghijklmnop",
    "AKIAIOSFODNN7EXAMPLE",
    "ghp_abcdefghijklmnopqrstuvwxyz0123",
    "github_pat_11ABCDEFG0abcdefghijkl",
    "xoxb-123456789012-abcdef",
    "sk_live_abcdefghijklmnop",
    "-----BEGIN RSA PRIVATE KEY-----",
    "https://user:hunter2@db.example/x",
    "postgresql://app:secret@db/app",
    "AIzaSyA1234567890abcdefghijklmnopqrstuv",
    "4111 1111 1111 1111",
    "4111111111111111",
    "x" * 250 + " sk-abcdefghijklmnop1234",
    "sk-proj-abcdef\0ghijklmnop1234",
    "Be\0arer abcdefghijklmnop",
    "gsk_abcdefghijklmnopqrstuvwx",
    "xai-abcdefghijklmnopqrstuvwx",
    "hf_abcdefghijklmnopqrstuvwx",
    "r8_abcdefghijklmnopqrstuvwx",
    "pplx-abcdefghijklmnopqrstuvwx",
    "sk-or-v1-0123456789abcdef0123456789abcdef",
    "key_sk-abcdefghijklmnop1234",
    "authorization: BEARER abcdefghijklmnop",
    "authorization=Bearer%20abcdefghijklmnop",
    "Basic dXNlcjpwYXNzd29yZA==",
    "ASIAIOSFODNN7EXAMPLE",
    "AKIAIOSFODNN7EXAMPLE_eu",
    "aws_secret_access_key=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "gho_abcdefghijklmnopqrstuvwxyz0123",
    "ghs_abcdefghijklmnopqrstuvwxyz0123",
    "xoxp-123456789012-abcdef",
    "xapp-1-A0123456-123456-abcdef",
    "https://hooks.slack.com/services/T0000/B0000/XXXXXXXXXXXX",
    "rk_live_abcdefghijklmnop",
    "pk_test_abcdefghijklmnop",
    "whsec_abcdefghijklmnopqrst",
    "-----BEGIN OPENSSH PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----",
    "-----BEGIN PGP PRIVATE KEY BLOCK-----",
    "redis://:hunter2@cache/0",
    "HTTPS://user:hunter2@db.example/x",
    "mongodb+srv://app:secret@db",
    "Max retries exceeded with url: /v1/chat?stream=1&api_key=0f3c9ab27d5e41c88a (Caused by NewConnectionError)",
    "https://llm.example/v1?key=0f3c9ab27d5e41c88a",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_secrets_are_redacted_by_their_shape(rules: TagRules, secret: str) -> None:
    """What looks like a key, a token or a card is not kept, wherever in the value it stands, also with a NUL inside."""
    assert rules.clean({"note": secret}) == {"note": REDACTED}
    for inside in (secret, f"see\n{secret}", f'\t"{secret}"'):
        assert rules.clean({"nested": {"deep": inside}}) == {"nested": REDACTED}
        assert rules.clean({"listed": [1, (inside,)]}) == {"listed": REDACTED}
        for written in (json.dumps({"a": inside}), json.dumps(json.dumps([f"\u2028{inside}"])), repr(inside), {inside}):
            assert rules.clean({"note": written, "nested": {"deep": written}}) == {"note": REDACTED, "nested": REDACTED}


@pytest.mark.parametrize(
    "plain",
    [
        "support_chat",
        "1234567890123456789",
        "4111111111111112",
        "user@example.com",
        "https://shop.example/a?b=c",
        "https://shop.example/a?key=colour&token=2",
        "task-sk-1",
        "risk-management-strategies",
        "the bearer of bad news",
        "https://hooks.example/services",
    ],
)
def test_ordinary_values_are_kept(rules: TagRules, plain: str) -> None:
    """Names, long ids, addresses and links without credentials are kept as they are."""
    assert rules.clean({"note": plain}) == {"note": plain}


def test_secret_names_keep_no_value(rules: TagRules) -> None:
    """A tag with the name of a secret is kept without its value, and so is what a mapping has under such a name."""
    assert rules.clean({"password": "hunter2"}) == {"password": REDACTED}
    assert rules.clean({"form": {"user": "ada", "extra": [{"password": "hunter2"}]}}) == {
        "form": '{"extra":[{"password":"[redacted]"}],"user":"ada"}'
    }
    usual = TagRules(SECRET_NAMES)
    for name in ("Password", "API-Key", "api_key", "Set-Cookie", "set_cookie", b"token"):
        (text,) = usual.clean({"headers": {name: "hunter2"}}).values()
        assert "hunter2" not in text, name


def test_no_value_makes_the_search_slow(rules: TagRules) -> None:
    """Megabytes of what almost looks like a secret take no time worth mentioning."""
    start = time.perf_counter()
    for piece in ("a.", "sk-", "eyJ", "1 ", "x://", ":@", "Bearer "):
        rules.clean({"note": piece * 500_000})
    assert time.perf_counter() - start < 5
