"""What the desk asks of language models. The tags say what for; who asks is known from the request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

from anthropic import Anthropic
from flask import current_app
from openai import OpenAI, OpenAIError

from example.models import Article, Ticket
from flask_llm_cost import tags


@cache
def openai() -> OpenAI:
    return OpenAI()


@cache
def anthropic() -> Anthropic:
    return Anthropic()


@cache
def own_models() -> OpenAI:
    return OpenAI(base_url=current_app.config["TRIAGE_URL"], api_key="none")


@tags(feature="support_chat")
def answer(question: str, *, model: str, shop: str) -> Iterator[str]:
    """The answer, piece by piece as it arrives."""
    messages = [
        {"role": "system", "content": f"You answer customers of {shop}: friendly, short, and only about the shop."},
        {"role": "user", "content": question},
    ]
    try:
        with openai().chat.completions.create(
            model=model, messages=messages, max_completion_tokens=300, stream=True
        ) as stream:
            for chunk in stream:
                yield chunk.choices[0].delta.content or ""
    except OpenAIError:
        current_app.logger.warning("The assistant broke off.")
        yield " … The assistant is not available just now."


@tags(feature="summaries")
def summarize(text: str) -> str:
    message = anthropic().messages.create(
        model="claude-haiku-4-5",
        max_tokens=300,
        system="Sum up the customer's message in two sentences.",
        messages=[{"role": "user", "content": text}],
    )
    return "".join(block.text for block in message.content if block.type == "text")


def search(query: str, articles: Sequence[Article], *, best: int = 3) -> list[Article]:
    """The articles whose meaning is nearest to the query's."""
    texts = [query, *(f"{article.title}. {article.body}" for article in articles)]
    with tags(feature="search"):
        found = openai().embeddings.create(model="text-embedding-3-small", input=texts).data
    wanted, *offered = (item.embedding for item in found)
    nearness = [sum(a * b for a, b in zip(wanted, vector, strict=True)) for vector in offered]
    ranked = sorted(zip(nearness, articles, strict=True), key=lambda pair: pair[0], reverse=True)
    return [article for _, article in ranked[:best]]


@tags(feature="triage")
def is_urgent(ticket: Ticket) -> bool:
    """Asks our own model. No price book knows it: its calls are counted, and shown as unpriced."""
    messages = [{"role": "user", "content": f"Is this urgent, yes or no? {ticket.subject}. {ticket.body}"}]
    reply = own_models().chat.completions.create(model="desk-triage-2", messages=messages)
    return "yes" in (reply.choices[0].message.content or "").lower()


@tags(feature="digest")
def digest(shop: str, lines: Sequence[str]) -> str:
    response = openai().responses.create(
        model="gpt-4.1-nano",
        instructions=f"Write a morning digest of {shop}'s open tickets, three sentences at most.",
        input="\n".join(lines),
        max_output_tokens=300,
    )
    return response.output_text
