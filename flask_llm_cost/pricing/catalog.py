"""One source of prices: the bundled snapshot, a file of the operator's, or the overrides in the configuration."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any, Final

from flask_llm_cost.errors import PriceBookError
from flask_llm_cost.pricing.entries import AliasName, Entry, ToolRate, parse_alias, parse_entry, parse_tools
from flask_llm_cost.pricing.rates import Place, items, known_names, mapping

SCHEMA: Final = 1
_FIELDS: Final = (
    "schema",
    "currency",
    "version",
    "source",
    "sources",
    "generated_from",
    "synced",
    "checked",
    "models",
    "aliases",
    "tools",
)
#: Where the models of a file begin that we wrote; ``checked`` is a hash of all from there.
MODELS_LINE: Final = b'\n"models": {\n'
_MODELS: Final = '"models":{'


class Catalog:
    """Entries by key, converted when they are first asked for.

    :param name: ``overrides``, ``file`` or ``bundled``
    :param origin: the file, or the configuration key; what an error names
    """

    def __init__(self, name: str, origin: str, header: Mapping[str, Any], models: Mapping[str, Any], version: str) -> None:
        self.name = name
        self.origin = origin
        self.version = version
        self._raw = models
        self._entries: dict[str, Entry] = {}
        place = Place(origin)
        currency = header.get("currency", "USD")
        if not isinstance(currency, str) or len(currency) != 3 or not currency.isupper():
            raise place.at("currency").error(currency, 'write a three-letter code, such as "USD"')
        self.currency = currency
        #: Where an entry comes from that does not say: by provider, else for all.
        self._source = _source(header.get("source", {}), place.at("source"))
        sources = mapping(header.get("sources", {}), place.at("sources"))
        self._sources = {provider: _source(raw, place.at("sources")) for provider, raw in sources.items()}
        listed = (_source(raw, place.at("generated_from")) for _, raw in items(header.get("generated_from", ()), place))
        self._versions = dict(listed)
        synced = header.get("synced")
        #: The edition of the bundled book that a file was last brought up to date with.
        self.book = str(synced.get("book", "")) if isinstance(synced, Mapping) else ""
        #: The day of which its prices are, where it says so.
        self.dated = _day(synced.get("at") if isinstance(synced, Mapping) else version if name == "bundled" else None)
        self._tools_raw = mapping(header.get("tools", {}), place.at("tools"))
        self._tools: dict[str, Mapping[str, ToolRate]] = {}
        #: ``provider/other name`` to the keys that it stood for, and when.
        self._aliases: dict[str, Any] = dict(mapping(header.get("aliases", {}), place.at("aliases")))
        self._by_model: dict[str, list[str]] | None = None

    def __len__(self) -> int:
        return len(self._raw)

    def __contains__(self, key: str) -> bool:
        return key in self._raw

    @property
    def keys(self) -> Iterable[str]:
        return self._raw.keys()

    @property
    def inheriting(self) -> list[str]:
        """The keys of the entries that say ``"inherit": true``."""
        return [key for key, raw in self._raw.items() if isinstance(raw, Mapping) and raw.get("inherit")]

    @property
    def aliases(self) -> Mapping[str, Any]:
        """Other names to keys, as they are written."""
        return self._aliases

    @property
    def fees(self) -> Mapping[str, Any]:
        """Provider to fees of its tools, as they are written."""
        return self._tools_raw

    def raw(self, key: str) -> dict[str, Any]:
        """The entry of *key* as it is written."""
        found = self._raw[key]
        return dict(json.loads(found) if isinstance(found, str) else found)

    def entry(self, key: str) -> Entry | None:
        """The entry of *key*, exactly.

        :raises PriceBookError: it cannot be read
        """
        found = self._entries.get(key)
        if found is None and (raw := self._raw.get(key)) is not None:
            if isinstance(raw, str) and self.name == "bundled":
                raw = json.loads(raw)
            source, version = self._sources.get(key.partition("/")[0], self._source)
            if isinstance(raw, Mapping) and (own := raw.get("_source")):
                source, version = str(own), self._versions.get(str(own), "")
            found = self._entries[key] = parse_entry(
                key, raw, Place(self.origin), currency=self.currency, source=source or "manual", version=version
            )
        return found

    def complete(self, entry: Entry) -> None:
        """Put an entry that inherits in place of its unfinished self."""
        self._entries[entry.key] = entry

    def alias(self, name: str, at: datetime) -> str | None:
        """The key that *name*, ``provider/model``, stood for at that time."""
        for target, alias in self._alias_targets(name):
            if alias.active(at):
                return target
        return None

    def alias_bounds(self, name: str) -> Iterator[datetime]:
        """When *name* moved from one key to another."""
        for _, alias in self._alias_targets(name):
            if alias.starts is not None:
                yield alias.starts
            if alias.ends is not None:
                yield alias.ends

    def _alias_targets(self, name: str) -> Iterable[tuple[str, AliasName]]:
        raw = self._aliases.get(name)
        if raw is None:
            return ()
        if isinstance(raw, str):
            return ((raw, AliasName(name)),)
        place = Place(self.origin, name, "aliases")
        found = []
        for i, item in items(raw, place):
            if isinstance(item, tuple):
                found.append(item)
                continue
            table = mapping(item, place.at(f"[{i}]"))
            target = table.get("key")
            if not isinstance(target, str):
                raise place.at("key").error(target, 'write the key that it stands for, "provider/model"')
            rest = {field: value for field, value in table.items() if field != "key"}
            found.append((target, parse_alias({"name": name, **rest}, place.at(f"[{i}]"))))
        self._aliases[name] = found
        return found

    def tools(self, provider: str) -> Mapping[str, ToolRate]:
        """What the provider takes for its own tools, whatever the model."""
        found = self._tools.get(provider)
        if found is None:
            raw = self._tools_raw.get(provider)
            found = {} if raw is None else parse_tools(raw, Place(self.origin, provider, "tools"), self.currency)
            if raw is not None:
                self._tools[provider] = found
        return found

    def providers_of(self, model: str) -> list[str]:
        """The keys of every provider that has this very model name."""
        if self._by_model is None:
            by_model: dict[str, list[str]] = {}
            for key in self._raw:
                by_model.setdefault(key.partition("/")[2], []).append(key)
            self._by_model = by_model
        return self._by_model.get(model, [])

    def check(self, *, known_good: bool = False) -> None:
        """Convert everything now, so that what is wrong is said at start-up.

        :param known_good: it was checked when it was written: only what names other names is looked at
        :raises PriceBookError: naming entry, field and value
        """
        for key, raw in self._raw.items():
            if known_good and isinstance(raw, Mapping) and "aliases" not in raw:
                continue
            entry = self.entry(key)
            provider = key.partition("/")[0]
            for alias in entry.aliases if entry else ():
                self._add_alias(f"{provider}/{alias.name}", key, alias)
        for name in tuple(self._aliases):
            for target, _ in self._alias_targets(name):
                if target not in self._raw and self.name == "bundled":
                    raise Place(self.origin, name, "aliases").error(target, "there is no such entry")
        for provider in self._tools_raw:
            self.tools(provider)

    def _add_alias(self, name: str, key: str, alias: AliasName) -> None:
        existing = list(self._alias_targets(name))
        for target, other in existing:
            undated = other.starts is None and other.ends is None and alias.starts is None and alias.ends is None
            if target != key and undated:
                raise Place(self.origin, key, "aliases").error(
                    alias.name, f"{target!r} has this alias too; keep one, or date them"
                )
        self._aliases[name] = [*existing, (key, alias)]


def _day(text: Any) -> date | None:
    try:
        return date.fromisoformat(str(text)[:10])
    except ValueError:
        return None


def _source(value: Any, place: Place) -> tuple[str, str]:
    table = mapping(value, place)
    return str(table.get("source", "")), str(table.get("version", ""))


def bundled() -> Catalog:
    """The snapshot that ships with the package: one entry a line, each read when it is first asked for."""
    lines = resources.files("flask_llm_cost.pricing").joinpath("snapshot.json").read_text("utf-8").split("\n")
    first = lines.index(_MODELS) + 1
    last = lines.index("},", first)
    header = json.loads("".join((*lines[: first - 1], *lines[last + 1 :])), parse_float=Decimal)
    models: dict[str, str] = {}
    for line in lines[first:last]:
        end = line.index('":')
        models[line[1:end]] = line[end + 2 : -1] if line[-1] == "," else line[end + 2 :]
    return Catalog("bundled", "snapshot.json", header, models, str(header["version"]))


def from_file(path: Path) -> Catalog:
    """A price file of the operator's: JSON, or TOML where its name ends so.

    :raises PriceBookError: it cannot be read as one
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        start = "an empty file" if path.suffix == ".toml" else "{} in a file"
        raise PriceBookError(
            str(path),
            f"does not exist; correct LLM_COST_PRICES_FILE, or start with {start} and 'flask llm-cost prices init'",
        ) from None
    except OSError as error:
        raise PriceBookError(path.name, f"cannot be read ({error.strerror}); correct LLM_COST_PRICES_FILE") from None
    header = read_table(path, data)
    version = str(header.get("version") or f"sha256:{hashlib.sha256(data).hexdigest()[:12]}")[:32]
    catalog = Catalog("file", path.name, header, header.get("models", {}), version)
    catalog.check(known_good=is_checked(header, data))
    return catalog


