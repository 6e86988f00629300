"""What the host of a call says about its price: Azure's resource, Bedrock's and Vertex's region."""

from __future__ import annotations

import re
from typing import Final

from flask_llm_cost.records import CallRecord

_AZURE: Final = re.compile(
    r"([a-z0-9-]{1,64})\.(?:(?:openai|cognitiveservices)\.azure\.(?:com|us)|services\.ai\.azure\.com)(?::\d+)?", re.ASCII
)
_BEDROCK: Final = re.compile(
    r"(?:vpce-[a-z0-9-]{1,64}\.)?bedrock(?:-runtime|-mantle)?(?:-fips)?\.([a-z0-9-]{1,32})\."
    r"(?:(?:vpce\.)?amazonaws\.com|api\.aws)(?::\d+)?",
    re.ASCII,
)
_VERTEX: Final = re.compile(
    r"(?:([a-z0-9-]{1,32})-)?aiplatform(?:\.mtls)?\.googleapis\.com(?::\d+)?|aiplatform\.([a-z0-9-]{1,32})\.rep\.googleapis\.com",
    re.ASCII,
)


def reading(record: CallRecord) -> tuple[str | None, tuple[tuple[str, str], ...], str | None]:
    """``(mode, further names to look up in the configured aliases, zone to look for in the book's keys)``."""
    mode, host = record.pricing_mode, record.host.lower()
    requested = record.requested_model
    names: tuple[tuple[str, str], ...] = ()
    zone = None
    if requested and requested != record.model and len(requested) <= 256:
        names = ((record.provider, requested),)
    if record.provider == "azure" and (match := _AZURE.fullmatch(host)):
        deployments = dict.fromkeys((requested, record.price_model))
        resource = tuple(("azure", f"{match[1]}/{name}") for name in deployments if name and len(name) <= 256)
        names = (*resource, *names)
        zone = "us-gov" if ".azure.us" in host else None
    elif record.provider == "bedrock" and (match := _BEDROCK.fullmatch(host)):
        zone = match[1]
    elif record.provider == "vertex" and (match := _VERTEX.fullmatch(host)) and "residency:" not in (mode or ""):
        region = match[1] or match[2]
        if region and region not in ("global", "mtls"):
            mode = f"{mode}+residency:{region}" if mode else f"residency:{region}"
    return mode, names, zone
