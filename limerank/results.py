"""What all results share: a text to read, plain values for JSON, and tables where they are tables.

>>> ranking = recommender.rank(user=42)
>>> ranking  # aligned and rounded
>>> ranking.to_dict()  # as written to JSON files and by --json
>>> ranking.to_polars(), ranking.to_pandas()
"""

from __future__ import annotations

import abc
import importlib
import math
import unicodedata
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from limerank.errors import SpecError

if TYPE_CHECKING:
    import polars as pl

GAP = 2
"""Blanks between two columns of an aligned text, at least."""
SHOWN_LINES = 40
"""Lines of a result that its ``repr`` shows."""
SHOWN_ROWS = 100
"""Rows of a result that a notebook shows."""


class Result(abc.ABC):
    """A result of this package. Its ``repr`` is the start of :meth:`text`."""

    @abc.abstractmethod
    def text(self) -> str:
        """The result in aligned, rounded lines, as the command line prints it."""

    @abc.abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The result as plain values, as written to JSON: not rounded."""

    def __repr__(self) -> str:
        lines = self.text().splitlines()
        if len(lines) > SHOWN_LINES + 1:
            lines[SHOWN_LINES:] = [f"... and {len(lines) - SHOWN_LINES:,} more lines: print text()"]
        return "\n".join(lines)


class TableResult(Result):
    """A result that is a table."""

    @abc.abstractmethod
    def columns(self) -> dict[str, list[Any]]:
        """The columns of the table by name, equally long."""

    def to_polars(self) -> pl.DataFrame:
        """The table as a polars frame."""
        import polars as pl

        return pl.DataFrame(self.columns(), strict=False)

    def to_pandas(self) -> Any:
        """The table as a pandas frame.

        Raises:
            SpecError: pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError:
            raise SpecError(
                "to_pandas needs pandas, which is not installed: pip install pandas; "
                "or use to_polars"
            ) from None
        return pandas.DataFrame(self.columns())

    def _repr_html_(self) -> str:
        columns = self._shown_columns()
        count = max(map(len, columns.values()), default=0)
        head = "".join(f"<th>{escape(name)}</th>" for name in columns)
        rows = []
        for row in range(min(count, SHOWN_ROWS)):
            cells = "".join(_cell(values[row]) for values in columns.values())
            rows.append(f"<tr>{cells}</tr>")
        if count > SHOWN_ROWS:
            more = f"... and {count - SHOWN_ROWS:,} more rows"
            rows.append(f'<tr><td colspan="{len(columns)}">{more}</td></tr>')
        return (
            f"<table><caption>{escape(self.caption())}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        )

    def _shown_columns(self) -> dict[str, list[Any]]:
        """The columns that a notebook shows."""
        return self.columns()

    def caption(self) -> str:
        """What the table is, in one line: the first line of :meth:`text`."""
        return self.text().partition("\n")[0]


def _cell(value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    align = "right" if number else "left"
    if value is None:
        text = ""
    elif isinstance(value, list | tuple):
        text = printable(", ".join(map(str, value)))
    else:
        text = rounded(value) if isinstance(value, float) else printable(str(value))
    return f'<td style="text-align: {align}">{escape(text)}</td>'


JOINERS = "\u200c\u200d"
"""Format characters that scripts and emoji need within a word."""


def printable(text: str) -> str:
    """A text with its control and format characters escaped (``\\n``, ``\\x1b``, ``\\u202e``), so
    that an id cannot direct the terminal that shows it."""
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in JOINERS
        else char
        for char in text
    )


def rounded(value: float) -> str:
    """A number with four decimals; "-" for NaN, the value of what is not defined."""
    return "-" if math.isnan(value) else f"{value:.4f}"


def none_for_nan(value: float) -> float | None:
    """A number for JSON and tables, where what is not defined is null."""
    return None if math.isnan(value) else value


def aligned(
    rows: Sequence[Sequence[str]], align: str, least: Sequence[int] = (), indent: int = 2
) -> list[str]:
    """Lines of text whose columns are aligned, however wide their cells are. Control characters in
    cells are escaped, see :func:`printable`.

    Args:
        rows: rows of cells, the head included.
        align: "<" or ">" for each column.
        least: the least width of each column, its gap included; a wide cell makes it wider.
        indent: blanks before each line.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = []
    for position in range(len(align)):
        longest = max((cell_len(row[position]) for row in rows), default=0) + GAP
        widths.append(max(least[position] if position < len(least) else 0, longest))
    lines = []
    for row in rows:
        line = " " * indent
        for position, (cell, side) in enumerate(zip(row, align, strict=True)):
            blanks = " " * (widths[position] - cell_len(cell))
            if side == ">":
                line += blanks + cell
            else:
                after_number = position and align[position - 1] == ">"
                line += " " * GAP * bool(after_number) + cell + blanks
        lines.append(line.rstrip())
    return lines
