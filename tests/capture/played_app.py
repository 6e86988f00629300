"""What is in an app's ledger."""

from __future__ import annotations

from flask import Flask

from flask_llm_cost.ledger import Call


def ledger_of(app: Flask) -> list[Call]:
    state = app.extensions["llm_cost"]
    assert state.ledger.flush(20)
    with state.ledger.session() as session:
        found = list(session.query(Call).order_by(Call.occurred_at, Call.id))
        for call in found:
            _ = call.line_items, call.tags, call.price
        session.expunge_all()
    return found
