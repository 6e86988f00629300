"""Where budgets are asked for a watched call: before a byte of it is sent, and once it is recorded.

Sync and async differ in how they wait, and in nothing else. A client library calls them only where an observation says that
a budget applies.
"""

from __future__ import annotations

from flask_llm_cost.budgets.enforcement import Answer
from flask_llm_cost.capture.observation import Observation
from flask_llm_cost.capture.sdk import raise_out


def admit(observation: Observation) -> None:
    """Ask whether a call may be sent.

    :raises BudgetExceededError: it may not; inside an SDK it surfaces where the SDK's own method ends
    """
    if observation.ask is not None:
        try:
            answer = observation.budgets.authorise(observation.ask)
        except BaseException:
            observation.discard()
            raise
        _go_by(observation, answer)


async def admit_async(observation: Observation) -> None:
    """The same, without keeping the event loop."""
    if observation.ask is not None:
        try:
            answer = await observation.budgets.authorise_async(observation.ask)
        except BaseException:  # cancelled
            observation.discard()
            raise
        _go_by(observation, answer)


def _go_by(observation: Observation, answer: Answer) -> None:
    observation.answered(answer)
    if answer.error is not None:
        raise_out(answer.error)


def look_back(observation: Observation) -> None:
    """Ask whether a budget that raises is used up by now, once the call is recorded. A stream is not at its end here.

    :raises BudgetExceededError: it is
    """
    if observation.judged and observation.ended:
        error = observation.budgets.used_up(observation.subject, "record")
        if error is not None:
            raise_out(error)


async def look_back_async(observation: Observation) -> None:
    """The same, without keeping the event loop."""
    if observation.judged and observation.ended:
        error = await observation.budgets.used_up_async(observation.subject, "record")
        if error is not None:
            raise_out(error)
