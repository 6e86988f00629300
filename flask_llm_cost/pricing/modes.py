"""Modes: how a call is served where that is billed apart, ``batch``, ``residency:eu`` or both."""

from __future__ import annotations

import re
from typing import Final

from flask_llm_cost.errors import UsageError

SERVICES: Final = ("batch", "flex", "priority", "fast", "ultrafast")
RESIDENCY: Final = re.compile(r"residency:(?:[a-z0-9][a-z0-9-]{0,40}|\*)")
CHOICES: Final = f"write {', '.join(SERVICES)} and/or residency:<zone>, joined by +"
#: What providers call it when there is no mode.
_STANDARD: Final = ("", "standard", "default", "auto", "on_demand")
_LONGEST: Final = 64


def canonical_mode(name: str) -> str | None:
    """``residency:eu+batch`` as ``batch+residency:eu``; ``None`` for what is no mode."""
    services: list[str] = []
    zones: list[str] = []
    for part in name.split("+"):
        if part in SERVICES:
            services.append(part)
        elif RESIDENCY.fullmatch(part):
            zones.append(part)
        else:
            return None
    if len(services) > 1 or len(zones) > 1:
        return None
    return "+".join((*services, *zones))


def read_mode(mode: str | None) -> tuple[bool, str | None]:
    """``(whether it is one, in its one spelling)``. ``standard`` and the empty string are no mode."""
    if mode is None or mode in _STANDARD:
        return True, None
    if not isinstance(mode, str) or len(mode) > _LONGEST:
        return False, None
    canonical = canonical_mode(mode)
    return canonical is not None, canonical


def told_mode(mode: str | None) -> str | None:
    """A mode that the app passes on of a call that was made, perhaps the reply's ``service_tier``, in its one spelling.

    A word that is none is kept: the call has no price then, and is not lost.
    """
    valid, canonical = read_mode(mode)
    return canonical if valid else mode


def asked_mode(mode: str | None) -> str | None:
    """A mode that a person asks about, in its one spelling.

    :raises UsageError: it is none
    """
    valid, canonical = read_mode(mode)
    if not valid:
        raise UsageError(f"mode={str(mode)[:_LONGEST]!r} is no pricing mode; {CHOICES}", name="mode")
    return canonical
