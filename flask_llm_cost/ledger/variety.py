"""How many values the tags of a process have had, told about and in little memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

#: A tag with so many values is hardly one that spend is asked by: sums of it are slow, and lists of it nobody reads.
MANY_VALUES: Final = 10_000
#: In ``llm_cost_counters``: how often a process has seen so many values of a key.
MANY_VALUES_OF: Final = "many_values:"
_MOST_KEYS: Final = 100
# Linear counting: a value sets one bit of these, and how many are set tells how many values there were, within a percent.
_BITS: Final = 65_536
_MANY_BITS: Final = round(_BITS * -math.expm1(-MANY_VALUES / _BITS))


class Variety:
    """What one process has seen of its tags. Eight kilobytes a key, whatever there comes."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[bytearray, list[int]]] = {}
        self._many: set[str] = set()

    def add(self, tags: Mapping[str, str]) -> list[str]:
        """Look at the tags of a call. Which of them have many values from this one on."""
        crossed = []
        for key, value in tags.items():
            if key in self._many:
                continue
            seen = self._seen.get(key)
            if seen is None:
                if len(self._seen) >= _MOST_KEYS:
                    continue
                seen = self._seen[key] = (bytearray(_BITS // 8), [0])
            bits, count = seen
            place, bit = divmod(hash(value) % _BITS, 8)
            if bits[place] >> bit & 1:
                continue
            bits[place] |= 1 << bit
            count[0] += 1
            if count[0] >= _MANY_BITS:
                self._many.add(key)
                del self._seen[key]
                crossed.append(key)
        return crossed
