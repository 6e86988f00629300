"""Chance of our own: the app may have seeded the shared generator, and count on what comes out of it."""

from __future__ import annotations

from random import SystemRandom
from typing import Final

#: Has no state that a forked child would share.
CHANCE: Final = SystemRandom()
