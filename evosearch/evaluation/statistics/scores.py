"""Score cards: score, fitness and their standard errors from per-item columns. Pure.

    score   = 100 · Σ_t w_t (m_t − c_t) / (1 − c_t)      m_t item mean of the metric, c_t chance level, Σ w_t = 1
    fitness = Σ_t w_t g_t                                g_t item mean of the gold log-probability (or the score)

An unlearning target uses 1 − m instead of m, in a separate column (`1-acc`), and log(1 − p) instead of the gold
log-probability log p; the column of gold log-probabilities keeps log p. A guarded task's points are
100 (m − c) / (1 − c), whether or not it is part of the score.

Standard errors: for independent documents, se(mean) = s / √n where s has n − 1 degrees of freedom; if an item set has
groups, the group is the sampling unit, and the error is the delete-one-group jackknife's (see `units.py`).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from evosearch.errors import SuiteError
from evosearch.evaluation.statistics.units import units
from evosearch.evaluation.suites.suite import Suite
from evosearch.evaluation.suites.suite_task import SuiteTask
from evosearch.evaluation.types import GOLD, Column, Estimate, ItemBatch, ScoreCard, TaskScore, Tokens


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
    item sets, but do not contribute to score, fitness or their numbers of items.

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
    present = [task for task in suite.scoring if task.name in sizes]
    if not present:
        raise SuiteError(suite.where("tasks"), f"the {batch.split} batch has no item of a scoring task")
    n = sum(sizes[task.name] for task in present)
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
    task_fitness = {
        task.name: _in_points(task, _task_score(task.column, columns[task.name][task.column], groups[task.name]))
        for task in (*guarded, *present)
    }
    if suite.fitness == "score":
        fitness = Estimate(score, spread, n)
    else:
        golds = {task.name: _task_score(GOLD, _gold(task, columns[task.name]), groups[task.name]) for task in present}
        value = sum(weights[name] * golds[name].value for name in weights)
        fitness = Estimate(value, _spread(weights, golds), n)
        task_fitness |= {name: Estimate(gold.value, gold.stderr, gold.n) for name, gold in golds.items()}
    return ScoreCard(
        split=batch.split,
        batch_digest=batch.digest,
        columns=columns,
        set_digests={items.task: items.digest for items in batch.sets},
        tasks=tasks,
        score=score,
        fitness=fitness,
        tokens=tokens,
        seconds=dict(seconds),
        reported={task: dict(metrics) for task, metrics in (reported or {}).items()},
        guards=guards,
        score_stderr=spread,
        task_fitness=task_fitness,
    )


def log_unlikely(logprob: Column) -> Column:
    """Return log(1 − p) from log p, at most 0; 1 − p is at least 2⁻²³, the resolution of the float32 log p.

    Mächler 2012 (Accurately computing log(1 − exp(−|a|))): each of the two formulas is accurate on its side of log 2.
    """
    a = np.maximum(-np.asarray(logprob, dtype=np.float64), 2.0**-23)
    near = np.log(-np.expm1(-np.minimum(a, math.log(2.0))))
    return np.where(a < math.log(2.0), near, np.log1p(-np.exp(-a)))


def _gold(task: SuiteTask, columns: Mapping[str, Column]) -> Column:
    return log_unlikely(columns[GOLD]) if task.unlearn else columns[GOLD]


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
