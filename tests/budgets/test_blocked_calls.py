"""A call that a budget refuses: the app gets the error itself, at once, and the provider gets nothing."""

from __future__ import annotations

import asyncio
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import boto3
import httpx
import httpx2
import openai
import pytest
import requests
from budget_apps import BODY, NOTHING, AppMaker, BudgetApp

from flask_llm_cost import BudgetExceededError, tags
from flask_llm_cost.capture.httpx import AsyncLlmCostTransport, LlmCostTransport
from flask_llm_cost.capture.requests import LlmCostAdapter  # type: ignore[attr-defined]  # made on demand
from flask_llm_cost.testing.provider import PlayedProvider

Way = Callable[[PlayedProvider], Any]

CLAUDE = "anthropic.claude-3-haiku-20240307-v1:0"
WAYS: dict[str, Way] = {}


def way(function: Way) -> Way:
    WAYS[function.__name__] = function
    return function


@way
def openai_sdk(provider: PlayedProvider) -> None:
    with openai.OpenAI(base_url=provider.openai_url, api_key="test") as client:
        client.chat.completions.create(**BODY)


@way
def openai_sdk_stream(provider: PlayedProvider) -> None:
    with openai.OpenAI(base_url=provider.openai_url, api_key="test") as client:
        list(client.chat.completions.create(stream=True, **BODY))


@way
def openai_sdk_raw(provider: PlayedProvider) -> None:
    with openai.OpenAI(base_url=provider.openai_url, api_key="test") as client:
        client.responses.with_raw_response.create(model="gpt-4o", input="hello")


@way
async def openai_sdk_async(provider: PlayedProvider) -> None:
    async with openai.AsyncOpenAI(base_url=provider.openai_url, api_key="test") as client:
        await client.chat.completions.create(**BODY)


@way
async def openai_sdk_on_aiohttp(provider: PlayedProvider) -> None:
    async with openai.AsyncOpenAI(
        base_url=provider.openai_url, api_key="test", http_client=httpx2.AsyncClient(transport=AsyncLlmCostTransport())
    ) as client:
        await client.chat.completions.create(**BODY)


@way
def anthropic_sdk(provider: PlayedProvider) -> None:
    with anthropic.Anthropic(base_url=provider.anthropic_url, api_key="test") as client:
        client.messages.create(model="claude-sonnet-4-6", max_tokens=10, messages=BODY["messages"])


@way
def anthropic_sdk_stream(provider: PlayedProvider) -> None:
    client = anthropic.Anthropic(base_url=provider.anthropic_url, api_key="test")
    with client, client.messages.stream(model="claude-sonnet-4-6", max_tokens=10, messages=BODY["messages"]) as stream:
        list(stream)


@way
async def anthropic_sdk_async(provider: PlayedProvider) -> None:
    async with anthropic.AsyncAnthropic(base_url=provider.anthropic_url, api_key="test") as client:
        await client.messages.create(model="claude-sonnet-4-6", max_tokens=10, messages=BODY["messages"])


@way
def raw_httpx(provider: PlayedProvider) -> None:
    httpx.post(f"{provider.openai_url}/chat/completions", json=BODY)


@way
def raw_httpx2(provider: PlayedProvider) -> None:
    httpx2.post(f"{provider.openai_url}/chat/completions", json=BODY)


@way
async def raw_httpx_async(provider: PlayedProvider) -> None:
    async with httpx.AsyncClient() as client:
        await client.post(f"{provider.openai_url}/chat/completions", json=BODY)


@way
async def raw_httpx2_async_stream(provider: PlayedProvider) -> None:
    url = f"{provider.openai_url}/chat/completions"
    async with httpx2.AsyncClient() as client, client.stream("POST", url, json={**BODY, "stream": True}) as reply:
        await reply.aread()


@way
def httpx_transport(provider: PlayedProvider) -> None:
    with httpx.Client(transport=LlmCostTransport()) as client:
        client.post(f"{provider.openai_url}/chat/completions", json=BODY)


@way
def raw_requests(provider: PlayedProvider) -> None:
    requests.post(f"{provider.openai_url}/chat/completions", json=BODY)


@way
def requests_adapter(provider: PlayedProvider) -> None:
    with requests.Session() as session:
        session.mount("http://", LlmCostAdapter())
        session.post(f"{provider.openai_url}/chat/completions", json=BODY)


@way
async def raw_aiohttp(provider: PlayedProvider) -> None:
    url = f"{provider.openai_url}/chat/completions"
    async with aiohttp.ClientSession() as session, session.post(url, json=BODY) as reply:
        await reply.read()


