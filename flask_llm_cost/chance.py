"""Chance of our own: the app may have seeded the shared generator, and count on what comes out of it."""

from __future__ import annotations

from random import SystemRandom
from typing import Final

#: Has no state that a fork could copy: workers would make the same ids, and the calls of one be taken for the other's.
CHANCE: Final = SystemRandom()
