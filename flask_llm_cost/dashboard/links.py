"""Links between the dashboard's pages, always within the mount that the request came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flask import url_for


@dataclass(frozen=True, slots=True)
class Links:
    """``links("calls", params)``: the address of a page with its query string. Values are quoted, never trusted."""

    blueprint: str

    def __call__(self, page: str, params: Mapping[str, Any] = {}, **values: Any) -> str:
        return url_for(f"{self.blueprint}.{page}", **values, **params)
