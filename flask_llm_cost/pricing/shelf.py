"""Where the current price book stands: read at its first use, and again when its file has changed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from flask_llm_cost.errors import PriceBookError
from flask_llm_cost.log import log
from flask_llm_cost.pricing.book import PriceBook

_Mark = tuple[int, int, int] | None


class Shelf:
    """Holds one book and exchanges it, whole, when the file is another: no restart, and no call priced from half of each.

    Whether it is another costs one ``stat``, about a microsecond.

    :param file: ``LLM_COST_PRICES_FILE``, which has to be there
    :param default: the file that is used, where there is one, if *file* is not set
    """

    def __init__(
        self,
        *,
        overrides: Mapping[str, Any],
        aliases: Mapping[str, str],
        discounts: Mapping[str, Decimal],
        file: Path | None,
        default: Path,
    ) -> None:
        self._settings: dict[str, Any] = {"overrides": overrides, "aliases": aliases, "discounts": discounts}
        self._required = file is not None
        self.path = file or default
        self._book: PriceBook | None = None
        self._mark: _Mark = None

    @property
    def has_file(self) -> bool:
        """Whether there is a price file now."""
        return self._look() is not None

    def book(self) -> PriceBook:
        """The book of this moment.

        :raises PriceBookError: the first one cannot be read. A later one that cannot be read leaves the last good one
        """
        mark = self._look()
        book = self._book
        if book is not None and mark == self._mark:
            return book
        try:
            # Two threads may both do this; each leaves a whole book.
            fresh = PriceBook.load(file=self.path if mark is not None or self._required else None, **self._settings)
        except PriceBookError as error:
            if book is None:
                raise
            self._mark = mark  # told once, and tried again when it changes
            log.warning("the prices stay as they are: %s", error)
            return book
        self._book, self._mark = fresh, mark
        return fresh

    def _look(self) -> _Mark:
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
