"""What the ledger needs to know of an app's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol
from zoneinfo import ZoneInfo


class LedgerConfig(Protocol):
    """What the ledger reads of :class:`~flask_llm_cost.config.Config`."""

    @property
    def write_mode(self) -> str: ...
    @property
    def write_errors(self) -> str: ...
    @property
    def spool_dir(self) -> Path | None: ...
    @property
    def spool_max_mb(self) -> int: ...
    @property
    def bind_key(self) -> str | None: ...
    @property
    def timezone(self) -> ZoneInfo: ...
    @property
    def rollup_tags(self) -> Literal["auto"] | tuple[str, ...]: ...
    @property
    def report_tags(self) -> tuple[str, ...]: ...
