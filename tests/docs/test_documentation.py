"""What there is is documented, and what is documented is there."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import click
import pytest
from flask import Flask
from pages import DOCS, ROOT, code_blocks, entries, page, pages, sections

import flask_llm_cost
from flask_llm_cost import LlmCostError, LlmCostTracker, budgets, dashboard_blueprint, errors, ledger, signals, testing
from flask_llm_cost.cli import cli
from flask_llm_cost.config import LIBRARIES, PREFIX, Config
from flask_llm_cost.doctor import GROUPS
from flask_llm_cost.ledger import spend
from flask_llm_cost.ledger.models import Base
from flask_llm_cost.records import COMPONENTS
from flask_llm_cost.usage import _HOSTS, _PATHS

AUTODOC = ("autoclass", "autofunction", "autodata", "automethod", "autoexception", "data")


def api_names() -> set[str]:
    """The last part of every name on the API page."""
    return {name.strip().rpartition(".")[2] for directive in AUTODOC for name in entries(page("api"), directive)}


def commands() -> dict[str, click.Command]:
    """Every command that does something, by what a person types."""

    def walk(name: str, command: click.Command) -> dict[str, click.Command]:
        if not isinstance(command, click.Group):
            return {name: command}
        found: dict[str, click.Command] = {name: command} if command.invoke_without_command else {}
        for part, inner in command.commands.items():
            found |= walk(f"{name} {part}", inner)
        return found

    return walk("flask llm-cost", cli)


def documented_commands() -> dict[str, str]:
    return {heading.strip("`"): body for heading, body in sections(page("cli")) if heading.startswith("``flask llm-cost")}


def test_every_configuration_key_has_an_entry() -> None:
    """configuration.rst has one entry for each LLM_COST_ key, and none for a key that is gone."""
    assert sorted(entries(page("configuration"), "confval")) == sorted(Config.defaults())


@pytest.mark.parametrize("key", sorted(Config.defaults()))
def test_the_default_of_a_key_is_the_one_in_the_code(key: str) -> None:
    """Each entry names the default that applies."""
    entry = re.search(rf"\.\. confval:: {key}\n((?:   .*\n)+)", page("configuration"))
    assert entry is not None
    written = re.search(r":default: ((?:.*\n)(?:      .*\n)*)", entry[1])
    assert written is not None
    default: Any = Config.defaults()[key]
    if key == "LLM_COST_REDACTED_TAGS":
        assert re.findall(r"``(.+?)``", written[1]) == list(default)
    elif isinstance(default, tuple) and not default:
        assert written[1].strip() == "``[]``"
    else:
        first = re.match(r"``(.+?)``", written[1])
        assert first is not None
        assert first[1] == repr(default).replace("'", '"')


def test_no_page_names_a_key_that_does_not_exist() -> None:
    """Every LLM_COST_ word on any page, and in the README, is a key."""
    known = {*Config.defaults(), PREFIX}
    for name, text in {**pages(), "README.rst": page("README.rst")}.items():
        words = set(re.findall(r"(?<![A-Z_])LLM_COST_[A-Z_]*", text))
        assert words <= known, name


def test_every_command_has_a_section() -> None:
    """cli.rst has one section for each command, and none for a command that is gone."""
    assert sorted(documented_commands()) == sorted(commands())


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_option_has_an_entry(name: str) -> None:
    """The section of a command has one entry for each of its options, with its choices, and none besides."""
    text = documented_commands()[name]
    assert f".. program:: {name}" in text
    options = {option.opts[0]: option for option in commands()[name].params if isinstance(option, click.Option)}
    documented = dict(entry.partition(" ")[::2] for entry in entries(text, "option"))
    assert sorted(documented) == sorted(options)
    for flag, option in options.items():
        if isinstance(option.type, click.Choice):
            assert documented[flag] == f"[{'|'.join(option.type.choices)}]"
        if option.default not in (None, ()) and isinstance(option.default, int | float | str):
            entry = text.partition(f".. option:: {flag}")[2].partition(".. option::")[0]
            assert re.search(rf"``{option.default}`` \(the default\)|default is {option.default}\b", entry), flag


def test_no_page_names_a_command_that_does_not_exist() -> None:
    """Every "flask llm-cost ..." on any page, and in the README, begins with a command or a group of them."""
    known = {word for name in commands() for word in [name.removeprefix("flask llm-cost ").split()[0]]}
    for name, text in {**pages(), "README.rst": page("README.rst")}.items():
        assert set(re.findall(r"flask llm-cost ([a-z][a-z-]*)", text)) <= known, name


@pytest.mark.parametrize("name", flask_llm_cost.__all__)
def test_every_public_name_is_on_the_api_page(name: str) -> None:
    """What ``flask_llm_cost`` exports has an entry in api.rst."""
    assert name in api_names()


def test_public_names_of_the_rooms_are_on_the_api_page() -> None:
    """So has what ``flask_llm_cost.ledger``, ``.ledger.spend``, ``.signals`` and ``.testing`` offer."""
    questions = {name for name, value in vars(spend).items() if callable(value) and value.__module__ == spend.__name__}
    public = {name for name in questions if not name.startswith("_")}
    sent = {name for name in vars(signals) if not name.startswith("_") and hasattr(vars(signals)[name], "send")}
    wanted = public | sent | set(ledger.__all__) - {"spend"} | set(testing.__all__)
    assert public >= {"total", "by"}
    assert sent == {"call_recorded", "budget_exceeded", "unknown_price", "write_failed"}
    assert wanted <= api_names()


def test_what_apps_use_of_other_rooms_is_on_the_api_page() -> None:
    """So have every method of the tracker, the adapter and transports, how budgets stand, and the errors, in both trees."""
    methods = {name for name in vars(LlmCostTracker) if not name.startswith("_")}
    members = re.search(r"autoclass:: flask_llm_cost\.LlmCostTracker\n   :members: ((?:.+\n)+)", page("api"))
    assert members is not None
    assert set(re.findall(r"\w+", members[1])) == methods
    assert {"LlmCostAdapter", "LlmCostTransport", "AsyncLlmCostTransport"} <= api_names()
    assert {"statuses", "open_holds", *budgets.__all__} - {"Budget"} <= api_names()
    tree = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, LlmCostError)}
    for text in (errors.__doc__ or "", page("api")):
        drawn = re.search(r"LlmCostError\n(?: +[├│└].*\n)+", text)
        assert drawn is not None
        assert set(re.findall(r"\b\w+Error\b(?!\))", drawn[0])) == tree
    assert tree <= api_names()


def test_every_fixture_is_on_the_testing_page() -> None:
    """testing.rst has an entry for each fixture of the pytest plugin."""
    source = page("pytest_flask_llm_cost.py")
    fixtures = re.findall(r"@pytest\.fixture\ndef (\w+)", source)
    assert set(re.findall(r"^``(llm_\w+)``$", page("testing"), re.MULTILINE)) == set(fixtures)
    assert len(fixtures) == 2


def test_every_signal_is_on_the_signals_page() -> None:
    """The table of signals.rst has each signal, with the facts that it is sent with, and no other."""
    rows = re.findall(r"^``(\w+)`` {2,}", page("signals"), re.MULTILINE)
    assert sorted(rows) == sorted(name for name, value in vars(signals).items() if hasattr(value, "send"))


def test_every_group_of_checks_is_on_the_page() -> None:
    """cli.rst says what doctor looks at, group by group, in the order in which it does."""
    section = documented_commands()["flask llm-cost doctor"]
    assert ", ".join(group.lower() for group in GROUPS[:-1]) + f" and {GROUPS[-1].lower()}" in section.replace("\n", " ")


def test_every_error_is_in_the_tree() -> None:
    """The tree of errors on the API page is the one in errors.py."""
    tree = flask_llm_cost.errors.__doc__ or ""
    drawn = [
        line.strip() for line in tree.splitlines() if "Error" in line and ("──" in line or line.strip() == "LlmCostError")
    ]
    text = page("api")
    assert len(drawn) >= 10
    assert [line for line in drawn if line not in text] == []


def test_every_component_is_listed() -> None:
    """The table of components names each component."""
    table = page("api").partition(".. _components:")[2].partition("\nSignals\n")[0]
    assert set(re.findall(r"``(\w+)``", table)) == set(COMPONENTS)


def test_every_table_is_on_the_ledgers_page() -> None:
    """ledger.rst names every table of the schema, and no other."""
    text = page("ledger")
    named = set(re.findall(r"(?<!ix_)\bllm_cost_[a-z_]+\b", text))
    tables = set(Base.metadata.tables)
    assert tables <= named
    assert named - tables <= {"llm_cost_spool"}


def test_every_route_is_on_the_dashboards_page() -> None:
    """dashboard.rst names every page that a mounted dashboard has, and none that it has not."""
    app = Flask(__name__)
    app.register_blueprint(dashboard_blueprint(guard=lambda view: view), url_prefix="/costs")
    ours = [rule for rule in app.url_map.iter_rules() if rule.endpoint.startswith("llm_cost.")]
    assets = {f"llm_cost.{name}" for name in ("stylesheet", "script", "icon")}
    shown = [rule.rule.removeprefix("/costs") for rule in ours if rule.endpoint not in assets]
    routes = {re.sub("<[a-z]+:[a-z_]+>", "<id>", rule) for rule in shown}
    assert "/" in routes
    assert set(re.findall(r"^``(/[^`?]*)(?:\?[^`]*)?``", page("dashboard"), re.MULTILINE)) == routes


def test_every_known_host_and_path_is_on_the_formats_page() -> None:
    """formats.rst names each host whose provider is known, and each path that is taken for a call."""
    text = page("formats")
    regional = {host for host in _HOSTS if host[0] == "." and host[1:] in _HOSTS}
    named = {f"``*{host}``" if host[0] == "." else f"``{host}``" for host in _HOSTS.keys() - regional}
    assert [host for host in named if host not in text] == []
    assert [provider for provider in _HOSTS.values() if f"``{provider}``" not in text] == []
    assert [path for path, (operation, _) in _PATHS.items() if f"``{path}``" not in text or operation not in text] == []


def test_everything_that_can_be_watched_is_on_the_page() -> None:
    """Each name that LLM_COST_INSTRUMENT takes is where it is described: beside its default, and beside what it means."""
    (meaning,) = (body for heading, body in sections(page("capture")) if heading == "Choose what is watched")
    entry = re.search(r"\.\. confval:: LLM_COST_INSTRUMENT\n((?:   .*\n|\n)+)", page("configuration"))
    assert entry is not None
    for text in (meaning, entry[1]):
        assert {name for name in LIBRARIES if f"``{name}``" not in text} == set()


def test_internal_links_lead_somewhere() -> None:
    """Pages and files that a page, the README or its neighbours link to exist, and every page is in the contents."""
    for name, text in pages().items():
        for target in re.findall(r":doc:`(?:[^`<]*<)?([^`>]+)>?`", text):
            assert (DOCS / f"{target}.rst").is_file(), f"{name} links to {target}"
    for name in ("README.rst", "CONTRIBUTING.rst", "SECURITY.rst", "CHANGES.rst"):
        for target in re.findall(r"<((?!https?:)[^<>\s]+\.rst)>`__", page(name)):
            assert (ROOT / target).is_file(), f"{name} links to {target}"
    listed = set(re.findall(r"^   ([a-z-]+)$", page("index"), re.MULTILINE))
    assert listed == set(pages()) - {"index"}


def test_the_changes_begin_with_this_version() -> None:
    """The newest entry of CHANGES.rst is the version that the code has, development marks aside."""
    newest = re.search(r"^Version (\S+)$", page("CHANGES.rst"), re.MULTILINE)
    assert newest is not None
    assert flask_llm_cost.__version__.partition(".dev")[0] == newest[1]


def test_the_readme_is_short_and_has_what_it_must() -> None:
    """Under 200 lines, with the two commands, the limits, and one complete app."""
    text = page("README.rst")
    assert len(text.splitlines()) < 200
    for wanted in ("scripts/demo", "scripts/test", "What it deliberately does not do"):
        assert wanted in text
    for script in set(re.findall(r"scripts/[a-z_]+", text)):
        assert (ROOT / script).is_file(), script
    assert len(code_blocks(text)) == 1


def test_quoted_settings_exist_with_these_values() -> None:
    """Settings that pages quote as ``KEY = value`` are accepted by the configuration."""
    for name, text in {**pages(), "README.rst": page("README.rst")}.items():
        for key, value in re.findall(r"``(LLM_COST_\w+) = ([^`]+)``", text.replace("\n", " ")):
            if "…" not in value:
                extra = {"LLM_COST_WRITE_MODE": "inline"} if key == "LLM_COST_WRITE_ERRORS" else {}
                Config.from_mapping({key: eval(value, {"Decimal": Decimal}), **extra})
                assert name
