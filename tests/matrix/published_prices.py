"""What a played exchange costs by the providers' pages, reckoned without this package: the second opinion on its prices."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

#: Dollars per million, as the providers' pages said in November 2026.
RATES: Final[Mapping[tuple[str, str], Mapping[str, str]]] = {
    ("openai", "gpt-4o"): {"input": "2.50", "output": "10"},
    ("openai", "gpt-4o-mini"): {"input": "0.15", "output": "0.60"},
    ("openai", "gpt-5.1"): {"input": "1.25", "output": "10"},
    ("openai", "gpt-3.5-turbo-instruct"): {"input": "1.50", "output": "2"},
    ("openai", "text-embedding-3-small"): {"input": "0.02"},
    ("openai", "text-embedding-3-large"): {"input": "0.13"},
    ("openai", "gpt-image-1"): {"input": "5", "output": "40"},
    ("openai", "gpt-4o-transcribe"): {"input": "6", "output": "10"},  # sound in, text out
    ("openai", "whisper-1"): {"audio_seconds": "100"},  # $0.006 a minute
    ("openai", "tts-1"): {"characters": "15"},
    ("azure", "gpt-4o"): {"input": "2.50", "output": "10"},
    ("azure", "gpt-4o-mini"): {"input": "0.15", "output": "0.60"},
    ("azure", "text-embedding-3-small"): {"input": "0.022"},
    ("azure", "claude-sonnet-4-6"): {"input": "3", "output": "15"},
    ("anthropic", "claude-sonnet-4-6"): {"input": "3", "output": "15"},
    ("bedrock", "claude-sonnet-4-6"): {"input": "3.30", "output": "16.50"},  # no "global." model: a tenth more
    ("vertex", "claude-sonnet-4-6"): {"input": "3", "output": "15"},  # the played address is no region's
    ("gemini", "gemini-2.5-flash"): {"input": "0.30", "output": "2.50"},
    ("gemini", "gemini-embedding-001"): {"input": "0.15"},
    ("mistral", "mistral-small-latest"): {"input": "0.15", "output": "0.60"},
    ("mistral", "mistral-embed"): {"input": "0.10"},
    ("groq", "llama-3.3-70b-versatile"): {"input": "0.59", "output": "0.79"},
}
#: Requests that name their model in a form, not in JSON.
IN_A_FORM: Final = {"/images/edits": "gpt-image-1", "/audio/transcriptions": "gpt-4o-transcribe"}


def dollars(path: str, model: str, counted: Mapping[str, Any]) -> str:
    """
    :param path: as requested, its first part the provider
    :param model: as served; may be empty
    :param counted: quantities by component
    """
    provider = path.split("/")[1]
    in_path = re.search(r"/models?/(?:anthropic\.)?([^/:]+)", path)
    name = in_path[1] if in_path else model or next(IN_A_FORM[end] for end in IN_A_FORM if path.endswith(end))
    if "audio_seconds" in counted:
        name = "whisper-1"
    rates = RATES[provider, re.sub(r"-20\d\d-\d\d-\d\d$", "", name)]
    cost = sum(Decimal(rates.get(part, "0")) * Decimal(str(count)) / 1_000_000 for part, count in counted.items())
    return f"{cost:.12f}"
