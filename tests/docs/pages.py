"""The documentation as text: its pages, the entries of a directive, the blocks of code."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_BLOCK = re.compile(r"^( *)\.\. code-block:: python\n(?:\1   :.*\n)*\n((?:\1   .*\n|\s*\n)+)", re.MULTILINE)


def page(name: str) -> str:
    """The source of a page, by its name in the toctree; of a file at the top, by its path."""
    return (DOCS / f"{name}.rst" if "." not in name else ROOT / name).read_text(encoding="utf-8")


def pages() -> dict[str, str]:
    """Every page by its name."""
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.rst"))}


def entries(text: str, directive: str) -> list[str]:
    """What the entries of a directive are called: ``.. confval:: NAME``."""
    return re.findall(rf"^ *\.\. {re.escape(directive)}:: (.+)$", text, re.MULTILINE)


def sections(text: str) -> Iterator[tuple[str, str]]:
    """Heading and text of every section, whatever its level."""
    parts = re.split(r"^(.+)\n([=\-~])\2{2,}\n", text, flags=re.MULTILINE)
    for heading, body in zip(parts[1::3], parts[3::3], strict=True):
        yield heading.strip(), body


def code_blocks(text: str) -> list[str]:
    """The Python blocks, in order."""
    return [textwrap.dedent(block).strip("\n") + "\n" for _, block in _BLOCK.findall(text)]
