"""Do tags have so many values that nobody can ask by them?"""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa

from flask_llm_cost.doctor.check import Check
from flask_llm_cost.extension import AppState
from flask_llm_cost.ledger.models import TagRollup
from flask_llm_cost.ledger.rollup_state import read_state
from flask_llm_cost.ledger.variety import MANY_VALUES

_REMEDY = "tag with what spend is asked by, not with ids of requests or with texts"


def tags(state: AppState) -> Iterator[Check]:
    wanted = state.ledger.rollups
    with state.ledger.session() as session:
        found = read_state(session.connection())
        if found is None:
            return  # no call has been written yet
        many = []
        for key in sorted(key for key in found.kept if "," not in key):
            values = sa.select(TagRollup.value).where(TagRollup.key == key).distinct().limit(MANY_VALUES).subquery()
            if (session.scalar(sa.select(sa.func.count()).select_from(values)) or 0) >= MANY_VALUES:
                many.append(key)
    for key in many:
        message = f"it has over {MANY_VALUES:,} values, so sums and lists of it are slow; {_REMEDY}"
        yield Check("Ledger", f"tag {key}", "warning", message)
    for key in sorted(key for key in found.left_out if "," not in key and wanted.wants(key)):
        message = f"nearly every call has another value, so no sums of it are kept; {_REMEDY}"
        yield Check("Ledger", f"tag {key}", "ok", message)
