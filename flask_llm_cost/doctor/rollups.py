"""Do the rollups hold what questions are answered from?"""

from __future__ import annotations

from collections.abc import Iterator

from flask_llm_cost.doctor.check import Check
from flask_llm_cost.extension import AppState
from flask_llm_cost.ledger.agreement import Agreement, sampled_agreement
from flask_llm_cost.ledger.rollup_state import read_state
from flask_llm_cost.ledger.rollups import zone_mismatch
from flask_llm_cost.wording import plural

_REBUILD = "run 'flask llm-cost rollups rebuild'"


def rollups(state: AppState) -> Iterator[Check]:
    wanted = state.ledger.rollups
    with state.ledger.session() as session:
        found = read_state(session.connection())
        compared = sampled_agreement(session, found) if found is not None and found.complete else None
    if found is None:
        return  # no call has been written yet
    if found.zone != str(wanted.zone):
        yield Check("Ledger", "reporting zone", "error", zone_mismatch(found.zone, str(wanted.zone)))
    if not found.complete:
        message = f"the rollups do not hold all calls yet, so questions are slow; {_REBUILD}"
        yield Check("Ledger", "rollups", "warning", message)
    elif missing := wanted.named & found.left_out:
        message = f"LLM_COST_ROLLUP_TAGS names {', '.join(sorted(missing))}, of which there are no rollups"
        remedy = (
            f" yet; {_REBUILD}"
            if found.pruned is None
            else ", and none are to be had since calls were pruned; name it no more"
        )
        yield Check("Ledger", "rollups", "warning", message + remedy)
    elif found.all_kinds is None:
        missing_kinds = "which calls have a tag, of which operation they are, and what parts of days come to"
        message = f"it is not kept {missing_kinds}, so pages about that are slow; {_REBUILD}"
        yield Check("Ledger", "rollups", "warning", message)
    elif found.zone == str(wanted.zone):
        kept = ", ".join(sorted(found.kept)) or "no tag yet"
        yield Check("Ledger", "rollups", "ok", f"days of {found.zone}, by {kept}")
    if compared is not None and compared.buckets:
        yield _compared(compared)


def _compared(seen: Agreement) -> Check:
    name = "rollups against calls"
    if not seen.wrong_buckets and not seen.wrong_days:
        looked_at = plural(seen.buckets, "quarter of an hour", "quarters of an hour")
        return Check("Ledger", name, "ok", f"looked at {looked_at}: each says what its calls add up to")
    where = f"{seen.wrong_buckets[0]:%Y-%m-%d %H:%M} UTC" if seen.wrong_buckets else f"{seen.wrong_days[0]}"
    message = f"the rollups do not say what the calls add up to (for instance {where}): somebody changed one of them by hand"
    return Check("Ledger", name, "error", f"{message}; {_REBUILD}")
