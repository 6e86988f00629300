"""How calls ended and were counted, and of which operation they are, by the rollups: there is no index of that."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from flask_llm_cost.ledger.answers import Key
from flask_llm_cost.ledger.filter import KNOWN, Filter
from flask_llm_cost.ledger.rollup_state import RollupState
from flask_llm_cost.ledger.rollup_sums import ENDING_COLUMNS, ESCAPED, UNCOUNTED_SOURCES

#: All that these rollups know besides what every one does, and what of it filters and groups are by.
ENDED: Final = (*ENDING_COLUMNS, "computed")
ENDINGS: Final = tuple(name for name in ENDING_COLUMNS if name != "flags")


def asks(flt: Filter) -> bool:
    """Whether a filter is about how calls ended, or of which operation they are."""
    return any(getattr(flt, name) is not None for name in ENDINGS)


@functools.lru_cache(maxsize=1024)
def ended(value: str) -> Mapping[str, Key]:
    """What a rollup of how calls ended says, by the names of :data:`ENDED`; ``computed``: whether a cost was, here, too."""
    stream, outcome, source, status, flags, computed, operation = value.split("|", 6)
    found: dict[str, Key] = {
        "stream": stream == "1", "outcome": outcome, "usage_source": source, "cost_status": status,
        "flags": flags.replace(ESCAPED, "|") or None,
        "computed": computed == "1", "operation": operation,
    }  # fmt: skip
    return MappingProxyType(found)


def fits(how: Mapping[str, Key], flt: Filter) -> bool:
    """Whether a filter lets calls through of which :func:`ended` says that."""
    return all(
        how[name] not in UNCOUNTED_SOURCES if name == "usage_source" and want == KNOWN else want == how[name]
        for name in ENDINGS
        if (want := getattr(flt, name)) is not None
    )


def under(flt: Filter, state: RollupState) -> Mapping[str, str] | None:
    """The tag under which it is kept how a filter's calls ended, none for a filter without; ``None`` where it is not."""
    given = {*flt.scope.items(), *flt.tags.items()}
    known = {key: value for key, value in given if value is not None and key in state.kept}
    return known if state.has_all_kinds(flt.since) and len(known) == len(given) < 2 else None
