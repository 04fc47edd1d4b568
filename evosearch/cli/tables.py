"""Plain tables for terminals and log files."""

from collections.abc import Sequence
from typing import TypeVar

from rich.table import Table

from evosearch.reporting.columns import Column
from evosearch.visible import visible

Row = TypeVar("Row")


def make_table(title: str, columns: Sequence[Column[Row]], rows: Sequence[Row]) -> Table:
    """Build a table without borders that fits a terminal of 100 columns and stays readable in a log file.

    Control characters in titles and cells are made visible.
    """
    table = Table(title=visible(title), title_justify="left", box=None, padding=(0, 1, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(visible(column.heading), justify="left" if column.left else "right", no_wrap=column.left)
    for row in rows:
        table.add_row(*(visible(column.cell(row)) for column in columns))
    return table
