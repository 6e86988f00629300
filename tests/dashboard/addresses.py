"""Every page of a dashboard, with the questions that make it show something else."""

from __future__ import annotations

PAGES = {
    "overview": "/",
    "overview by tenant": "/?range=90d&by=tag:tenant_id",
    "explore": "/explore",
    "explore by user and model": "/explore?range=90d&rows=tag:user_id&cols=model&invoice=openai:20",
    "explore without columns": "/explore?range=30d&rows=model&cols=none",
    "models": "/models?range=30d",
    "calls": "/calls?range=90d&sort=dearest",
    "tags": "/tags?range=30d",
    "values of a tag": "/tags/tenant_id?range=30d",
    "a value of a tag": "/tags/feature?range=30d&value=chat",
    "budgets": "/budgets",
    "quality": "/data-quality?range=90d",
    "pricing": "/pricing",
    "pricing searched": "/pricing?search=gpt-4o-mini",
}
#: What a browser opens: those, and some that take data of their own.
NAMES = [
    *PAGES, "overview in weeks", "overview filtered", "scoped", "scoped quality", "calls filtered", "call", "first run",
    "empty", "not understood",
]  # fmt: skip
FORMATS = ("html", "json", "csv")


def in_format(address: str, fmt: str) -> str:
    return f"{address}{'&' if '?' in address else '?'}format={fmt}"
