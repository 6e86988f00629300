"""Every ``LLM_COST_*`` key: its default, how it is read, and what is refused.

Config is read once, in ``init_app``. Values may come from Python, or as strings from the environment
(``app.config.from_prefixed_env``): booleans are read strictly, lists may be comma-separated, and a whole list or mapping
may be JSON.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from flask_llm_cost.budgets.declaration import Budget, DeclarationError, parse_budgets
from flask_llm_cost.errors import ConfigError
from flask_llm_cost.records import TAG_KEY, TAG_KEY_RULE

PREFIX: Final = "LLM_COST_"

DefaultTags: TypeAlias = Mapping[str, Any] | Callable[[], Mapping[str, Any]]

#: What ``LLM_COST_INSTRUMENT`` may name: a client library, or an SDK, which stands for the client libraries it uses.
LIBRARIES: Final[Mapping[str, tuple[str, ...]]] = {
    "httpx": ("httpx",),
    "httpx2": ("httpx2",),
    "requests": ("requests",),
    "aiohttp": ("aiohttp",),
    "botocore": ("botocore",),
    "websockets": ("websockets",),
    "openai": ("httpx", "httpx2", "websockets"),
    "anthropic": ("httpx", "httpx2"),
    "google-genai": ("httpx", "httpx2", "aiohttp", "requests"),
    "groq": ("httpx", "httpx2"),
    "mistralai": ("httpx", "httpx2"),
    "litellm": ("httpx", "aiohttp"),
    "boto3": ("botocore",),
}

#: Names of tags whose values are never kept.
SECRET_NAMES: Final = (
    "access_token", "api_key", "apikey", "auth", "authorization", "client_secret", "cookie", "credential", "credentials",
    "passphrase", "passwd", "password", "private_key", "refresh_token", "secret", "session", "set-cookie", "token",
)  # fmt: skip

#: A hundred years: the calendar does not go back for ever.
MOST_DAYS: Final = 36_500

_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})


class _BadValueError(ValueError):
    """What is wrong with a value; becomes a :class:`ConfigError` that also names its key."""


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise _BadValueError("choose True or False (1, 0, yes, no, on, off)")


def _choice(*choices: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value in choices:
            return str(value)
        raise _BadValueError(f"choose one of {', '.join(map(repr, choices))}")

    return parse


def _from_json(value: Any, opening: str) -> Any:
    if isinstance(value, str) and value.lstrip().startswith(opening):
        try:
            return json.loads(value, parse_float=Decimal)
        except (ValueError, RecursionError) as error:
            raise _BadValueError(f"is no valid JSON ({error})") from None
    return value


def _list(value: Any) -> list[Any]:
    value = _from_json(value, "[")
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, Iterable) and not isinstance(value, Mapping):
        return list(value)
    raise _BadValueError("give a list, or one string with commas")


def _mapping(value: Any) -> Mapping[str, Any]:
    value = _from_json(value, "{")
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return value
    raise _BadValueError('give a dict with string keys; from the environment, one JSON object: {"key": "value"}')


def _strings(value: Any) -> Mapping[str, str]:
    mapping = _mapping(value)
    for key, item in mapping.items():
        if not isinstance(item, str) or not item or not key:
            raise _BadValueError(f"{key!r} must have a name as its value, not {item!r}")
    return dict(mapping)


def _host(value: Any) -> str:
    if isinstance(value, str) and "://" in value:
        raise _BadValueError(f"{value!r}: leave out the scheme; give host, host:port or host/prefix")
    if not isinstance(value, str) or not value or re.search(r"\s", value):
        raise _BadValueError(f"{value!r} is no host; give host, host:port or host/prefix")
    return value.lower().rstrip("/")


def _hosts(value: Any) -> Mapping[str, str]:
    return {_host(host): provider for host, provider in _strings(value).items()}


def _discounts(value: Any) -> Mapping[str, Decimal]:
    discounts = {}
    for provider, share in _mapping(value).items():
        discount = _decimal(share)
        if discount is None or not 0 <= discount < 1:
            raise _BadValueError(f"{provider!r}: a discount is a share from 0 up to 1, so '0.15' for 15%, not {share!r}")
        discounts[provider] = discount
    return discounts


def _decimal(value: Any) -> Decimal | None:
    """The number that *value* is; ``None`` where it is none."""
    # A float came from JSON or the environment: its shortest text is what the person wrote.
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return None
    return None if isinstance(value, bool) or not number.is_finite() else number


def _positive(value: Any) -> int:
    number = _decimal(value)
    if number is None or number != number.to_integral_value() or number < 1:
        raise _BadValueError("give a whole number of at least 1")
    return int(number)


def _days(value: Any) -> int:
    days = _positive(value)
    if days > MOST_DAYS:
        raise _BadValueError(f"give {MOST_DAYS:,} days at most")
    return days


def _optional(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None or value == "" else parse(value)


def _path(value: Any) -> Path:
    if isinstance(value, str | os.PathLike) and "\0" not in str(value):
        return Path(value)
    raise _BadValueError("give a path")


def _name(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise _BadValueError("give a name")


def _tag_key(value: Any) -> str:
    if not isinstance(value, str) or not TAG_KEY.fullmatch(value):
        raise _BadValueError(f"{value!r} is no tag key: {TAG_KEY_RULE}")
    return value


def _tag_keys(value: Any) -> tuple[str, ...]:
    return tuple(map(_tag_key, _list(value)))


def _names(value: Any) -> tuple[str, ...]:
    names = _list(value)
    for name in names:
        if not isinstance(name, str) or not name:
            raise _BadValueError(f"{name!r} is no name; give a list of texts, or one string with commas")
    return tuple(name.lower() for name in names)


def _rollup_tags(value: Any) -> Literal["auto"] | tuple[str, ...]:
    return "auto" if value == "auto" else _tag_keys(value)


def _instrument(value: Any) -> Literal["auto"] | tuple[str, ...]:
    if value == "auto":
        return "auto"
    names = _list(value)
    for name in names:
        if not isinstance(name, str) or name not in LIBRARIES:
            raise _BadValueError(f"{name!r} cannot be watched; choose 'auto', [] or some of {', '.join(LIBRARIES)}")
    return tuple(names)


def _stream_usage(value: Any) -> bool | tuple[str, ...]:
    if isinstance(value, bool) or str(value).strip().lower() in _TRUE | _FALSE:
        return _boolean(value)
    if not isinstance(value, Iterable) or isinstance(value, Mapping):
        raise _BadValueError("choose True or False, or give a list of hosts, or one string with commas")
    return tuple(map(_host, _list(value)))


def _default_tags(value: Any) -> DefaultTags:
    if callable(value):
        given: DefaultTags = value
        return given
    return {_tag_key(key): item for key, item in _mapping(value).items()}


def _zone(value: Any) -> ZoneInfo:
    if isinstance(value, ZoneInfo):
        return value
    try:
        return ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        near = difflib.get_close_matches(str(value), available_timezones(), 3)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise _BadValueError(f"give an IANA time zone such as 'Europe/Berlin'{hint}") from None


def _budgets(value: Any) -> tuple[Budget, ...]:
    if isinstance(value, Mapping) or (isinstance(value, str) and value.strip()[:1] not in ("", "[")):
        raise _BadValueError('give a list of dicts; from the environment, as JSON: [{"limit": "500", "period": "month"}]')
    try:
        return parse_budgets(_list(value))
    except DeclarationError as problem:
        raise _BadValueError(str(problem)) from None


def _key(default: Any, parse: Callable[[Any], Any]) -> Any:
    return field(metadata={"default": default, "parse": parse})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The configuration of one app, parsed and checked. Each attribute is the key of its name: ``LLM_COST_<NAME>``."""

    enabled: bool = _key(True, _boolean)
    instrument: Literal["auto"] | tuple[str, ...] = _key("auto", _instrument)
    model_aliases: Mapping[str, str] = _key({}, _strings)
    discounts: Mapping[str, Decimal] = _key({}, _discounts)
    hosts: Mapping[str, str] = _key({}, _hosts)
    stream_usage: bool | tuple[str, ...] = _key(True, _stream_usage)
    default_tags: DefaultTags = _key({}, _default_tags)
    redacted_tags: tuple[str, ...] = _key(SECRET_NAMES, _names)
    report_tags: tuple[str, ...] = _key(("feature", "tenant_id", "user_id"), _tag_keys)
    rollup_tags: Literal["auto"] | tuple[str, ...] = _key("auto", _rollup_tags)
    propagate_tags: bool = _key(False, _boolean)
    prices_file: Path | None = _key(None, _optional(_path))
    price_overrides: Mapping[str, Any] = _key({}, _mapping)
    unknown_price: str = _key("warn", _choice("warn", "ignore", "raise"))
    budgets: tuple[Budget, ...] = _key((), _budgets)
    default_max_output: int = _key(4096, _positive)
    write_mode: str = _key("background", _choice("background", "inline", "log"))
    spool_dir: Path | None = _key(None, _optional(_path))
    spool_max_mb: int = _key(256, _positive)
    write_errors: str = _key("warn", _choice("warn", "ignore", "raise"))
    bind_key: str | None = _key(None, _optional(_name))
    read_bind_key: str | None = _key(None, _optional(_name))
    timezone: ZoneInfo = _key("UTC", _zone)
    retention_days: int | None = _key(None, _optional(_days))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Config:
        """Read the ``LLM_COST_*`` keys of an app's configuration.

        ``LLM_COST_ENABLED`` in the process environment wins over the app's, so that all can be switched off without a
        deploy.

        :raises ConfigError: names the key, its value, and what would be right
        """
        values = {**values, **{key: os.environ[key] for key in (PREFIX + "ENABLED",) if key in os.environ}}
        parsed = {}
        for item in fields(cls):
            key = PREFIX + item.name.upper()
            value = values.get(key, item.metadata["default"])
            try:
                parsed[item.name] = item.metadata["parse"](value)
            except _BadValueError as problem:
                raise ConfigError(key, value, str(problem)) from None
        config = cls(**parsed)
        if config.write_errors == "raise" and config.write_mode != "inline":
            raise ConfigError(
                "LLM_COST_WRITE_ERRORS", "raise", f"works with LLM_COST_WRITE_MODE='inline' only, not {config.write_mode!r}"
            )
        if config.budgets and config.write_mode == "log":
            raise ConfigError(
                "LLM_COST_BUDGETS", values[PREFIX + "BUDGETS"], "LLM_COST_WRITE_MODE='log' keeps no ledger to count in"
            )
        return config

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Every key with its default, as it would be written in an app's configuration."""
        return {PREFIX + item.name.upper(): item.metadata["default"] for item in fields(cls)}


def unknown_keys(values: Mapping[str, Any]) -> Sequence[tuple[str, str | None]]:
    """The ``LLM_COST_*`` keys that mean nothing, each with the key that was probably meant."""
    # What all keys begin with makes any two of them alike, so only the rest is compared.
    known = [key.removeprefix(PREFIX) for key in Config.defaults()]
    found: list[tuple[str, str | None]] = []
    for key in values:
        if isinstance(key, str) and key.startswith(PREFIX) and key.removeprefix(PREFIX) not in known:
            near = difflib.get_close_matches(key.removeprefix(PREFIX), known, 1)
            found.append((key, PREFIX + near[0] if near else None))
    return found


def changed_keys(config: Config, values: Mapping[str, Any]) -> Sequence[str]:
    """The keys whose value in *values* is no longer the one that *config* was read from, or cannot be read any more."""
    changed = []
    for item in fields(Config):
        key = PREFIX + item.name.upper()
        if key == PREFIX + "ENABLED" and key in os.environ:
            continue
        try:
            now = item.metadata["parse"](values.get(key, item.metadata["default"]))
        except (_BadValueError, ConfigError):
            changed.append(key)
            continue
        if now != getattr(config, item.name):
            changed.append(key)
    return sorted(changed)
