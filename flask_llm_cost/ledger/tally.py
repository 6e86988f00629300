"""What one process has seen of its ledger."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Final

from flask_llm_cost.ledger.variety import MANY_VALUES, Variety
from flask_llm_cost.log import log
from flask_llm_cost.records import REDACTED, CallRecord

#: What is added up in the database for all processes, by the names in :class:`Tally`.
COUNTERS: Final = ("duplicates", "quarantined", "lost", "spooled", "busy", "redacted", "unattributed")


@dataclasses.dataclass(slots=True)
class Tally:
    """What this process has seen, for :class:`~flask_llm_cost.ledger.health.Health`."""

    written: int = 0
    duplicates: int = 0
    quarantined: int = 0
    lost: int = 0
    torn: int = 0
    #: Inline writes that had to wait in the spool.
    spooled: int = 0
    #: Batches that had to wait because somebody else held the database.
    busy: int = 0
    #: Calls outside any app context, of which nobody could say which app's they were.
    unattributed: int = 0
    #: Tags that looked like secrets.
    redacted: int = 0
    #: Tag keys with many values, in the order in which they were found to have them.
    many_values: tuple[str, ...] = ()
    variety: Variety = dataclasses.field(default_factory=Variety)
    last_write_at: float | None = None
    last_error_at: float | None = None
    last_error: str | None = None
    schema_missing: bool = False

    def wrote(self, fresh: Sequence[CallRecord], duplicates: int) -> None:
        """A batch is in the database: count it, and what is worth knowing of its tags."""
        self.written += len(fresh)
        self.duplicates += duplicates
        self.last_write_at, self.last_error, self.schema_missing = time.time(), None, False
        for record in fresh:
            self.redacted += sum(REDACTED in value for value in record.tags.values())
            for key in self.variety.add(record.tags):
                self.many_values += (key,)
                log.warning(
                    "llm_cost: tag %s has had over %s values: spend by it is slow to ask and long to read; "
                    "tag with what spend is asked by, not with ids of requests or with texts",
                    key,
                    f"{MANY_VALUES:,}",
                )


def log_call(record: CallRecord) -> None:
    """One line a call, with the keys of its tags and none of their values."""
    usage, cost = record.usage, record.cost
    log.info(
        "llm call provider=%s model=%s outcome=%s input_tokens=%s output_tokens=%s cost=%s currency=%s tags=%s",
        record.provider,
        record.price_model,
        record.outcome,
        usage.input_tokens,
        usage.output_tokens,
        cost.total if cost else None,
        cost.currency if cost else None,
        ",".join(sorted(record.tags)),
    )
