"""Usage that a person hands in as the provider's own block, and what a request says before any reply."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic.types import Usage as AnthropicUsage
from google.genai.types import GenerateContentResponseUsageMetadata
from openai.types import CompletionUsage
from openai.types.responses import ResponseUsage

from flask_llm_cost.errors import UsageError
from flask_llm_cost.usage import HostMap, known_provider, provider_format, route
from flask_llm_cost.usage.manual import usage_from
from flask_llm_cost.usage.openai_media import Images, Speech

BLOCKS: list[tuple[str, Any, dict[str, int]]] = [
    ("openai", CompletionUsage(prompt_tokens=10, completion_tokens=4, total_tokens=14), {"input": 10, "output": 4}),
    (
        "azure",
        ResponseUsage.model_validate(
            {
                "input_tokens": 10,
                "input_tokens_details": {"cached_tokens": 6, "cache_write_tokens": 0},
                "output_tokens": 4,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": 14,
            }
        ),
        {"input": 4, "cache_read": 6, "output": 4},
    ),
    (
        "anthropic",
        AnthropicUsage(input_tokens=10, output_tokens=4, cache_read_input_tokens=6),
        {"input": 10, "cache_read": 6, "output": 4},
    ),
    (
        "bedrock",
        {"input_tokens": 10, "output_tokens": 4, "cache_read_input_tokens": 6},
        {"input": 10, "cache_read": 6, "output": 4},
    ),
    ("vertex", {"input_tokens": 10, "output_tokens": 4}, {"input": 10, "output": 4}),
    (
        "gemini",
        GenerateContentResponseUsageMetadata(prompt_token_count=10, candidates_token_count=4, thoughts_token_count=5),
        {"input": 10, "output": 9},
    ),
    ("my_gateway", {"promptTokenCount": 10, "candidatesTokenCount": 4}, {"input": 10, "output": 4}),
    ("bedrock", {"inputTokens": 10, "outputTokens": 4, "totalTokens": 14}, {"input": 10, "output": 4}),
    ("cohere", {"billed_units": {"input_tokens": 10, "output_tokens": 4}}, {"input": 10, "output": 4}),
    ("ollama", {"model": "m", "prompt_eval_count": 10, "eval_count": 4}, {"input": 10, "output": 4}),
    (
        "mistral",
        {
            "prompt_tokens": 10,
            "completion_tokens": 4,
            "total_tokens": 20,
            "connector_tokens": 6,
            "connectors": {"web_search": 1},
        },
        {"input": 16, "output": 4, "web_search": 1},
    ),
    ("groq", {"prompt_tokens": 10, "completion_tokens": 4, "queue_time": 0.1}, {"input": 10, "output": 4}),
]


@pytest.mark.parametrize(("provider", "block", "quantities"), BLOCKS, ids=range(len(BLOCKS)))
def test_a_providers_own_block(provider: str, block: Any, quantities: dict[str, int]) -> None:
    """A usage block is understood by its names, whoever's SDK made it and whatever gateway it came through."""
    usage = usage_from(provider, block)
    assert (dict(usage.quantities), usage.source) == (quantities, "manual")


def test_a_block_that_is_none() -> None:
    """A block of no known shape is refused with the names that are known, one with impossible counts by its field."""
    with pytest.raises(UsageError) as unknown:
        usage_from("gemini", {"tokens": 5})
    assert "input" in (unknown.value.choices or ())
    with pytest.raises(UsageError, match="promptTokenCount"):
        usage_from("gemini", {"promptTokenCount": -5})


@pytest.mark.parametrize(
    ("content", "characters"),
    [
        ('{"input": "Héllo \\"x\\"", "model": "tts-1"}', 9),
        ('{"input": ""}', None),
        ('{"input": ["a"]}', None),
        ("{broken", None),
        ("", None),
        ('["input"]', None),
    ],
)
def test_characters_to_speak(content: str, characters: int | None) -> None:
    """Speech is billed by the characters of the request; a request that cannot be read says nothing."""
    assert Speech().quantities_of_request(content.encode()) == ({"characters": characters} if characters else {})


