"""Whole searches on simulated models: candidates, finalists, best baseline and gate, as `promotion/` has them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks._gate_worlds.world import Task, answers
from evosearch.promotion.finalists import BASELINE_KINDS, Standing, best, choose, kind_of
from evosearch.promotion.gate import Contender, GateDecision, Measure, Role, decide

SEARCH_ITEMS, VALIDATION_ITEMS = 60, 150  # of each task
FINALISTS = 8
BASE_BELOW = 20.0  # points of score between base and best parent: the base never stands in the way
BASELINE_BELOW = 10.0  # the same for a baseline that is not equal to the best parent
TOGETHER = 25  # searches drawn at once


@dataclass(frozen=True)
class Setting:
    """What is simulated. With `gain` 0 every candidate equals the best parent, and every promotion is wrong."""

    name: str
    tasks: tuple[Task, ...]
    gain: float = 0.0  # points of score that every candidate truly has over the best parent
    baseline_equal: bool = True  # the baselines equal the best parent in truth, so that either may be promoted wrongly
    candidates: int = 40

    @property
    def measure(self) -> Measure:
        """The gate's, without the intervals that decide nothing."""
        named = {f"task{index}": task for index, task in enumerate(self.tasks)}
        groups = {name: task.group_names() for name, task in named.items() if task.groups}
        weights = {name: task.weight for name, task in named.items()}
        return Measure(weights, {name: task.chance for name, task in named.items()}, groups or None, cross_checks=False)

    @property
    def items(self) -> int:
        return sum(task.items for task in self.tasks)

    def models(self) -> dict[str, float]:
        """Name → points of score above the best parent, in truth."""
        baseline = 0.0 if self.baseline_equal else -BASELINE_BELOW
        known = {"base": -BASE_BELOW, "parent:0": 0.0, "uniform": baseline, "scale:0.50": baseline}
        return known | {str(index): self.gain for index in range(self.candidates)}


@dataclass(frozen=True)
class Ended:
    """One simulated search."""

    decision: GateDecision
    finalist: Contender
    best_parent: Contender


def simulate(setting: Setting, searches: int, seed: int) -> Iterator[Ended]:
    """Searches of a setting, each on its own items and models.

    A model's answers on one split say nothing of its answers on another but through its true accuracy, so validation
    and test are drawn for those that get there only.
    """
    rng = np.random.default_rng(seed)
    measure, above = setting.measure, setting.models()
    others = {name: points for name, points in above.items() if not name.isdigit()}
    for start in range(0, searches, TOGETHER):
        count = min(TOGETHER, searches - start)
        search = _scores(setting, _split(setting, list(above.values()), count, rng, SEARCH_ITEMS))
        finalists = [setting.gain] * FINALISTS
        validation = _scores(setting, _split(setting, [*others.values(), *finalists], count, rng, VALIDATION_ITEMS))
        test = _split(setting, [others["base"], others["parent:0"], others["uniform"], setting.gain], count, rng)
        for index in range(count):
            entries = _standings(list(above), search[index], validation[index])
            yield _end(entries, {f"task{t}": right[index] for t, right in enumerate(test)}, measure)


def _split(
    setting: Setting, above: Sequence[float], searches: int, rng: np.random.Generator, items: int | None = None
) -> list[NDArray[np.float32]]:
    """For each task, (searches, models, items): as many items as are asked for, or its test split's, in its groups."""
    drawn = []
    for task in setting.tasks:
        # a point of score on every task is (1 - c) / 100 of accuracy
        accuracies = np.clip(task.accuracy + np.array(above) * (1 - task.chance) / 100, 1e-3, 1 - 1e-3)
        drawn.append(answers(task, accuracies, searches, items or task.items, rng, grouped=items is None))
    return drawn


def _scores(setting: Setting, answered: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    """(searches, models) 100 · Σ w (m - c) / (1 - c)."""
    return sum(
        100 * task.weight * (right.mean(axis=2, dtype=np.float64) - task.chance) / (1 - task.chance)
        for task, right in zip(setting.tasks, answered, strict=True)
    )


def _standings(names: list[str], search: NDArray[np.float64], validation: NDArray[np.float64]) -> list[Standing]:
    """As `finalists.standings` reads them from a ledger: with a score on validation, those that went there.

    Args:
        search: (models,) of all, in the order of `names`.
        validation: of those that are no candidates, in their order, and then of the finalists.
    """
    entries = [
        Standing(name, f"id-{name}", kind_of(name), {"search": float(on)}, {"search": float(on)})
        for name, on in zip(names, search, strict=True)
    ]
    going = [entry for entry in entries if entry.kind != "candidate"]
    going += [entry for entry in choose(entries, FINALISTS) if entry.kind == "candidate"]
    return [
        Standing(e.candidate, e.recipe_id, e.kind, {**e.scores, "validation": float(on)}, e.fitness)
        for e, on in zip(going, validation, strict=True)
    ]


def _end(entries: list[Standing], test: Mapping[str, NDArray[np.float32]], measure: Measure) -> Ended:
    """The gate's decision.

    Args:
        test: task → (4, items) answers of base, best parent, best baseline and finalist.
    """
    finalist, baseline = best(entries, "validation", ("candidate",)), best(entries, "validation", BASELINE_KINDS)
    assert finalist is not None
    assert baseline is not None
    roles: list[tuple[str, Role]] = [("base", "base"), ("parent:0", "parent"), (baseline.candidate, "baseline")]
    base, parent, simple, chosen = (
        Contender(name, role, {task: right[at].astype(np.float64) for task, right in test.items()}, f"id-{name}")
        for at, (name, role) in enumerate([*roles, (finalist.candidate, "finalist")])
    )
    return Ended(decide(chosen, [base, parent, simple], measure), chosen, parent)
