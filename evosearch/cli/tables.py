"""Plain tables for terminals and log files."""

from collections.abc import Sequence
from typing import Any, TypeVar

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from evosearch.reporting.columns import Column
from evosearch.visible import visible

Row = TypeVar("Row")
GAP = 1  # spaces between two columns


class FittedTable(Table):
    """Table that leaves out its spare columns where they do not fit, and names them below.

    Rich would squeeze all columns instead, down to one character each.

    Args:
        widths: Width of each column, in characters, without line breaks.
        spare: Index → number of each spare column; see `Column.spare`.
        options: As those of `rich.table.Table`.
    """

    def __init__(self, widths: Sequence[int], spare: dict[int, int], **options: Any) -> None:
        super().__init__(**options)
        self._widths, self._spare = widths, spare

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the table with the columns that fit."""
        every, caption = self.columns, self.caption
        left_out = self._left_out(options.max_width)
        self.columns = [column for index, column in enumerate(every) if index not in left_out]
        try:
            if left_out:
                names = ", ".join(str(every[index].header) for index in sorted(left_out))
                text = f"not shown in {options.max_width} columns: {names}"
                self.caption, self.caption_justify = f"{caption}\n{text}" if caption else text, "left"
            yield from super().__rich_console__(console, options)
        finally:
            self.columns, self.caption = every, caption

    def _left_out(self, width: int) -> set[int]:
        """Return the columns to leave out for the others to fit."""
        order, found = sorted(self._spare, key=lambda index: (self._spare[index], index)), set[int]()
        while order and sum(one + GAP for index, one in enumerate(self._widths) if index not in found) > width:
            found.add(order.pop())
        return found


def make_table(title: str, columns: Sequence[Column[Row]], rows: Sequence[Row]) -> Table:
    """Build a table without borders that fits a terminal and stays readable in a log file.

    Control characters in titles and cells are made visible.
    """
    cells = [[visible(column.cell(row)) for column in columns] for row in rows]
    headings = [visible(column.heading) for column in columns]
    widths = [max(cell_len(row[index]) for row in [headings, *cells]) for index in range(len(columns))]
    spare = {index: column.spare for index, column in enumerate(columns) if column.spare}
    style: dict[str, Any] = {"title_justify": "left", "box": None, "padding": (0, GAP, 0, 0), "header_style": "bold"}
    table = FittedTable(widths, spare, title=visible(title), **style)
    for heading, column in zip(headings, columns, strict=True):
        table.add_column(heading, justify="left" if column.left else "right", no_wrap=column.left)
    for row in cells:
        table.add_row(*row)
    return table
