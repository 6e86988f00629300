"""Do budgets add up, and can they be asked?"""

from __future__ import annotations

from collections.abc import Iterator

from flask_llm_cost.budgets.operating import mismatches
from flask_llm_cost.doctor.check import Check
from flask_llm_cost.extension import AppState
from flask_llm_cost.ledger.transaction import WriteError, not_written
from flask_llm_cost.wording import plural, symbol


def budgets(state: AppState) -> Iterator[Check]:
    ours = state.budgets
    if ours is None:
        yield Check("Budgets", "declared", "ok", "none: nothing is capped; LLM_COST_BUDGETS declares them")
        return
    functions = state.tracker.budget_limits
    for name in functions.keys() - {budget.name for budget in ours.declared}:
        message = f"@costs.budget_limit({name!r}) names no budget; declare it in LLM_COST_BUDGETS"
        yield Check("Budgets", name, "error", message)
    for budget in ours.declared:
        if ours.limits.missing(budget):
            yield Check("Budgets", budget.name, "error", "it has no limit; declare one, or register @costs.budget_limit")
        else:
            amount = f"{symbol(budget.currency)}{budget.limit}" if budget.unit == "cost" else f"{budget.limit} {budget.unit}"
            how = "a limit that the app computes" if budget.name in functions else amount
            when = "in total" if budget.period == "total" else f"per {budget.period}"
            yield Check("Budgets", budget.name, "ok", f"{budget.action} at {how} {when}")
    try:
        wrong = ours.keeper.read(mismatches)
    except WriteError as error:
        raise not_written(error) from None
    if wrong:
        yield Check(
            "Budgets",
            "holds",
            "error",
            f"{plural(len(wrong), 'account does not say what its', 'accounts do not say what their')} holds add up to; "
            "run 'flask llm-cost budgets --repair'",
        )
    else:
        yield Check("Budgets", "holds", "ok", "every account says what its holds add up to")
    late = sum(1 for status in ours.statuses() if status.unresolved)
    if late:
        yield Check(
            "Budgets",
            "unresolved",
            "warning",
            f"{plural(late, 'account has', 'accounts have')} amounts of calls that nobody has heard of since, or whose "
            " cost is not known; a price and 'flask llm-cost backfill' settle the latter; for the others look at the "
            "provider's console, then run 'flask llm-cost budgets --release'",
        )
    if ours.keeper.on_sqlite and any(budget.blocks for budget in ours.declared):
        yield Check(
            "Budgets",
            "SQLite",
            "warning",
            "a call made while the same request has an open write is refused, since SQLite has one writer; commit before "
            "calling the model, keep the ledger in a file of its own with LLM_COST_BIND_KEY, or set on_busy to 'allow'",
        )
    for name, one, many, what in (
        ("budget_unavailable", "call was", "calls were", "blocked because a budget could not be asked"),
        ("budget_unavailable_allowed", "call", "calls", "passed although a budget could not be asked"),
        ("budget_unpriced", "call was", "calls were", "without a price, and held at another price, blocked or let through"),
    ):
        if count := ours.keeper.counted(name):
            yield Check("Budgets", name, "warning", f"{plural(count, one, many)} {what}; see the log")
