"""How far what is read is behind what is written."""

from __future__ import annotations

from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.ledger.models import Counter
from flask_llm_cost.ledger.store import Ledger


def lag(ledger: Ledger) -> timedelta | None:
    """How far ``LLM_COST_READ_BIND_KEY`` is behind the ledger, to half a minute; ``None`` where nothing was written yet.

    By the heartbeat that writers leave at most every 30 seconds: what was written between two of them does not show.
    """
    with ledger.session(replica=False) as session:
        written = _heartbeat(session)
    with ledger.session() as session:
        seen = _heartbeat(session)
    if written is None:
        return None
    return max(written - (seen or datetime.fromtimestamp(0, written.tzinfo)), timedelta(0))


def _heartbeat(session: Session) -> datetime | None:
    return session.scalar(sa.select(Counter.updated_at).where(Counter.name == "heartbeat"))
