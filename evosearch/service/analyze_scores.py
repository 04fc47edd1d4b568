"""`evosearch analyze --suite`: scores along paths, without each parent, and calibration, in this process."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evosearch.analysis.calibration import Answered, Calibration, calibration
from evosearch.analysis.paths import barrier, lowest
from evosearch.errors import EvosearchError, RecipeError, SuiteError
from evosearch.evaluation.harness.frozen import FrozenDocument
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.harness.right_answers import RightChoice
from evosearch.evaluation.statistics.intervals import Difference, paired_difference
from evosearch.evaluation.suites.suite import Suite, load_suite
from evosearch.evaluation.types import LOGLIKELIHOODS, REQUESTS, ItemBatch, ScoreCard
from evosearch.execution.worker import Worker
from evosearch.merging.registry import specs
from evosearch.recipe.schema import Recipe
from evosearch.search.baselines import single
from evosearch.search.progress import Watcher
from evosearch.search.protocols import Job
from evosearch.service.analyze_models import Analyzed
from evosearch.setup.executors import worker_config
from evosearch.spec.config import WorkersConfig

SPLITS = ("search", "validation")  # scoring on test is left to `evosearch score`, which records it
POINTS = 11
MERGE = "merge"


@dataclass(frozen=True)
class LeftOut:
    """The merge without one parent.

    Attributes:
        model: The parent that is left out.
        score: Score of the merge without it, in points.
        adds: What the parent adds: score of the merge minus this one, with its standard error and 95% interval over
            items. Negative: the merge is better without it.
    """

    model: str
    score: float
    adds: Difference


@dataclass(frozen=True)
class LeaveOneOut:
    """What each parent adds.

    Attributes:
        score: Score of the merge, in points.
        without: The merge without each parent.
    """

    score: float
    without: tuple[LeftOut, ...]


@dataclass(frozen=True)
class Point:
    """One merge on a path: its loss in nats, and its score in points."""

    t: float
    loss: float
    score: float


@dataclass(frozen=True)
class MergePath:
    """Merges on a path from one model to another.

    Attributes:
        kind: `straight`, `spherical`, or `to base`: from the base (t = 0) to a model (t = 1).
        models: Start and end.
        points: From t = 0 to t = 1.
        barrier: Largest loss above the straight line between the losses of both ends.
        best: The t of the lowest loss.
    """

    kind: str
    models: tuple[str, str]
    points: tuple[Point, ...]
    barrier: float
    best: float


@dataclass(frozen=True)
class TaskCalibration:
    """Calibration of one model on one multiple-choice task."""

    model: str
    task: str
    figures: Calibration


class AnalysisScorer:
    """Scorer of merges of the analyzed models on one split of a suite.

    Args:
        analyzed: The models.
        suite: The suite file.
        split: `search` or `validation`.
        watcher: Shows progress.
        fitness: Kind of fitness in place of the suite's.

    Raises:
        InputError: The suite or the split is wrong.
    """

    def __init__(
        self, analyzed: Analyzed, suite: Path, split: str, watcher: Watcher, fitness: str | None = None
    ) -> None:
        if split not in SPLITS:
            advice = "evosearch score scores one model on test, and records it"
            raise SuiteError("--split", f"got '{split}'", f"One of {', '.join(SPLITS)}", advice)
        loaded = load_suite(suite).without_teachers()
        self.suite: Suite = loaded if fitness is None else loaded.model_copy(update={"fitness": fitness})
        harness = Harness(self.suite)
        self.batch: ItemBatch = harness.batch(split)
        config = worker_config(WorkersConfig(), analyzed.models, self.suite, analyzed.recipe.output_dtype)
        self._worker = Worker(config, harness=harness)
        self._worker.scorer.prepare(self.batch)
        self._watcher = watcher

    def cards(self, recipes: Mapping[str, Recipe], what: str) -> dict[str, ScoreCard]:
        """Score several recipes; return name → card.

        Raises:
            EvosearchError: One cannot be scored.
        """
        found: dict[str, ScoreCard] = {}
        for index, (name, recipe) in enumerate(recipes.items()):
            self._watcher.preparing(what, index / len(recipes))
            outcome = self._worker.run(Job(name, recipe, self.batch))
            if outcome.card is None:
                assert outcome.failure is not None
                raise EvosearchError(f"{name}: {outcome.failure.stage}: {outcome.failure.reason}")
            found[name] = outcome.card
        self._watcher.preparing(what, 1.0)
        return found

    def documents(self) -> dict[str, tuple[FrozenDocument, ...]]:
        """Return task → its documents with their right answers."""
        frozen = self._worker.scorer.plans(self.batch)[0]
        return {task.spec.name: task.documents for task in frozen.tasks}


def leave_one_out(analyzed: Analyzed, scorer: AnalysisScorer) -> LeaveOneOut:
    """Score the merge of a recipe, and the merge without each parent.

    Raises:
        RecipeError: There is no recipe, it is in slices, or its method cannot do with one model less.
    """
    recipe = analyzed.recipe
    parents = [entry for entry in recipe.models if entry.model != recipe.base_model]
    method = specs().get(recipe.merge_method or "")
    if not analyzed.is_recipe or not recipe.models or method is None:
        what = "--leave-one-out needs a recipe that lists its models"
        raise RecipeError(analyzed.title, what, "A recipe with `models`", "Write one, without slices")
    if len(parents) <= method.models[0] or len(parents) < 2:
        what = f"'{method.name}' needs at least {max(1, method.models[0])} models, so that none can be left out"
        raise RecipeError(analyzed.title, what, "A recipe of more models")
    recipes = {MERGE: recipe}
    for entry in parents:
        kept = tuple(other for other in recipe.models if other.model != entry.model)
        recipes[entry.model] = recipe.model_copy(update={"models": kept})
    cards = scorer.cards(recipes, "leaving out one model after the other")
    without = tuple(
        LeftOut(name, _score(card), _adds(cards[MERGE], card, scorer)) for name, card in cards.items() if name != MERGE
    )
    return LeaveOneOut(_score(cards[MERGE]), without)


def paths(analyzed: Analyzed, scorer: AnalysisScorer, points: int = POINTS) -> tuple[MergePath, ...]:
    """Score merges on the straight and the spherical line between two models, and from the base to every model.

    The scorer's fitness must be `gold_logprob`; the loss is minus the fitness.

    Raises:
        RecipeError: There are not two models, and no base.
    """
    parents, base = analyzed.parents, analyzed.base
    if len(parents) != 2 and (len(parents) != 1 or base is None):
        what = f"--path is between two models, and got {len(parents)}"
        raise RecipeError(analyzed.title, what, "Two models, or one with --base")
    steps = [index / (points - 1) for index in range(points)]
    found = []
    if len(parents) == 2:
        one, other = parents
        straight = line(one, other, scorer, points)
        found += [straight, _path("spherical", (one, other), steps, _spherical, scorer, straight)]
    if base is not None:
        found += [line(base, parent, scorer, points, "to base") for parent in parents]
    return tuple(found)


def line(one: str, other: str, scorer: AnalysisScorer, points: int = POINTS, kind: str = "straight") -> MergePath:
    """Score merges on the straight line from one model to another. The scorer's fitness must be `gold_logprob`."""
    steps = [index / (points - 1) for index in range(points)]
    return _path(kind, (one, other), steps, _straight, scorer)


