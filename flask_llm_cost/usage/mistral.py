"""What only Mistral has: reading documents. Field names are from Mistral's API reference (``OCRUsageInfo``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask_llm_cost.records import Reading, Usage
from flask_llm_cost.usage.format import Format, block, count, numbers_only, text


class Ocr(Format):
    """``/ocr``: billed by the page."""

    name = "mistral.ocr"
    mark = b'"usage_info"'

    def fits(self, body: Mapping[str, Any]) -> bool:
        usage = body.get("usage_info")
        return isinstance(usage, Mapping) and "pages_processed" in usage

    def read(self, body: Mapping[str, Any]) -> Reading:
        if not self.fits(body):
            return self.name_of(body)
        usage = block(body, "usage_info")
        counted = Usage({"pages": count(usage, "pages_processed")}, "response", raw=numbers_only(usage))
        return Reading(counted, text(body, "model"), text(body, "id"))
