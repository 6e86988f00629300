"""The played provider speaks OpenAI's shapes well enough for the real SDK, and its truth is what it sent."""

import asyncio

import openai
import pytest

from flask_llm_cost.testing.provider import PlayedProvider

MESSAGES = [{"role": "user", "content": "When does MARKER the shop open?"}]


def test_chat_answers_with_the_prompts_words_and_a_dated_model(
    provider: PlayedProvider, openai_client: openai.OpenAI
) -> None:
    """A plain chat echoes the prompt, names the served model, and its usage is what the truth says was billed."""
    reply = openai_client.chat.completions.create(model="gpt-4o", messages=MESSAGES, service_tier="flex")

    assert "MARKER" in reply.choices[0].message.content
    assert (reply.model, reply.service_tier) == ("gpt-4o-2024-08-06", "flex")
    (billed,) = provider.truth
    assert (billed.path, billed.model, billed.response_id) == ("/openai/v1/chat/completions", reply.model, reply.id)
    assert billed.usage == reply.usage.model_dump(exclude_unset=True)
    assert billed.usage["prompt_tokens"] == len(MESSAGES[0]["content"]) // 4
    assert (billed.streamed, billed.stream_completed) == (False, True)


def test_chat_stream_carries_usage_only_where_asked(provider: PlayedProvider, openai_client: openai.OpenAI) -> None:
    """With include_usage each chunk says null and one last chunk without choices says all; without it there is no usage."""
    asked = list(
        openai_client.chat.completions.create(
            model="gpt-4o", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    )
    unasked = list(openai_client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True))

    assert asked[-1].choices == []
    assert asked[-1].usage.model_dump(exclude_unset=True) == provider.truth[0].usage
    assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in asked[:-1])
    assert not any("usage" in chunk.model_fields_set for chunk in unasked)
    assert provider.truth[1].usage == provider.truth[0].usage
    assert [billed.streamed for billed in provider.truth] == [True, True]


def test_cached_and_reasoning_tokens_when_asked(provider: PlayedProvider, openai_client: openai.OpenAI) -> None:
    """A prompt_cache_key makes cached tokens, a reasoning effort makes reasoning tokens inside the output."""
    chat = openai_client.chat.completions.create(
        model="gpt-5", messages=MESSAGES, prompt_cache_key="shop", reasoning_effort="low"
    )
    response = openai_client.responses.create(model="gpt-5", input="Why?", reasoning={"effort": "high"})

    assert chat.usage.prompt_tokens_details.cached_tokens == chat.usage.prompt_tokens // 2
    assert chat.usage.completion_tokens_details.reasoning_tokens == 32 < chat.usage.completion_tokens
    assert response.usage.output_tokens_details.reasoning_tokens == 512 < response.usage.output_tokens


def test_responses_plain_and_streamed(provider: PlayedProvider, openai_client: openai.OpenAI) -> None:
    """A responses stream starts with response.created and ends with response.completed, which alone carries the usage."""
    plain = openai_client.responses.create(model="gpt-4.1-mini", input="MARKER?")
    events = list(openai_client.responses.create(model="gpt-4.1-mini", input="MARKER?", stream=True))

    assert "MARKER" in plain.output_text
    assert plain.usage.model_dump(exclude_unset=True) == provider.truth[0].usage
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert events[0].response.usage is None
    assert events[-1].response.output_text == plain.output_text
    assert events[-1].response.usage.model_dump(exclude_unset=True) == provider.truth[1].usage


def test_background_response_is_billed_once_however_often_it_is_polled(
    provider: PlayedProvider, openai_client: openai.OpenAI
) -> None:
    """A background response answers queued without usage; each later GET carries it; the truth has it once."""
    queued = openai_client.responses.create(model="gpt-4.1-mini", input="Later.", background=True)
    polls = [openai_client.responses.retrieve(queued.id) for _ in range(3)]

    assert (queued.status, queued.usage) == ("queued", None)
    assert {poll.status for poll in polls} == {"completed"}
    assert [billed.response_id for billed in provider.truth] == [queued.id]
    assert polls[0].usage.model_dump(exclude_unset=True) == provider.truth[0].usage


def test_embeddings_as_floats_and_base64_are_the_same_vectors(
    provider: PlayedProvider, openai_client: openai.OpenAI
) -> None:
    """Both encodings carry the same numbers; texts that share words are near each other."""
    texts = ["opening hours of the shop", "hours the shop is opening", "sourdough bread"]
    packed = openai_client.embeddings.create(model="text-embedding-3-small", input=texts)
    floats = openai_client.embeddings.create(model="text-embedding-3-small", input=texts, encoding_format="float")

    assert packed.data[0].embedding == pytest.approx(floats.data[0].embedding)
    first, near, far = (item.embedding for item in packed.data)
    assert sum(a * b for a, b in zip(first, near, strict=True)) > sum(a * b for a, b in zip(first, far, strict=True))
    assert provider.truth[0].usage == packed.usage.model_dump()


def test_what_is_free_is_not_in_the_truth(provider: PlayedProvider, openai_client: openai.OpenAI) -> None:
    """Moderations, models and input_tokens answer, and nothing is billed for them."""
    assert openai_client.moderations.create(input="hello").results[0].flagged is False
    assert "gpt-4o" in [model.id for model in openai_client.models.list()]
    assert openai_client.responses.input_tokens.count(model="gpt-4o", input="12345678").input_tokens == 2
    assert provider.truth == []
    assert [request.path for request in provider.requests] == [
        "/openai/v1/moderations",
        "/openai/v1/models",
        "/openai/v1/responses/input_tokens",
    ]


def test_three_hundred_at_once(provider: PlayedProvider) -> None:
    """Three hundred concurrent calls from the async SDK are answered and billed, once each."""

    async def calls() -> list[str]:
        async with openai.AsyncOpenAI(base_url=provider.openai_url, api_key="any", max_retries=0) as client:
            replies = await asyncio.gather(
                *(client.chat.completions.create(model="gpt-4o", messages=MESSAGES) for _ in range(300))
            )
        return [reply.id for reply in replies]

    assert sorted(asyncio.run(calls())) == sorted(billed.response_id for billed in provider.truth)


def test_async_stream(provider: PlayedProvider) -> None:
    """The async SDK reads a stream to its end."""

    async def words() -> str:
        async with openai.AsyncOpenAI(base_url=provider.openai_url, api_key="any") as client:
            stream = await client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert "MARKER" in asyncio.run(words())
    assert provider.truth[0].stream_completed
