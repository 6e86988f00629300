"""What a spreadsheet makes of the text in a cell."""

from __future__ import annotations

from typing import Final

#: What makes it take a cell for a formula, full-width forms included.
_FORMULA: Final = tuple("=+-@\t\r\n\x00＝＋－＠")


def defused(text: str) -> str:
    """*text* with an apostrophe in front where a spreadsheet would run it."""
    return "'" + text if text.startswith(_FORMULA) or text.lstrip().startswith(_FORMULA) else text
