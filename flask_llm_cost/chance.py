"""Chance of our own: the app may have seeded the shared generator, and count on what comes out of it."""

from __future__ import annotations

import os
from random import Random
from typing import Final

CHANCE: Final = Random()
# Forked workers would otherwise make the same ids, and try again at the same moments.
os.register_at_fork(after_in_child=CHANCE.seed)
