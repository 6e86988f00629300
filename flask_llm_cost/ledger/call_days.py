"""Which days have calls that ended in a certain way, by the rollups: a list of them looks at no other day."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Final
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.ledger.local_time import start_of_day
from flask_llm_cost.ledger.models import TagRollup
from flask_llm_cost.ledger.rollup_answers import plain, state_of
from flask_llm_cost.ledger.rollup_sums import ENDING, ENDING_COLUMNS

#: The filters that the rollups of endings know, in the order of their value.
_KNOWN: Final = tuple(name for name in ENDING_COLUMNS if name != "flags")


def with_calls(session: Session, flt: Filter) -> Filter | None:
    """The filter, from the first to the last day that has such calls, its tags aside; ``None`` where no day has any.

    No index knows how calls ended. Where hardly any ended so, all would be looked at to find these.
    """
    state = state_of(session)
    if state is None or not state.complete or all(getattr(flt, name) is None for name in _KNOWN):
        return flt
    zone = ZoneInfo(state.zone)
    query = sa.select(TagRollup.day, TagRollup.value).where(TagRollup.key == ENDING, *plain(flt, TagRollup))
    if flt.since is not None:
        query = query.where(TagRollup.day >= flt.since.astimezone(zone).date())
    if flt.until is not None:
        query = query.where(TagRollup.day <= flt.until.astimezone(zone).date())
    found = session.execute(query.group_by(TagRollup.day, TagRollup.value).having(sa.func.sum(TagRollup.calls) > 0))
    days = [day for day, ending in found if _fits(ending, flt)]
    if not days:
        return None
    since, until = start_of_day(min(days), zone), start_of_day(max(days) + timedelta(days=1), zone)
    return replace(
        flt,
        since=since if flt.since is None else max(since, flt.since),
        until=until if flt.until is None else min(until, flt.until),
    )


def _fits(ending: str, flt: Filter) -> bool:
    stream, *rest = ending.split("|")
    wanted = [getattr(flt, name) for name in _KNOWN]
    return all(want is None or want == has for want, has in zip(wanted, (stream == "1", *rest), strict=False))
