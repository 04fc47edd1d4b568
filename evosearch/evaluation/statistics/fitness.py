"""Kinds of fitness: the weighted means of item values that an optimizer maximizes. Pure.

| fitness | value of an item | column | of an unlearning target |
|---|---|---|---|
| expected_score | P(right answer), in [0, 1] | expected | 1 - P |
| margin | sigmoid(margin of the right answer), in [0, 1] | margin | 1 - sigmoid |
| score | the metric, in [0, 1] | its name | 1 - metric |
| gold_logprob | log p of the right answer, per token | gold_logprob | log(1 - p) |
| teachers | -KL(teacher ‖ candidate), in nats per answer position | teachers | has no teacher |

    fitness = Σ_t w_t k_t (v̄_t − c_t)          k_t = 100 / (1 − c_t), so the first three are in points of score;
                                               gold_logprob and teachers have k_t = 1 and no c_t

Values of an unlearning target are in a column of their own, such as `1-expected`. `item_fitness.py` computes all values
except those of the score.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evosearch.evaluation.suites.suite_task import SuiteTask
from evosearch.evaluation.types import EXPECTED, GOLD, MARGIN, TEACHERS, FitnessKind

COLUMNS: Mapping[FitnessKind, str] = {
    "expected_score": EXPECTED,
    "margin": MARGIN,
    "gold_logprob": GOLD,
    "teachers": TEACHERS,
}
_IN_POINTS: frozenset[FitnessKind] = frozenset({"expected_score", "margin", "score"})


@dataclass(frozen=True)
class Share:
    """One task's part of the fitness: weight · scale · (mean of the item values − origin)."""

    weight: float  # w_t; weights sum to 1 over the tasks
    scale: float  # k_t
    origin: float  # c_t

    @property
    def slope(self) -> float:
        """Derivative of the fitness by the task's mean."""
        return self.weight * self.scale


def told_column(kind: FitnessKind, task: SuiteTask) -> str:
    """Return the column with a scoring task's item values."""
    if kind == "score":
        return task.column
    return f"1-{COLUMNS[kind]}" if task.unlearn else COLUMNS[kind]


def shares(kind: FitnessKind, tasks: Sequence[SuiteTask]) -> dict[str, Share]:
    """Return task → its share of the fitness; the weights are normalized over the given tasks."""
    total = sum(task.weight for task in tasks)
    if kind in _IN_POINTS:
        return {task.name: Share(task.weight / total, 100 / (1 - task.chance), task.chance) for task in tasks}
    return {task.name: Share(task.weight / total, 1.0, 0.0) for task in tasks}
