"""Where a price is from, as it is told to whom: within a scope, that it was set for this app, and no more."""

from __future__ import annotations

from typing import Final, NamedTuple

#: What the operator's own sources of prices are called within a scope.
APP: Final = "app"
_OWN: Final = ("overrides", "file")


class Origin(NamedTuple):
    """A source of prices and its edition; ``None`` where that is nobody's business."""

    source: str
    version: str | None


def told(source: str, version: str | None, *, scoped: bool) -> Origin:
    """The same on a page and in its JSON and CSV."""
    if not scoped:
        return Origin(source, version)
    return Origin(APP if source in _OWN else source, None)
