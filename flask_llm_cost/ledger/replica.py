"""How far what is read is behind what is written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.ledger.models import Call, Counter
from flask_llm_cost.ledger.store import Ledger


def lag(ledger: Ledger) -> timedelta | None:
    """How far ``LLM_COST_READ_BIND_KEY`` is behind the ledger; ``None`` where nothing was written yet.

    By the newest call, and by the heartbeat that writers leave at most every 30 seconds. Of older calls that come late only
    the heartbeat tells.
    """
    with ledger.session(replica=False) as session:
        written = _marks(session)
    with ledger.session() as session:
        seen = _marks(session)
    nothing = datetime.fromtimestamp(0, UTC)
    found = [there - (here or nothing) for there, here in zip(written, seen, strict=True) if there is not None]
    return max([*found, timedelta(0)]) if found else None


def _marks(session: Session) -> tuple[datetime | None, datetime | None]:
    heartbeat = sa.select(Counter.updated_at).where(Counter.name == "heartbeat").scalar_subquery()
    newest = sa.select(sa.func.max(Call.occurred_at)).scalar_subquery()
    beaten, occurred = session.execute(sa.select(heartbeat, newest)).one()
    return beaten, occurred
