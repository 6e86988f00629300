"""The operator's price file, read to be changed, and written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from flask_llm_cost.errors import PriceBookError
from flask_llm_cost.pricing.catalog import MODELS_LINE, SCHEMA, Catalog, digest, is_checked, read_table
from flask_llm_cost.pricing.rates import plain

#: The file that is used where ``LLM_COST_PRICES_FILE`` names none, in the instance folder.
DEFAULT_NAME: Final = "llm_cost_prices.json"

_HEADER_ORDER: Final = ("schema", "currency", "version", "source", "sources", "generated_from", "synced", "aliases", "tools")
_ENTRY_ORDER: Final = (
    "inherit",
    "currency",
    "rates",
    "per",
    "minimum",
    "modes",
    "tiers",
    "windows",
    "multipliers",
    "tools",
    "reasoning_model",
    "max_output",
    "history",
    "scheduled",
    "aliases",
)


@dataclass
class PriceFile:
    """One price file.

    :param header: its fields but for ``models``
    :param models: entries as they are written
    :param read: what was in the file, ``None`` where there is none
    :param as_written: nobody has touched it since we wrote it
    """

    path: Path
    header: dict[str, Any] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    read: bytes | None = None
    as_written: bool = False

    @classmethod
    def load(cls, path: Path) -> PriceFile:
        """Read *path*; an empty one where it does not exist.

        :raises PriceBookError: it cannot be read as a price file
        """
        if path.suffix.lower() in (".yaml", ".yml"):
            raise PriceBookError(path.name, "price files are JSON or TOML; rename and rewrite it")
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return cls(path)
        except OSError as error:
            raise PriceBookError(path.name, f"cannot be read ({error.strerror})") from None
        table = dict(read_table(path, data))
        raw = table.pop("models", {})
        # What is wrong in it is said now, before anything is built on it.
        checked = is_checked(table, data)
        Catalog("file", path.name, table, raw, "").check(known_good=checked)
        return cls(path, table, {key: dict(entry) for key, entry in raw.items()}, data, checked)

    def text(self) -> str:
        """The file as it is written: one entry a line, in one order, rates as texts."""
        header = {"schema": SCHEMA, **self.header}
        header.pop("checked", None)
        ordered = {name: header[name] for name in sorted(header, key=_rank(_HEADER_ORDER))}
        entries = {key: _ordered(self.models[key]) for key in sorted(self.models)}
        if self.path.suffix == ".toml":
            return _leading_comments(self.read) + "".join(_toml(ordered, entries))
        rows = [f"{json.dumps(key)}: {_json(entry)}" for key, entry in entries.items()]
        models = MODELS_LINE.decode() + ",\n".join(rows) + ("\n" if rows else "") + "}\n}\n"
        lines = [f"{json.dumps(name)}: {_header_json(name, value)}," for name, value in ordered.items()]
        lines.append(f'"checked": {json.dumps(digest(models.encode()))},')
        return "{\n" + "\n".join(lines) + models

    def save(self) -> None:
        """Write it, through a temporary file beside it, so that a reader sees the old one or the new one.

        :raises PriceBookError: somebody else has changed it since it was read, or it cannot be written
        """
        target = Path(os.path.realpath(self.path))
        data = self.text().encode("utf-8")
        Catalog("file", self.path.name, read_table(self.path, data), self.models, "").check()
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            mode = target.stat().st_mode & 0o777 if target.exists() else 0o644
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if (target.read_bytes() if target.exists() else None) != self.read:
                raise PriceBookError(self.path.name, "was changed by somebody else meanwhile; run the command again")
            os.replace(temporary, target)
        except OSError as error:
            raise PriceBookError(
                self.path.name,
                f"cannot be written ({error.strerror}); where the file system is read-only, run this in a checkout "
                "and ship the file with the app",
            ) from None
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        self.read = data


def _rank(order: tuple[str, ...]) -> Any:
    return lambda name: (order.index(name) if name in order else len(order), name)


def _ordered(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in sorted(entry, key=_rank(_ENTRY_ORDER))}


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return plain(value)
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(type(value).__name__)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, default=_plain)


def _header_json(name: str, value: Any) -> str:
    if name in ("aliases", "tools") and isinstance(value, Mapping) and value:
        return "{\n" + ",\n".join(f"{json.dumps(key)}: {_json(value[key])}" for key in sorted(value)) + "\n}"
    return _json(value)


def _leading_comments(data: bytes | None) -> str:
    """The comments at the top of a TOML file. Others cannot be kept."""
    kept = []
    for line in (data or b"").decode("utf-8", "replace").splitlines():
        if line.strip() and not line.startswith("#"):
            break
        kept.append(line)
    return "".join(f"{line}\n" for line in kept)


def _toml(header: Mapping[str, Any], entries: Mapping[str, Any]) -> Iterable[str]:
    for name, value in header.items():
        if not isinstance(value, Mapping):
            yield f"{name} = {_toml_value(value)}\n"
    for name, value in header.items():
        if isinstance(value, Mapping) and value:
            yield f"\n[{name}]\n"
            yield from (f"{_toml_text(key)} = {_toml_value(value[key])}\n" for key in sorted(value))
    for key, entry in entries.items():
        yield f"\n[models.{_toml_text(key)}]\n"
        yield from (f"{name} = {_toml_value(value)}\n" for name, value in entry.items())


def _toml_value(value: Any) -> str:
    if value is None or value is False:
        return "false"  # the null of modes that are not offered, which TOML does not have
    if value is True:
        return "true"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_text(name)} = {_toml_value(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return _toml_text(value if isinstance(value, str) else _plain(value))


def _toml_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
