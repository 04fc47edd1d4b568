"""From per-item columns to the numbers that are ranked, compared and told. Pure.

    score   = 100 · Σ_t w_t (m_t − c_t) / (1 − c_t)      m_t item mean of the metric, c_t chance level, Σ w_t = 1
    fitness = Σ_t w_t g_t                                g_t item mean of the gold log-probability (or the score)

A task that is to be forgotten has 1 − m in place of m, as a column of its own (`1-acc`), and log(1 − p) in place of the
gold log-probability log p; the column of gold log-probabilities keeps log p. Guarded tasks have points of their own,
100 (m − c) / (1 − c), whether they are part of the score or only reported.

Standard errors: where documents are independent, se(mean) = s / √n with s of n − 1 degrees of freedom; where an item
set has groups, a group is what was drawn, and the error is that of leaving out one group at a time (see units).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from evosearch.errors import SuiteError
from evosearch.evaluation.statistics.units import units
from evosearch.evaluation.suites.suite import Suite, SuiteTask
from evosearch.evaluation.types import GOLD, Column, Estimate, ItemBatch, ScoreCard, TaskScore, Tokens


def make_card(
    suite: Suite,
    batch: ItemBatch,
    columns: Mapping[str, Mapping[str, Column]],
    tokens: Tokens,
    seconds: Mapping[str, float],
    reported: Mapping[str, Mapping[str, float]] | None = None,
) -> ScoreCard:
    """The score card of one candidate on one batch.

    A batch without items of some task is scored by the tasks it has, their weights scaled to sum one again. Tasks that
    are only reported have columns and item sets, and no part in score, fitness or their numbers of items.

    Args:
        columns: task → column → values, in the order of the batch's items.
        seconds: what took how long.
        reported: task → metric → value, for people to read.

    Raises:
        SuiteError: the batch has no item of a task that scores.
    """
    sizes = {items.task: len(items) for items in batch.sets if len(items)}
    present = [task for task in suite.scoring if task.name in sizes]
    if not present:
        raise SuiteError(suite.where("tasks"), f"no item of the {batch.split} batch is of a task that scores")
    n = sum(sizes[task.name] for task in present)
    total = sum(task.weight for task in present)
    weights = {task.name: task.weight / total for task in present}
    forgotten = {task.name: _with_forgotten(columns[task.name], task.metric) for task in present if task.forget}
    columns = {**columns, **forgotten}
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
    """log(1 − p) of log p, at most 0. Where 1 − p is lost in float32, which the log p come from, it is taken as 2⁻²³.

    Mächler 2012 (Accurately computing log(1 − exp(−|a|))): each of the two forms is exact on its side of log 2.
    """
    a = np.maximum(-np.asarray(logprob, dtype=np.float64), 2.0**-23)
    near = np.log(-np.expm1(-np.minimum(a, math.log(2.0))))
    return np.where(a < math.log(2.0), near, np.log1p(-np.exp(-a)))


def _gold(task: SuiteTask, columns: Mapping[str, Column]) -> Column:
    return log_unlikely(columns[GOLD]) if task.forget else columns[GOLD]


def _with_forgotten(columns: Mapping[str, Column], metric: str) -> dict[str, Column]:
    return {**columns, f"1-{metric}": 1.0 - columns[metric]}


def _points(suite: Suite, task: SuiteTask, columns: Mapping[str, Column]) -> float:
    """A guarded task's own score: 100 (m − c) / (1 − c)."""
    values = columns.get(task.column)
    if values is None or not ((values >= 0) & (values <= 1)).all():
        got = "is not one number for every document" if values is None else "is not in [0, 1]"
        where = suite.where("tasks", suite.tasks.index(task), "metric")
        raise SuiteError(where, f"'{task.metric}' {got}, and '{task.name}' is guarded", "An item mean in [0, 1]")
    return 100 * (float(np.mean(values)) - task.chance) / (1 - task.chance)


def _in_points(task: SuiteTask, score: TaskScore) -> Estimate:
    """A task's metric as points: 100 (m − c) / (1 − c)."""
    slope = 100 / (1 - task.chance)
    return Estimate(slope * (score.value - task.chance), slope * score.stderr, score.n)


def _task_score(metric: str, values: Column, groups: Sequence[str] = ()) -> TaskScore:
    n = len(values)
    stderr = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else 0.0  # one item says nothing of its spread
    if groups:
        stderr = math.sqrt(units(np.asarray(values, dtype=np.float64), groups).variance)
    return TaskScore(metric, float(np.mean(values)), stderr, n)


def _spread(slopes: Mapping[str, float], tasks: Mapping[str, TaskScore]) -> float:
    """Standard error of Σ slope_t · mean_t over independent tasks."""
    return math.sqrt(sum((slopes[name] * task.stderr) ** 2 for name, task in tasks.items()))
