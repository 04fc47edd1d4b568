"""Content of a page as plain data: paragraphs, lists, tables, charts, text to copy, and sections of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from evosearch.reporting.columns import Column

Row = TypeVar("Row")
MOST_ROWS = 250  # of a table; the ledger has the others


@dataclass(frozen=True)
class Text:
    """One paragraph."""

    text: str
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    texts: tuple[str, ...]
    kind: ClassVar[str] = "bullets"


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: Its caption.
        headings: One for each column.
        rows: Cells.
        left: For each column, whether it is aligned left.
        folded: Whether it is closed until a reader opens it.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: tuple[bool, ...]
    folded: bool = False
    kind: ClassVar[str] = "table"

    @property
    def shown(self) -> tuple[tuple[str, ...], ...]:
        """The rows on the page."""
        return self.rows[:MOST_ROWS]


@dataclass(frozen=True)
class Chart:
    """A chart with its text alternative.

    Attributes:
        title: Its caption.
        summary: What it shows, in words, for those who do not see it.
        data: Traces, as Plotly reads them.
        layout: Layout, as Plotly reads it, without colors of text, axes and background.
        height: In pixels.
        table: The same numbers as text.
    """

    title: str
    summary: str
    data: tuple[Mapping[str, Any], ...]
    layout: Mapping[str, Any]
    height: int
    table: Table
    kind: ClassVar[str] = "chart"


@dataclass(frozen=True)
class Code:
    """Text to copy."""

    title: str
    text: str
    kind: ClassVar[str] = "code"


Block = Text | Bullets | Table | Chart | Code


@dataclass(frozen=True)
class Section:
    """One section of the page; `key` is its anchor."""

    key: str
    title: str
    blocks: tuple[Block, ...]


def table_of(title: str, columns: Sequence[Column[Row]], rows: Sequence[Row], folded: bool = False) -> Table:
    """Return the table that `columns` makes of `rows`."""
    cells = tuple(tuple(column.cell(row) for column in columns) for row in rows)
    headings, left = tuple(column.heading for column in columns), tuple(column.left for column in columns)
    return Table(title, headings, cells, left, folded)


def plain_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> Table:
    """Return a table whose first `left` columns are aligned left."""
    aligned = tuple(index < left for index in range(len(headings)))
    return Table(title, tuple(headings), tuple(map(tuple, rows)), aligned)