@pytest.mark.parametrize(
    ("content", "images"),
    [
        ('{"n": 4}', 4),
        ("{}", 1),
        ('{"n": null}', 1),
        ('{"n": true}', 1),
        ('{"n": -1}', 1),
        ('{"n": 100000}', 1),
        ('--b\r\nContent-Disposition: form-data; name="n"\r\n\r\n3\r\n--b--\r\n', 3),
        ('--b\r\nContent-Disposition: form-data; name="n"\r\n\r\nmany\r\n--b--\r\n', 1),
    ],
)
def test_pictures_asked_for(content: str, images: int) -> None:
    """How many pictures a request asks for, in JSON or in a form; one where it does not say."""
    assert Images().quantities_of_request(content.encode()) == {"images": images}


@pytest.mark.parametrize(
    ("host", "provider"),
    [
        ("eu.api.openai.com", "openai"),
        ("api.openai.com.evil.example", None),
        ("evilapi.openai.com", None),
        ("acme.openai.azure.com:443", "azure"),
        ("bedrock-runtime-fips.us-gov-west-1.amazonaws.com", "bedrock"),
        ("bedrock-runtime.us-east-1.amazonaws.com.evil.example", None),
        ("vpce-0a1b-c2d3-us-east-1a.bedrock-runtime.us-east-1.vpce.amazonaws.com", "bedrock"),
        ("evil.bedrock-runtime.us-east-1.vpce.amazonaws.com", None),
        ("europe-west4-aiplatform.mtls.googleapis.com", "vertex"),
        ("aiplatform.us.rep.googleapis.com", "vertex"),
        ("generativelanguage.googleapis.com", "gemini"),
        ("localhost:11434", "ollama"),
        ("localhost:8000", None),
    ],
)
def test_the_provider_behind_a_host(host: str, provider: str | None) -> None:
    """A known host, with or without region and port, is known; one that only looks like it is not."""
    assert known_provider(host) == provider


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/chat/completions"),
        ("PUT", "/v1/chat/completions"),
        ("DELETE", "/v1/responses/resp_1"),
        ("POST", "/v1/responses/resp_1"),
        ("GET", "/v1/responses/resp_1/input_items"),
        ("GET", "/v1/files/file-1"),
        ("POST", "/v1/files"),
        ("GET", "/v1/models"),
    ],
)
def test_other_requests_to_a_provider_are_no_calls(method: str, path: str) -> None:
    """Lists, uploads and other methods cost nothing."""
    assert route(HostMap({}, True), method, "api.openai.com", path, {}, marked=True) is None


@pytest.mark.parametrize(
    ("method", "path", "called"),
    [
        ("POST", "/v1/conversations", True),
        ("POST", "/v1/conversations/conv_1", True),
        ("POST", "/v1/conversations/conv_1/restart", True),
        ("GET", "/v1/conversations", False),
        ("GET", "/v1/conversations/conv_1", False),
        ("GET", "/v1/conversations/conv_1/history", False),
        ("GET", "/v1/conversations/conv_1/messages", False),
        ("DELETE", "/v1/conversations/conv_1", False),
        ("POST", "/v1/conversations/conv_1/share", False),
        ("POST", "/v1/agents", False),
    ],
)
def test_conversations(method: str, path: str, called: bool) -> None:
    """What makes a model answer is a call of Mistral's, what lists or deletes is none. At a gateway, or by an SDK, the reply
    decides; no budget is asked at OpenAI, where they cost nothing, and on hosts where people have conversations."""
    hosts = HostMap({"gateway.example": "our-gateway"}, True)
    found = route(hosts, method, "api.mistral.ai", path, {}, marked=False)
    assert (found is not None and found.certain) == called
    for host, marked in (("gateway.example", False), ("somewhere.example", True)):
        elsewhere = route(hosts, method, host, path, {}, marked=marked)
        assert not called or (elsewhere is not None and not elsewhere.certain)
    for host, marked in (("api.openai.com", True), ("helpdesk.example", False)):
        assert route(hosts, method, host, path, {}, marked=marked) is None


def test_a_format_by_provider() -> None:
    """Where only a provider's name is known, its format follows; a stranger speaks OpenAI's."""
    names = {provider: provider_format(provider).name for provider in ("anthropic", "gemini", "bedrock", "somebody")}
    assert names == {
        "anthropic": "anthropic.messages",
        "gemini": "gemini.generate_content",
        "bedrock": "bedrock.converse",
        "somebody": "openai.chat",
    }
