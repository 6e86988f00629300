"""What a request says of itself: which attempt it is, and which model it asks for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final

from flask_llm_cost.usage.format import form_field

_SMALL_REQUEST: Final = 4 * 1024
_REQUESTED_MODEL: Final = re.compile(rb'"model"\s*:\s*("(?:[^"\\]|\\.){1,512}")')


def attempt(headers: Mapping[str, str]) -> int:
    """Which attempt of the same SDK call this is. The SDKs of OpenAI and Anthropic number their retries from 0."""
    retries = headers.get("x-stainless-retry-count", "")
    return int(retries) + 1 if retries.isdigit() and len(retries) < 4 else 1


def length(headers: Mapping[str, str]) -> int:
    """Bytes of the body, as far as the request says so; else 0."""
    said = headers.get("content-length", "")
    return int(said) if said.isdigit() and len(said) < 12 else 0


def requested_model(content: bytes | None) -> str | None:
    """The model that a request asks for, in JSON or as a form. Long prompts are searched rather than parsed, unless that is
    ambiguous."""
    if not content:
        return None
    if content[:2] == b"--":
        return form_field(content, "model")
    if len(content) > _SMALL_REQUEST:
        found = _REQUESTED_MODEL.findall(content)
        if len(found) == 1:
            return _text(json.loads(found[0]))
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return _text(body.get("model")) if isinstance(body, dict) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
