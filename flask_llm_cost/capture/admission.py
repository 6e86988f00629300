"""Where budgets are asked for a watched call: before a byte of it is sent, and once it is recorded.

Sync and async differ in how they wait, and in nothing else. What a budget says is the one thing of ours that may reach the
app: what goes wrong in asking is decided where budgets are, by their ``on_error``, and never passes from here.
"""

from __future__ import annotations

from flask_llm_cost.capture.guard import report
from flask_llm_cost.capture.observation import Observation
from flask_llm_cost.capture.sdk import raise_out


def admit(observation: Observation | None) -> None:
    """Ask whether a call may be sent, as far as that has not been asked. What is not watched may.

    :raises BudgetExceededError: it may not; inside an SDK it surfaces where the SDK's own method ends
    """
    try:
        if observation is None or (ask := observation.ask) is None or not ask.is_open:
            return
        answer = observation.budgets.authorise(ask)
        observation.answered(ask, answer)
    except Exception as error:
        report(error)
        return
    except BaseException:
        if observation is not None:
            observation.discard()
        raise
    if answer.error is not None:
        raise_out(answer.error, observation.marker)


async def admit_async(observation: Observation | None) -> None:
    """The same, without keeping the event loop."""
    try:
        if observation is None or (ask := observation.ask) is None or not ask.is_open:
            return
        answer = await observation.budgets.authorise_async(ask)
        observation.answered(ask, answer)
    except Exception as error:
        report(error)
        return
    except BaseException:  # cancelled
        if observation is not None:
            observation.discard()
        raise
    if answer.error is not None:
        raise_out(answer.error, observation.marker)


def look_back(observation: Observation) -> None:
    """Ask whether a budget that raises is used up by now, once the call is recorded. A stream is not at its end here.

    :raises BudgetExceededError: it is
    """
    try:
        if observation.ask is None or not observation.ended:
            return
        used_up = observation.budgets.used_up(observation.subject, "record", observation.call_id)
    except Exception as error:
        report(error)
        return
    if used_up is not None:
        raise_out(used_up, observation.marker)


async def look_back_async(observation: Observation) -> None:
    """The same, without keeping the event loop."""
    try:
        if observation.ask is None or not observation.ended:
            return
        used_up = await observation.budgets.used_up_async(observation.subject, "record", observation.call_id)
    except Exception as error:
        report(error)
        return
    if used_up is not None:
        raise_out(used_up, observation.marker)
