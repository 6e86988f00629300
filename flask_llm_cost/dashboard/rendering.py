"""Templates, in an environment of our own: the host's context processors, filters and settings change nothing here."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from importlib import resources
from typing import Any, Final

import jinja2
from markupsafe import Markup, escape

from flask_llm_cost.dashboard import formatting
from flask_llm_cost.dashboard.breakdown import dimension_name, value_name
from flask_llm_cost.dashboard.forecast import ANOMALY_RULE, FORECAST_RULE
from flask_llm_cost.dashboard.movers import KINDS
from flask_llm_cost.dashboard.periods import RANGES
from flask_llm_cost.dashboard.sums import PER_CALL

_environment = jinja2.Environment(
    loader=jinja2.PackageLoader("flask_llm_cost.dashboard", "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.globals.update(
    fmt=formatting,
    dimension_name=dimension_name,
    value_name=value_name,
    kinds=KINDS,
    per_call=PER_CALL,
    derived_rule="no rate of its own is listed: that of plain input or output stands in",
    ranges=RANGES,
    forecast_rule=FORECAST_RULE,
    anomaly_rule=ANOMALY_RULE,
)


#: Where a name may be broken: after what parts its words, save a version's point, and in a word too long for a phone.
_BREAK: Final = re.compile(r"(?<=[_\-–/:@])(?=[^\s_\-./:@])|(?<=\.)(?=[^\s\d_\-./:@])|(?<=[^\s_\-./:@]{14})(?=[^\s_\-./:@])")


def breakable(name: object) -> Markup:
    """A name that a narrow column breaks between its words, and not where it happens to end."""
    return Markup("<wbr>").join(escape(part) for part in _BREAK.split(str(name)))


_environment.filters["breakable"] = breakable


def render(template: str, **values: Any) -> str:
    return _environment.get_template(f"llm_cost/{template}").render(**values)


@lru_cache(maxsize=3)
def asset(name: str) -> tuple[bytes, str]:
    """The stylesheet, the script or the icon, and a mark that changes with it, so that a browser never keeps an old one."""
    content = resources.files("flask_llm_cost.dashboard").joinpath("static", name).read_bytes()
    return content, hashlib.sha256(content).hexdigest()[:12]
