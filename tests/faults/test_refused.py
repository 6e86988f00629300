"""One record that the database refuses, and the way back for it."""

from __future__ import annotations

import json

import sqlalchemy as sa
from desks import Desk


def refuse(desk: Desk, response_id: str) -> None:
    """The database takes no call with this id, as a constraint or a trigger of the app's may have it."""
    if desk.url.get_backend_name() == "sqlite":
        condition = f"NEW.provider_response_id = '{response_id}' BEGIN SELECT RAISE(ABORT, 'no'); END"
        run(desk, f"CREATE TRIGGER refusing BEFORE INSERT ON llm_cost_calls WHEN {condition}")
    else:
        run(desk, f"ALTER TABLE llm_cost_calls ADD CONSTRAINT refusing CHECK (provider_response_id <> '{response_id}')")


def take_again(desk: Desk) -> None:
    sqlite = desk.url.get_backend_name() == "sqlite"
    run(desk, "DROP TRIGGER refusing" if sqlite else "ALTER TABLE llm_cost_calls DROP CONSTRAINT refusing")


def run(desk: Desk, statement: str) -> None:
    with desk.engine.begin() as connection:
        connection.execute(sa.text(statement))


def test_one_refused_record_among_a_hundred(any_desk: Desk) -> None:
    """It alone is set aside and shown; replayed while it is still refused it stays; replayed afterwards it is in, once."""
    app = any_desk.app()
    ledger = any_desk.ledger(app)
    runner = app.test_cli_runner()

    def say(*command: str) -> str:
        return f"{(result := runner.invoke(args=['llm-cost', *command])).exit_code} {result.output}"

    any_desk.provider.reply_with("/chat/completions", body=chat("chatcmpl-poison"))
    refuse(any_desk, "chatcmpl-poison")
    returned = any_desk.ask(app, range(0, 200, 2))
    assert (len(returned), returned[0]) == (100, "chatcmpl-poison")
    assert ledger.flush(20)
    others = returned[1:]
    any_desk.figures(others).check()
    assert any_desk.stored() == 99
    assert "set aside  1 call " in say("spool")
    assert say("spool").startswith("1 ")
    shown = json.loads(say("spool", "--format", "json").removeprefix("1 "))
    assert (shown["set_aside"], shown["waiting"], shown["waiting_since"], shown["damaged"]) == (1, 0, None, 0)
    assert "'flask llm-cost spool replay'" in say("doctor")

    assert "1 1 call tried again, 1 refused once more" in say("spool", "replay")
    assert any_desk.stored() == 99
    take_again(any_desk)
    assert "0 1 call tried again, 0 refused once more" in say("spool", "replay")
    assert say("spool").startswith("0 ")
    assert "0 0 calls tried again" in say("spool", "replay")
    figures = any_desk.figures(returned)
    figures.check()
    assert figures.stored == 100


def chat(response_id: str) -> dict[str, object]:
    """A reply under an id that the test knows beforehand."""
    message = {"role": "assistant", "content": "yes"}
    return {
        "id": response_id,
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }
