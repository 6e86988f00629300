"""Which versions of the libraries the tests have run with."""

from __future__ import annotations

import re
from typing import Final

#: Library to the oldest and the newest release line that the tests run with. The newest is a prefix: ``3`` is every 3.x.
TESTED: Final[dict[str, tuple[str, str]]] = {
    "aiohttp": ("3.9", "3"),
    "anthropic": ("0.125", "2"),
    "boto3": ("1.40", "1"),
    "botocore": ("1.40", "1"),
    "google-genai": ("1.75", "3"),
    "groq": ("1.0", "1"),
    "httpx": ("0.27", "0.28"),
    "httpx2": ("2.0", "2"),
    "litellm": ("1.80", "1"),
    "mistralai": ("1.0", "2"),
    "openai": ("1.109", "3"),
    "requests": ("2.31", "2"),
    "websockets": ("14.2", "17"),
}


def untested(library: str, version: str) -> str | None:
    """How *version* of *library* lies outside of what was tested; ``None`` when it lies inside, or nothing is known."""
    if library not in TESTED:
        return None
    oldest, newest = TESTED[library]
    number, last = _numbers(version), _numbers(newest)
    tested = f"tested are {oldest} to {newest}.x"
    if number < _numbers(oldest):
        return f"older than what was tested ({tested})"
    if number[: len(last)] > last:
        return f"newer than what was tested ({tested})"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    leading = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, leading[0].split("."))) if leading else ()
