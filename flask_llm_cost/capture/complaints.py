"""What the log says of a reply whose usage stays unknown, and what to do about it. Nothing of the reply's content."""

from __future__ import annotations

from flask_llm_cost.records import Reading
from flask_llm_cost.usage import Route


def complaint(route: Route, host: str, streamed: bool, reading: Reading, whole: bool) -> tuple[str, *tuple[str, ...]] | None:
    """A message for the log and its arguments; ``None`` where there is nothing to complain about.

    :param whole: whether the reply came to its end: of one that did not, nothing else was to be expected
    """
    if reading.malformed:
        return (
            "%s sent a usage block in which the field %r is no count; the call's usage stays unknown",
            route.provider,
            reading.malformed,
        )
    if not whole or reading.usage.known or reading.usage.source == "pending":
        return None
    if streamed and route.format.takes_stream_options:
        return (
            "a stream of %s ended without usage: set stream_options={'include_usage': True} on the call%s",
            route.provider,
            "" if route.takes_stream_options else f", or add the host {host} to LLM_COST_STREAM_USAGE",
        )
    return "a reply of %s (%s) had no usage: its cost stays unknown", route.provider, route.operation
