"""Parts of charts that all sections share: colors, symbols, axes and safe labels."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

# Okabe & Ito's colors for the color-blind, darkened to a contrast of 3 : 1 with white and with the dark page.
BLUE, VERMILION, GREEN, PURPLE, AMBER, GREY = "#2b83c6", "#d9622b", "#0b9270", "#b8659a", "#b07c00", "#858b93"
COLORS = (BLUE, VERMILION, GREEN, PURPLE, AMBER, GREY)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon")
NONE = "rgba(0,0,0,0)"
WIDEST = 28  # characters of a label on an axis
ROW = 26  # pixels of a row of a chart with named rows


def label(text: str, widest: int = WIDEST) -> str:
    """Return a name for a chart: shortened in the middle, and escaped, since Plotly reads some HTML in labels."""
    if len(text) > widest:
        half = (widest - 1) // 2
        text = f"{text[: widest - 1 - half]}…{text[-half:]}"
    return escape(text)


def capital(text: str) -> str:
    """Return a sentence with a capital at its start."""
    return text[:1].upper() + text[1:]


def rounded(value: float | None, digits: int = 6) -> float | None:
    """Return a number with at most `digits` significant digits; None if it is not finite, as JSON has no NaN."""
    return float(f"{value:.{digits}g}") if value is not None and math.isfinite(value) else None


def axis(title: str = "", **more: Any) -> dict[str, Any]:
    """Return an axis that makes room for its labels."""
    return {"title": {"text": escape(title), "standoff": 8}, "automargin": True, "zeroline": False, **more}


def named_rows(names: Sequence[str], **more: Any) -> dict[str, Any]:
    """Return a vertical axis with one row for each name, the first on top."""
    ticks: dict[str, Any] = {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": list(names)}
    return axis(range=[len(names) - 0.4, -0.6], **ticks, **more)


def layout(xaxis: dict[str, Any], yaxis: dict[str, Any], legend: bool = True, **more: Any) -> dict[str, Any]:
    """Return a layout with the legend above the plot, which is readable on a narrow screen."""
    placed = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}
    margin = {"l": 8, "r": 12, "t": 12, "b": 8}
    return {"xaxis": xaxis, "yaxis": yaxis, "legend": placed, "showlegend": legend, "margin": margin, **more}