def calibrations(analyzed: Analyzed, scorer: AnalysisScorer) -> tuple[TaskCalibration, ...]:
    """Return the calibration of base, parents and merge on every multiple-choice task.

    Raises:
        SuiteError: The suite has no such task.
    """
    tasks = {
        name: documents
        for name, documents in scorer.documents().items()
        if documents and all(isinstance(document.right, RightChoice) for document in documents)
    }
    if not tasks:
        what = "no task of the suite has choices, so there are no probabilities to calibrate"
        raise SuiteError(scorer.suite.where("tasks"), what, "A multiple-choice task")
    named = dict.fromkeys((*filter(None, [analyzed.base]), *analyzed.parents))
    recipes = {reference: single(reference) for reference in named}
    if analyzed.is_recipe:
        recipes[MERGE] = analyzed.recipe
    cards = scorer.cards(recipes, "scoring for calibration")
    return tuple(
        TaskCalibration(name, task, calibration(_answers(card, task, documents)))
        for name, card in cards.items()
        for task, documents in tasks.items()
    )


def _score(card: ScoreCard) -> float:
    assert card.score is not None, "every right answer was read"
    return card.score


def _adds(merge: ScoreCard, without: ScoreCard, scorer: AnalysisScorer) -> Difference:
    present = [task for task in scorer.suite.scoring if task.name in merge.tasks]
    total = sum(task.weight for task in present)
    one, other = ({task.name: card.columns[task.name][task.column] for task in present} for card in (merge, without))
    weights = {task.name: task.weight / total for task in present}
    chances = {task.name: task.chance for task in present}
    groups = {items.task: items.groups for items in scorer.batch.sets if items.groups}
    return paired_difference(one, other, weights, chances, groups)


def _path(
    kind: str,
    models: tuple[str, str],
    steps: Sequence[float],
    recipe: Callable[[str, str, float], Recipe],
    scorer: AnalysisScorer,
    same_ends: MergePath | None = None,
) -> MergePath:
    inner = steps if same_ends is None else steps[1:-1]
    recipes = {f"{kind} {t:g}": recipe(*models, t) for t in inner}
    cards = scorer.cards(recipes, f"scoring the {kind} path")
    points = [Point(t, -card.fitness.value, _score(card)) for t, card in zip(inner, cards.values(), strict=True)]
    if same_ends is not None:
        points = [same_ends.points[0], *points, same_ends.points[-1]]
    losses = [(point.t, point.loss) for point in points]
    return MergePath(kind, models, tuple(points), barrier(losses), lowest(losses)[0])


def _straight(one: str, other: str, t: float) -> Recipe:
    weighted = [{"model": name, "parameters": {"weight": w}} for name, w in ((one, 1.0 - t), (other, t))]
    return Recipe.model_validate({"merge_method": "linear", "models": weighted})


def _spherical(one: str, other: str, t: float) -> Recipe:
    data: dict[str, Any] = {"merge_method": "slerp", "base_model": one, "models": [{"model": other}]}
    return Recipe.model_validate(data | {"parameters": {"t": t}})


def _answers(card: ScoreCard, task: str, documents: Sequence[FrozenDocument]) -> list[Answered]:
    columns = card.columns[task]
    values, counts = columns[LOGLIKELIHOODS], columns[REQUESTS].astype(int)
    stops = np.cumsum(counts)
    parts = [values[stop - count : stop] for stop, count in zip(stops, counts, strict=True)]
    return [_answered(document, part) for document, part in zip(documents, parts, strict=True)]


def _answered(document: FrozenDocument, values: Any) -> Answered:
    """Return the scores of a document's choices, as the task's metric normalizes them."""
    right = document.right
    assert isinstance(right, RightChoice)
    place = {request: index for index, query in enumerate(document.queries) for request in query.requests}
    scores = np.array([values[place[request]] for request in right.requests])
    if right.minus:
        scores = scores - np.array([values[place[request]] for request in right.minus])
    if right.lengths:
        lengths = np.array(right.lengths)
        scores = np.where(lengths == 0, -np.inf, scores / np.where(lengths == 0, 1.0, lengths))
    return Answered(scores, right.right)