def bedrock(provider: PlayedProvider) -> Any:
    return boto3.client(
        "bedrock-runtime",
        endpoint_url=f"{provider.url}/bedrock",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


@way
def botocore(provider: PlayedProvider) -> None:
    bedrock(provider).converse(modelId=CLAUDE, messages=[{"role": "user", "content": [{"text": "hello"}]}])


@way
def botocore_invoke(provider: PlayedProvider) -> None:
    body = json.dumps({"anthropic_version": "bedrock-2023-05-31", "max_tokens": 10, "messages": BODY["messages"]})
    bedrock(provider).invoke_model(modelId=CLAUDE, body=body)["body"].read()


def run(app: BudgetApp, made: Way, provider: PlayedProvider) -> None:
    with app.flask.app_context():
        result = made(provider)
        if asyncio.iscoroutine(result):
            asyncio.run(result)


@pytest.mark.parametrize("name", WAYS)
def test_the_app_gets_the_error_itself(sqlite_app: AppMaker, provider: PlayedProvider, name: str) -> None:
    """Whatever the client library, and with its own retries, a blocked call raises BudgetExceededError and sends nothing."""
    app = sqlite_app(NOTHING, hosts={**provider.hosts, f"{provider.host}/bedrock": "bedrock"})
    with pytest.raises(BudgetExceededError) as caught:
        run(app, WAYS[name], provider)
    assert type(caught.value) is BudgetExceededError
    assert caught.value.__cause__ is None
    assert caught.value.stage == "admit"
    assert provider.requests == []
    app.flush()
    assert [(call.outcome, call.total_cost, call.error_class) for call in app.calls()] == [
        ("blocked", None, "BudgetExceededError")
    ]
    period = app.period()
    assert (period.spent, period.held, period.blocked_calls) == (0, 0, 1)


@pytest.mark.parametrize("name", ["raw_aiohttp", "botocore", "botocore_invoke", "raw_requests", "raw_httpx_async"])
def test_a_budget_that_raises_does_so_in_every_library(sqlite_app: AppMaker, provider: PlayedProvider, name: str) -> None:
    """The call is sent and recorded, and its own caller gets the error, where the whole reply is read at the latest."""
    usage = {"inputTokens": 30, "outputTokens": 4, "totalTokens": 34}
    output = {"message": {"role": "assistant", "content": [{"text": "hi"}]}}
    provider.reply_with("/converse", body={"usage": usage, "stopReason": "end_turn", "output": output, "metrics": {}})
    provider.reply_with("/invoke", body={"type": "message", "usage": {"input_tokens": 30, "output_tokens": 4}})
    app = sqlite_app(
        {"name": "loop", "limit": "0.000001", "period": "day", "action": "raise"},
        price_overrides={f"bedrock/{CLAUDE}": {"input": "0.25", "output": "1.25"}},
        hosts={**provider.hosts, f"{provider.host}/bedrock": "bedrock"},
    )
    with pytest.raises(BudgetExceededError, match="budget 'loop' is used up") as caught:
        run(app, WAYS[name], provider)
    assert caught.value.stage == "record"
    app.flush()
    assert [call.outcome for call in app.calls()] == ["ok"]
    assert app.period().spent == app.cost() > 0
    assert len(provider.requests) == 1


def test_the_error_says_what_it_knows(sqlite_app: AppMaker, provider: PlayedProvider) -> None:
    """The attributes of the error are the row's numbers, and its text says them to a person; both survive a job queue."""
    budget = {"name": "daily", "limit": "0.0015", "period": "day", "per": "tenant_id", "action": "block"}
    app = sqlite_app(budget, timezone="Europe/Berlin")
    with tags(tenant_id="42"):
        run(app, openai_sdk, provider)
        app.flush()
        with pytest.raises(BudgetExceededError) as caught:
            run(app, openai_sdk, provider)
    error = caught.value
    assert (error.budget, error.scope, error.limit) == ("daily", "tenant_id=42", Decimal("0.0015"))
    assert (error.spent, error.held, error.stage) == (app.period().spent, 0, "admit")
    assert error.estimate is not None
    assert app.period().spent + error.estimate > Decimal("0.0015")
    assert error.period_ends == app.period().ends_at
    assert str(error).startswith("budget 'daily' of tenant_id=42 has no room for this call: its limit is $0.00150 a day")
    assert " 00:00 CE" in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.__dict__) == (str(error), error.__dict__)


#: Forks in C, as uWSGI does, when its one thread beside this one waits for work.
FORKED = """
import ctypes, os, sys, time
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_llm_cost import LlmCostTracker
from flask_llm_cost.budgets import enforcement
enforcement.PATIENCE_SECONDS = enforcement.TRANSACTION_SECONDS = 20.0
app = Flask("forked", instance_path=sys.argv[1])
app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{sys.argv[1]}/app.db"
app.config["LLM_COST_BUDGETS"] = [{"limit": "1", "period": "day", "action": "block"}]
db, costs = SQLAlchemy(app), LlmCostTracker(app)
with app.app_context():
    db.create_all()
    costs.check_budget()
    time.sleep(1)
    child = ctypes.PyDLL(None).fork()
    costs.check_budget()
    if not child:
        os._exit(0)
sys.exit(os.waitpid(child, 0)[1])
"""


def test_a_worker_of_an_unseen_fork_asks_by_itself(tmp_path: Path) -> None:
    """The child of a fork that runs no hooks waits for none of its parent's threads, and is refused nothing."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED, str(tmp_path)], timeout=300, check=False)
    assert done.returncode == 0
