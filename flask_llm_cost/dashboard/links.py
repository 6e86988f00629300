"""Links between the dashboard's pages, always within the mount that the request came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlencode
from uuid import UUID

from flask import url_for
from werkzeug.datastructures import iter_multi_items

_NO_VALUES: Final[Mapping[str, Any]] = MappingProxyType({})
#: What a query string may have as it is, besides letters and digits.
_SAFE: Final = "!$'()*,/:;?@"


@dataclass(frozen=True, slots=True)
class Links:
    """``links("calls", params)``: the address of a page with its query string. Values are quoted, never trusted.

    :param mount: the values of the variables in the prefix or the subdomain under which the request came
    """

    blueprint: str
    mount: Mapping[str, Any] = field(default_factory=lambda: _NO_VALUES)
    _paths: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __call__(
        self, page: str, params: Mapping[str, Any] = _NO_VALUES, *, call_id: UUID | None = None, key: str | None = None
    ) -> str:
        path = self._path(page, call_id=call_id, key=key) if call_id or key else self._paths.get(page)
        if path is None:
            path = self._paths[page] = self._path(page)
        asked = [(name, value) for name, value in iter_multi_items(dict(params)) if value is not None]
        return f"{path}?{urlencode(asked, safe=_SAFE)}" if asked else path

    def _path(self, page: str, **own: Any) -> str:
        # Whatever the app's url_defaults put behind it is none of the dashboard's parameters.
        return url_for(f"{self.blueprint}.{page}", **{**self.mount, **own}).partition("?")[0]
