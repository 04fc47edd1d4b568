"""HTML tables, paragraphs and lists for notebooks. All text is escaped."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import TypeVar

from evosearch.reporting.columns import Column

Row = TypeVar("Row")


def html_table(title: str, columns: Sequence[Column[Row]], rows: Sequence[Row]) -> str:
    """Return a table with a caption."""
    aligned = [(column, f' style="text-align: {"left" if column.left else "right"}"') for column in columns]
    head = "".join(f"<th{style}>{escape(column.heading)}</th>" for column, style in aligned)
    body = "".join(
        "<tr>" + "".join(f"<td{style}>{escape(column.cell(row))}</td>" for column, style in aligned) + "</tr>"
        for row in rows
    )
    return (
        f'<table><caption style="text-align: left">{escape(title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def html_paragraph(text: str) -> str:
    """Return a paragraph."""
    return f"<p>{escape(text)}</p>"


def html_list(texts: Iterable[str]) -> str:
    """Return a bullet list, or an empty string without entries."""
    entries = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<ul>{entries}</ul>" if entries else ""
