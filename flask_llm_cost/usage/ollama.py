"""Ollama's own formats. Field names are from Ollama's API documentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask_llm_cost.records import Reading, Usage
from flask_llm_cost.usage.format import Format, count, counted_or_zero, in_stream, text


class Generate(Format):
    """``/api/chat``, ``/api/generate`` and ``/api/embed``. A stream's last line, with ``"done": true``, has the counts."""

    name = "ollama"
    mark = b'"model"'
    also_kept = (b'"eval_count"', b'"prompt_eval_count"')

    def fits(self, body: Mapping[str, Any]) -> bool:
        return "eval_count" in body or "prompt_eval_count" in body or ("total_duration" in body and "model" in body)

    def read(self, body: Mapping[str, Any]) -> Reading:
        model = text(body, "model")
        if "eval_count" not in body and "prompt_eval_count" not in body:
            return Reading(model=model)
        spent, output = count(body, "prompt_eval_count"), count(body, "eval_count")
        raw = {name: body[name] for name in ("prompt_eval_count", "eval_count") if name in body}
        return Reading(Usage(counted_or_zero(input=spent, output=output), "response", raw=raw), model)

    def read_stream(self, events: Any, ended: bool) -> Reading:
        body = self.last_body(events)
        if body is None:
            return self.name_of(events[0] if events else {})
        return in_stream(self.read(body), ended or body.get("done") is True)

    def name_of(self, body: Mapping[str, Any]) -> Reading:
        return Reading(model=text(body, "model"))
