"""`evosearch analyze`: the weights of models compared, or merges of them scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evosearch.errors import InputError
from evosearch.search.progress import Watcher
from evosearch.service.analyze_models import open_analyzed
from evosearch.service.analyze_scores import (
    POINTS,
    AnalysisScorer,
    LeaveOneOut,
    MergePath,
    TaskCalibration,
    calibrations,
    leave_one_out,
    paths,
)
from evosearch.service.analyze_weights import TOP, WeightAnalysis, analyze_weights

LEAST_POINTS, MOST_POINTS = 3, 1001
MOST_TOP = 1024


@dataclass(frozen=True, kw_only=True)
class AnalyzeOptions:
    """Options of an analysis.

    Attributes:
        base: Base of the changes; default: that of the recipe.
        leave_one_out: Score the merge without each parent.
        path: Score merges between two models.
        calibration: Measure the calibration of choices.
        suite: The suite file, which the last three need.
        split: `search` or `validation`.
        points: Merges on a path, with both ends.
        top: Number of singular vectors of a subspace.
        allow_pickle: Read pickled weights of models without safetensors.
    """

    base: str | None = None
    leave_one_out: bool = False
    path: bool = False
    calibration: bool = False
    suite: Path | None = None
    split: str = "search"
    points: int = POINTS
    top: int = TOP
    allow_pickle: bool = False

    @property
    def scores(self) -> bool:
        """Whether anything is scored; the weights are compared otherwise."""
        return self.leave_one_out or self.path or self.calibration


@dataclass(frozen=True, kw_only=True)
class AnalyzeReport:
    """Result of an analysis, as `evosearch analyze --json` prints it; None for what was not asked.

    Attributes:
        title: The recipe, or the models.
        base: The base; None without one.
        models: The models without the base.
        suite: Name of the suite.
        split: The split that was scored.
        weights: Figures of the task vectors.
        leave_one_out: What each parent adds.
        paths: Merges between models.
        calibration: Calibration by model and task.
    """

    title: str
    base: str | None
    models: tuple[str, ...]
    suite: str | None = None
    split: str | None = None
    weights: WeightAnalysis | None = None
    leave_one_out: LeaveOneOut | None = None
    paths: tuple[MergePath, ...] | None = None
    calibration: tuple[TaskCalibration, ...] | None = None


def analyze(named: Sequence[str], options: AnalyzeOptions, watcher: Watcher) -> AnalyzeReport:
    """Compare the weights of models, or score merges of them.

    Args:
        named: One recipe file, or references of models.
        options: What to analyze.
        watcher: Shows progress and notes.

    Raises:
        InputError: The models, the suite or an option is wrong.
        EvosearchError: A merge cannot be scored.
    """
    _check(options)
    analyzed = open_analyzed(named, options.base, watcher, options.allow_pickle)
    title, base, models = analyzed.title, analyzed.base, analyzed.parents
    if not options.scores:
        found = analyze_weights(analyzed, watcher, options.top)
        return AnalyzeReport(title=title, base=base, models=models, weights=found)
    assert options.suite is not None
    fitness = "gold_logprob" if options.path else None
    scorer = AnalysisScorer(analyzed, options.suite, options.split, watcher, fitness)
    return AnalyzeReport(
        title=title,
        base=base,
        models=models,
        suite=scorer.suite.name,
        split=options.split,
        leave_one_out=leave_one_out(analyzed, scorer) if options.leave_one_out else None,
        paths=paths(analyzed, scorer, options.points) if options.path else None,
        calibration=calibrations(analyzed, scorer) if options.calibration else None,
    )


def _check(options: AnalyzeOptions) -> None:
    """Check the options that models are not needed for.

    Raises:
        InputError: A number is out of bounds, or the suite is missing or not used.
    """
    if not LEAST_POINTS <= options.points <= MOST_POINTS:
        raise InputError("--points", f"got {options.points}", f"{LEAST_POINTS} to {MOST_POINTS}")
    if not 1 <= options.top <= MOST_TOP:
        raise InputError("--top", f"got {options.top}", f"1 to {MOST_TOP}")
    flags = "--leave-one-out, --path or --calibration"
    if options.scores and options.suite is None:
        raise InputError("--suite", "is missing", f"A suite (YAML), with {flags}")
    if options.suite is not None and not options.scores:
        raise InputError("--suite", "is given, and nothing is scored", f"Together with {flags}", "Add one of them")
