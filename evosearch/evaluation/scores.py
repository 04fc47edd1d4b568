"""From per-item columns to the numbers that are ranked, compared and told. Pure.

    score   = 100 · Σ_t w_t (m_t − c_t) / (1 − c_t)      m_t item mean of the metric, c_t chance level, Σ w_t = 1
    fitness = Σ_t w_t g_t                                g_t item mean of the gold log-probability (or the score)

Standard errors treat documents as independent: se(mean) = s / √n with s of n − 1 degrees of freedom.
"""

import math
from collections.abc import Mapping

import numpy as np

from evosearch.errors import SuiteError
from evosearch.evaluation.suite import Suite
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
    tasks = {task.name: _task_score(task.metric, columns[task.name][task.metric]) for task in present}
    # d score / d m_t = 100 w_t / (1 − c_t)
    slopes = {task.name: 100 * weights[task.name] / (1 - task.chance) for task in present}
    score = sum(slopes[task.name] * (tasks[task.name].value - task.chance) for task in present)
    if suite.fitness == "score":
        fitness = Estimate(score, _spread(slopes, tasks), n)
    else:
        golds = {name: _task_score(GOLD, columns[name][GOLD]) for name in weights}
        value = sum(weights[name] * golds[name].value for name in weights)
        fitness = Estimate(value, _spread(weights, golds), n)
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
    )


def _task_score(metric: str, values: Column) -> TaskScore:
    n = len(values)
    stderr = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else 0.0  # one item says nothing of its spread
    return TaskScore(metric, float(np.mean(values)), stderr, n)


def _spread(slopes: Mapping[str, float], tasks: Mapping[str, TaskScore]) -> float:
    """Standard error of Σ slope_t · mean_t over independent tasks."""
    return math.sqrt(sum((slopes[name] * task.stderr) ** 2 for name, task in tasks.items()))
