"""The limits that a call has to know and only the app can say: asked in threads for that, and waited for so long only."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from contextlib import suppress
from uuid import UUID

from flask_llm_cost.budgets.accounts import Account
from flask_llm_cost.budgets.desk import Job, LateError
from flask_llm_cost.budgets.keeper import Keeper
from flask_llm_cost.budgets.limits import Limits, Told


class Questions:
    """Who asks waits until a time, and gets what was answered by then."""

    def __init__(self, limits: Limits, keeper: Keeper) -> None:
        self._limits = limits
        self._keeper = keeper

    def told(self, accounts: Sequence[Account], until: float) -> dict[UUID, Told]:
        """The limits of *accounts*, without any lift."""
        told, jobs = self._asked(accounts)
        for key, job in jobs.items():
            with suppress(LateError):
                told[key] = job.wait(until - time.monotonic())
        return told

    async def told_async(self, accounts: Sequence[Account], until: float) -> dict[UUID, Told]:
        """The same for a coroutine."""
        told, jobs = self._asked(accounts)
        for key, job in jobs.items():
            with suppress(LateError):
                told[key] = await job.wait_async(until - time.monotonic())
        return told

    def _asked(self, accounts: Sequence[Account]) -> tuple[dict[UUID, Told], dict[UUID, Job[Told]]]:
        """What is known, and what the app is being asked."""
        if self._keeper.inline:
            return {account.id: self._limits.answer(account) for account in accounts}, {}
        told, jobs = self._limits.told(accounts), {}
        for account in accounts:
            if account.id not in told:
                question = (account.budget.name, account.scope)
                work = functools.partial(self._limits.answer, account)
                jobs[account.id] = self._keeper.functions.share(question, work)
        return told, jobs
