"""Score cards: score, fitness and their standard errors from per-item columns. Pure.

    score   = 100 · Σ_t w_t (m_t − c_t) / (1 − c_t)      m_t item mean of the metric, c_t chance level, Σ w_t = 1
    fitness = see fitness.py

An unlearning target uses 1 − m instead of m, in a separate column (`1-acc`). A guarded task's points are
100 (m − c) / (1 − c), whether or not it is part of the score.

Standard errors: for independent documents, se(mean) = s / √n where s has n − 1 degrees of freedom; if an item set has
groups, the group is the sampling unit, and the error is the delete-one-group jackknife's (see `units.py`).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from evosearch.errors import SuiteError
from evosearch.evaluation.statistics.fitness import shares, told_column
from evosearch.evaluation.statistics.units import units
from evosearch.evaluation.suites.suite import Suite
from evosearch.evaluation.suites.suite_task import SuiteTask
from evosearch.evaluation.types import TEACHERS, Column, Estimate, ItemBatch, ScoreCard, TaskScore, Tokens


def make_card(
    suite: Suite,
    batch: ItemBatch,
    columns: Mapping[str, Mapping[str, Column]],
    tokens: Tokens,
    seconds: Mapping[str, float],
    reported: Mapping[str, Mapping[str, float]] | None = None,
) -> ScoreCard:
    """Build the score card of one candidate on one batch.

    If a batch has no items of some task, the weights of the others are renormalized. Report-only tasks have columns and
    item sets, but do not contribute to score, fitness or their numbers of items. If the right answers of a
    scoring task were not read, there is no score.

    Args:
        suite: The suite that defines the score.
        batch: The items that were scored.
        columns: Task → column → values, in the order of the batch's items.
        tokens: Token counts of the work done.
        seconds: Step → time in seconds.
        reported: Task → metric → lm-eval's aggregate.

    Raises:
        SuiteError: The batch has no item of a scoring task, or a guarded task's metric is not in [0, 1].
    """
    sizes = {items.task: len(items) for items in batch.sets if len(items)}
    if not any(task.name in sizes for task in suite.fitted):
        raise SuiteError(suite.where("tasks"), f"the {batch.split} batch has no item of a scoring task")
    present = [task for task in suite.scoring if task.name in sizes]
    if not all(task.metric in columns.get(task.name, ()) for task in present):
        present = []
    total = sum(task.weight for task in present)
    weights = {task.name: task.weight / total for task in present}
    unlearned = {task.name: _with_complement(columns[task.name], task.metric) for task in present if task.unlearn}
    columns = {**columns, **unlearned}
    groups = {items.task: items.groups for items in batch.sets}
    tasks = {
        task.name: _task_score(task.column, columns[task.name][task.column], groups[task.name]) for task in present
    }
    # d score / d m_t = 100 w_t / (1 − c_t)
    slopes = {task.name: 100 * weights[task.name] / (1 - task.chance) for task in present}
    score = sum(slopes[task.name] * (tasks[task.name].value - task.chance) for task in present)
    spread = _spread(slopes, tasks)
    guarded = [task for task in suite.guarded if task.name in sizes]
    guards = {task.name: _points(suite, task, columns[task.name]) for task in guarded}
    points = {
        task.name: _in_points(task, _task_score(task.column, columns[task.name][task.column], groups[task.name]))
        for task in guarded
    }
    fitness, told = fitness_of(suite, batch, columns)
    return ScoreCard(
        split=batch.split,
        batch_digest=batch.digest,
        columns=columns,
        set_digests={items.task: items.digest for items in batch.sets},
        tasks=tasks,
        score=score if present else None,
        fitness=fitness,
        tokens=tokens,
        seconds=dict(seconds),
        reported={task: dict(metrics) for task, metrics in (reported or {}).items()},
        guards=guards,
        score_stderr=spread,
        task_fitness={**points, **told},
    )


def fitness_of(
    suite: Suite, batch: ItemBatch, columns: Mapping[str, Mapping[str, Column]]
) -> tuple[Estimate, dict[str, Estimate]]:
    """Return the fitness, and task → its share of it, from the columns with the items' values.

    With teachers it is the score until these have answered.
    """
    sets = {items.task: items for items in batch.sets if len(items)}
    kind, tasks = suite.told, suite.fitted
    if kind == "teachers" and not any(TEACHERS in columns.get(name, ()) for name in sets):
        kind, tasks = "score", suite.scoring
    present = [task for task in tasks if task.name in sets]
    own, means = shares(kind, present), {}
    for task in present:
        column = told_column(kind, task)
        means[task.name] = _task_score(column, columns[task.name][column], sets[task.name].groups)
    value = sum(own[name].slope * (mean.value - own[name].origin) for name, mean in means.items())
    spread = _spread({name: share.slope for name, share in own.items()}, means)
    each = {
        name: Estimate(own[name].scale * (mean.value - own[name].origin), own[name].scale * mean.stderr, mean.n)
        for name, mean in means.items()
    }
    return Estimate(value, spread, sum(mean.n for mean in means.values())), each


def _with_complement(columns: Mapping[str, Column], metric: str) -> dict[str, Column]:
    return {**columns, f"1-{metric}": 1.0 - columns[metric]}


def _points(suite: Suite, task: SuiteTask, columns: Mapping[str, Column]) -> float:
    """A guarded task's points: 100 (m − c) / (1 − c)."""
    values = columns.get(task.column)
    if values is None or not ((values >= 0) & (values <= 1)).all():
        got = "is not one number per document" if values is None else "is not in [0, 1]"
        where = suite.where("tasks", suite.tasks.index(task), "metric")
        raise SuiteError(where, f"'{task.metric}' {got}, but '{task.name}' is guarded", "An item mean in [0, 1]")
    return 100 * (float(np.mean(values)) - task.chance) / (1 - task.chance)


def _in_points(task: SuiteTask, score: TaskScore) -> Estimate:
    """A task's metric as points: 100 (m − c) / (1 − c)."""
    slope = 100 / (1 - task.chance)
    return Estimate(slope * (score.value - task.chance), slope * score.stderr, score.n)


def _task_score(metric: str, values: Column, groups: Sequence[str] = ()) -> TaskScore:
    n = len(values)
    stderr = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else 0.0  # unknown for a single item
    if groups:
        stderr = math.sqrt(units(np.asarray(values, dtype=np.float64), groups).variance)
    return TaskScore(metric, float(np.mean(values)), stderr, n)


def _spread(slopes: Mapping[str, float], tasks: Mapping[str, TaskScore]) -> float:
    """Standard error of Σ slope_t · mean_t over independent tasks."""
    return math.sqrt(sum((slopes[name] * task.stderr) ** 2 for name, task in tasks.items()))
