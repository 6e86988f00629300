"""Signals. Receivers run in an app context, one after the other, in a thread of their own: one that is slow holds up neither
a call nor the ledger, one that raises is logged, nothing more."""

from __future__ import annotations

from blinker import Namespace

_signals = Namespace()

#: A call is safe in the ledger. Receivers get the app as sender and ``call``, a :class:`~flask_llm_cost.records.CallRecord`.
call_recorded = _signals.signal("llm-cost-call-recorded")

#: A budget's threshold was crossed. Receivers get ``budget``, ``scope``, ``threshold``, ``spent`` and ``limit``.
budget_exceeded = _signals.signal("llm-cost-budget-exceeded")

#: A call had no price. Receivers get ``call``.
unknown_price = _signals.signal("llm-cost-unknown-price")

#: A batch could not be written; it waits in the spool. Receivers get ``error_class`` and ``waiting``, a count of records.
write_failed = _signals.signal("llm-cost-write-failed")
