"""Output of `evosearch analyze`: figures by layer and by kind of module, paths, parents, calibration."""

from rich.console import Console

from evosearch.cli.tables import make_table
from evosearch.service.analyze import AnalyzeReport
from evosearch.service.analyze_columns import (
    calibration_columns,
    change_columns,
    left_out_columns,
    path_title,
    point_columns,
)
from evosearch.service.analyze_scores import LeaveOneOut
from evosearch.service.analyze_weights import WeightAnalysis


def show_analysis(console: Console, report: AnalyzeReport) -> None:
    """Print the tables of everything that was asked."""
    if report.weights is not None:
        _show_weights(console, report.weights)
    if report.leave_one_out is not None:
        _show_left_out(console, report, report.leave_one_out)
    for path in report.paths or ():
        console.print(make_table(path_title(path), point_columns(), path.points))
    if report.calibration is not None:
        title = f"Calibration on {report.suite}, {report.split}"
        console.print(make_table(title, calibration_columns(), report.calibration))


def _show_weights(console: Console, found: WeightAnalysis) -> None:
    console.print(f"changes from {found.base}, relative to its norm:", highlight=False, soft_wrap=True)
    for index, model in enumerate(found.models):
        console.print(f"τ{index + 1}  {model}", highlight=False, soft_wrap=True)
    count = len(found.models)
    console.print(make_table("By layer", change_columns(count, "layer"), [*found.layers, found.total]))
    console.print(make_table("By kind of module", change_columns(count, "module"), found.kinds))
    if found.total.decomposition is not None:
        how = {"mixed": "exact for small matrices and randomized for large ones"}
        text = how.get(found.total.decomposition, found.total.decomposition)
        console.print(f"left, right: overlap of the top {found.top} singular vectors, {text}", highlight=False)
    if found.left_out:
        console.print(f"not in all models: {', '.join(found.left_out)}", highlight=False, soft_wrap=True)


def _show_left_out(console: Console, report: AnalyzeReport, found: LeaveOneOut) -> None:
    title = f"{report.title} on {report.suite}, {report.split}: score {found.score:.2f}"
    console.print(make_table(title, left_out_columns(), found.without))
