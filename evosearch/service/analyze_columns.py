"""Columns of the tables of `evosearch analyze`. Models are numbered, in the order of the legend."""

from collections.abc import Sequence

from evosearch.reporting.columns import Column, number, with_interval
from evosearch.service.analyze_scores import LeftOut, MergePath, Point, TaskCalibration
from evosearch.service.analyze_weights import ChangeFigures

WIDEST = 40  # characters of a reference in a table
MOST_MODELS = 6  # with a column each; of more, tables show the smallest and the largest


def change_columns(models: int, heading: str) -> list[Column[ChangeFigures]]:
    """Return the columns of the figures of task vectors.

    Args:
        models: Number of models.
        heading: Heading of the first column.
    """
    columns: list[Column[ChangeFigures]] = [Column(heading, lambda row: row.name.removesuffix(".weight"), left=True)]
    if models <= MOST_MODELS:
        columns += [_relative(index) for index in range(models)]
    else:
        columns.append(Column("‖τ‖/‖θ₀‖", lambda row: _range(row.relative)))
    columns.append(Column("zeros", lambda row: _range(row.zeros)))
    columns.append(Column("spread", lambda row: _range(row.spread)))
    if models > 1:
        columns.append(Column("cosine", lambda row: _range([pair.cosine for pair in row.pairs])))
        columns.append(Column("conflict", lambda row: number(row.conflict, 2)))
        columns.append(Column("weighted", lambda row: number(row.weighted_conflict, 2)))
        columns.append(Column("left", lambda row: _range([pair.left for pair in row.pairs])))
        columns.append(Column("right", lambda row: _range([pair.right for pair in row.pairs])))
    return columns


def left_out_columns() -> list[Column[LeftOut]]:
    """Return the columns of the merge without each parent."""
    return [
        Column("without", lambda row: shortened(row.model), left=True),
        Column("score", lambda row: number(row.score, 2)),
        Column("the model adds", lambda row: with_interval(row.adds.value, row.adds.lower, row.adds.upper, "+")),
    ]


def point_columns() -> list[Column[Point]]:
    """Return the columns of a path."""
    return [
        Column("t", lambda row: f"{row.t:.2f}"),
        Column("loss", lambda row: number(row.loss, 4)),
        Column("score", lambda row: number(row.score, 2)),
    ]


def calibration_columns() -> list[Column[TaskCalibration]]:
    """Return the columns of the calibration of models."""
    return [
        Column("model", lambda row: shortened(row.model), left=True),
        Column("task", lambda row: row.task, left=True),
        Column("items", lambda row: str(row.figures.items)),
        Column("accuracy", lambda row: number(row.figures.accuracy, 3)),
        Column("confidence", lambda row: number(row.figures.confidence, 3)),
        Column("ECE", lambda row: number(row.figures.ece, 3)),
        Column("Brier", lambda row: number(row.figures.brier, 3)),
    ]


def shortened(reference: str) -> str:
    """Return the end of a long reference, which tells models apart."""
    return reference if len(reference) <= WIDEST else f"…{reference[1 - WIDEST :]}"


def path_title(path: MergePath) -> str:
    """Return the title of a path's table, with its barrier."""
    start, end = path.models
    return f"{path.kind}: {start} → {end}; barrier {path.barrier:.4f}, lowest loss at t = {path.best:.2f}"


def _relative(index: int) -> Column[ChangeFigures]:
    return Column(f"τ{index + 1}", lambda row: _short(row.relative[index]))


def _range(values: Sequence[float | None]) -> str:
    """Format one value, or the smallest and the largest of several."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    least, most = f"{min(known):.2f}", f"{max(known):.2f}"
    return least if least == most else f"{least}…{most}"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
