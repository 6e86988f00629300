"""Nothing that was said to a model, or by one, is ever kept."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from flask import Flask
from played_app import ledger_of

from flask_llm_cost import dashboard_blueprint, tags
from flask_llm_cost.testing.provider import PlayedProvider

MARKER = "SENTINEL7f3a"

TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": f"tool_{MARKER}",
            "description": MARKER,
            "parameters": {"type": "object", "properties": {MARKER: {"type": "string"}}},
        },
    }
]


def exercise(provider: PlayedProvider) -> None:
    """Everything that content travels in: prompts, answers, tools, names of users, headers, keys, errors, odd usage."""
    message: Any = [
        {"role": "system", "content": MARKER},
        {"role": "user", "content": f"say {MARKER}", "name": MARKER},
    ]
    headers = {"x-secret": MARKER}
    with openai.OpenAI(
        base_url=provider.openai_url, api_key=f"sk-{MARKER}", default_headers=headers, max_retries=0
    ) as client:
        create = client.chat.completions.create
        create(model="gpt-4o", messages=message, tools=TOOLS, user=MARKER)
        for chunk in create(model="gpt-4o", messages=message, tools=TOOLS, stream=True):
            assert chunk
        broken_off = create(model="gpt-4o", messages=message, stream=True)
        next(broken_off)
        broken_off.close()
        client.responses.create(model="gpt-4o", input=MARKER, instructions=MARKER, metadata={"note": MARKER})
        list(client.responses.create(model="gpt-4o", input=MARKER, stream=True))
        client.embeddings.create(model="text-embedding-3-small", input=MARKER)
        provider.reply_with(
            "chat/completions", status=400, body={"error": {"message": f"bad {MARKER}", "code": MARKER, "param": MARKER}}
        )
        with pytest.raises(openai.BadRequestError):
            create(model="gpt-4o", messages=message)
        usage: Any = {"prompt_tokens": 1, "completion_tokens": MARKER, MARKER: MARKER, "note": {"deep": MARKER}}
        provider.reply_with("chat/completions", usage=usage)
        create(model="gpt-4o", messages=message)
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2, "note": MARKER, "more": [MARKER]}
        provider.reply_with("chat/completions", usage=usage)
        create(model="gpt-4o", messages=message)
        provider.reply_with("chat/completions", delay=1.0)
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.1).chat.completions.create(model="gpt-4o", messages=message)
        provider.reply_with("chat/completions", body=f'{{"id": "{MARKER} broken')
        with pytest.raises(json.JSONDecodeError):
            create(model="gpt-4o", messages=message)
    with anthropic.Anthropic(base_url=provider.anthropic_url, api_key=f"sk-ant-{MARKER}") as client:
        client.messages.create(
            model="claude-sonnet-4-6", max_tokens=50, system=MARKER, messages=[{"role": "user", "content": MARKER}]
        )
        with client.messages.stream(
            model="claude-sonnet-4-6", max_tokens=50, messages=[{"role": "user", "content": MARKER}]
        ) as stream:
            stream.get_final_message()


@pytest.mark.parametrize("mode", ["background", "inline", "log"])
def test_no_content_is_ever_kept(
    make_app: Callable[..., Flask],
    provider: PlayedProvider,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    mode: str,
) -> None:
    """A marker planted in all content is nowhere: database, write-ahead log, spool, log lines, pages, exports."""
    spool = tmp_path / "spool"
    app = make_app(write_mode=mode, spool_dir=str(spool))
    app.register_blueprint(dashboard_blueprint(guard=lambda view: view), url_prefix="/costs")
    caplog.set_level(logging.DEBUG, logger="flask_llm_cost")
    with app.app_context(), tags(api_key=f"sk-{MARKER}aaaaaaaaaaaaaaaa", note=f"Bearer {MARKER}aaaaaaaaaaaa"):
        exercise(provider)
    shown = [record.getMessage() for record in caplog.records if record.name.startswith("flask_llm_cost")]
    if mode == "log":
        assert any("gpt-4o" in line for line in shown)
    else:
        found = ledger_of(app)
        assert len(found) == 12
        client = app.test_client()
        pages = ("/costs/", "/costs/calls", "/costs/calls?format=csv", "/costs/calls?format=json")
        shown.extend(client.get(page).text for page in pages)
        for call in found:
            shown.append(client.get(f"/costs/calls/{call.id}").text)
            shown.append(repr([getattr(call, column.key) for column in call.__table__.columns]))
        assert any("gpt-4o" in page for page in shown)
        commands = (["report"], ["report", "--format", "json"], ["doctor"])
        shown.extend(app.test_cli_runner().invoke(args=["llm-cost", *command]).output for command in commands)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in files if MARKER.encode() in path.read_bytes()] == []
    assert [text for text in shown if MARKER in text] == []