def read_table(path: Path, data: bytes) -> Mapping[str, Any]:
    """The table that *data*, what is in the price file *path*, stands for.

    :raises PriceBookError: it is none
    """
    try:
        if path.suffix == ".toml":
            table = tomllib.loads(data.decode("utf-8"), parse_float=Decimal)
        else:
            table = json.loads(data, parse_float=Decimal, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        kind = "TOML" if path.suffix == ".toml" else "JSON"
        found = re.search(r"line (\d+),? column (\d+)", str(error))
        where = f"line {found[1]}, column {found[2]}" if found else type(error).__name__
        remedy = "repair it there, or put {} into it and run 'flask llm-cost prices init'"
        if path.suffix == ".toml":
            remedy = "repair it there, or empty it and run 'flask llm-cost prices init'"
        raise PriceBookError(path.name, f"is no valid {kind} ({where}); {remedy}") from None
    place = Place(path.name)
    header = mapping(table, place)
    known_names(header, _FIELDS, place, what="field")
    if header.get("schema", SCHEMA) != SCHEMA:
        raise place.at("schema").error(header["schema"], f"this version reads schema {SCHEMA}")
    mapping(header.get("models", {}), place.at("models"))
    return header


def is_checked(header: Mapping[str, Any], data: bytes) -> bool:
    """Whether the models of a file are as we wrote them, and so need not be checked again at every start."""
    start = data.find(MODELS_LINE)
    return start > 0 and header.get("checked") == digest(data[start:])


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def from_overrides(overrides: Mapping[str, Any]) -> Catalog:
    """``LLM_COST_PRICE_OVERRIDES``: keys to entries, and ``tools`` or ``aliases`` as in a file.

    :raises PriceBookError: naming entry, field, value and what would be right
    """
    origin = "LLM_COST_PRICE_OVERRIDES"
    table = mapping(overrides, Place(origin))
    header = {name: table[name] for name in ("tools", "aliases", "currency") if name in table}
    models = {key: raw for key, raw in table.items() if key not in header}
    for key in models:
        if "*" in key:
            raise Place(origin, key).error(
                key, "a price is one model's: give each its entry; LLM_COST_MODEL_ALIASES takes a *"
            )
    text = json.dumps(table, sort_keys=True, default=str)
    catalog = Catalog("overrides", origin, header, models, f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:12]}")
    catalog.check()
    return catalog


def _no_constant(name: str) -> None:
    raise ValueError(name)
