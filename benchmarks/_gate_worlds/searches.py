"""Simulated searches with the real selection and gate: candidates, finalists, best baseline, decision."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks._gate_worlds.world import Task, answers
from evosearch.promotion.finalists import BASELINE_KINDS, Standing, best, choose, kind_of
from evosearch.promotion.gate import Contender, GateDecision, Measure, Role, decide

SEARCH_ITEMS, VALIDATION_ITEMS = 60, 150  # per task
FINALISTS = 8
BASE_BELOW = 20.0  # points of score between base and best parent, so that the base never affects a decision
BASELINE_BELOW = 10.0  # the same for baselines that are worse than the best parent
TOGETHER = 25  # searches per draw


@dataclass(frozen=True)
class Setting:
    """Parameters of a simulation. If `gain` is 0, every candidate equals the best parent: every promotion is wrong."""

    name: str
    tasks: tuple[Task, ...]
    gain: float = 0.0  # true lead of every candidate over the best parent, points of score
    baseline_equal: bool = True  # baselines truly equal the best parent, so their promotion is wrong too
    candidates: int = 40

    @property
    def measure(self) -> Measure:
        """The gate's measure, without the bootstrap intervals, which do not affect decisions."""
        named = {f"task{index}": task for index, task in enumerate(self.tasks)}
        groups = {name: task.group_names() for name, task in named.items() if task.groups}
        weights = {name: task.weight for name, task in named.items()}
        return Measure(weights, {name: task.chance for name, task in named.items()}, groups or None, cross_checks=False)

    @property
    def items(self) -> int:
        """Number of test items of all tasks."""
        return sum(task.items for task in self.tasks)

    def models(self) -> dict[str, float]:
        """Name → true lead over the best parent, points of score."""
        baseline = 0.0 if self.baseline_equal else -BASELINE_BELOW
        known = {"base": -BASE_BELOW, "parent:0": 0.0, "uniform": baseline, "scale:0.50": baseline}
        return known | {str(index): self.gain for index in range(self.candidates)}


@dataclass(frozen=True)
class Ended:
    """Outcome of one simulated search."""

    decision: GateDecision
    finalist: Contender
    best_parent: Contender


def simulate(setting: Setting, searches: int, seed: int) -> Iterator[Ended]:
    """Simulate searches of a setting, each with its own items and models.

    Given a model's true accuracy, its answers on different splits are independent. Answers on validation and test are
    therefore drawn only for the models that are scored there.
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
    """Answers (searches, models, items) for each task: `items` of them, or the grouped test split if None."""
    drawn = []
    for task in setting.tasks:
        # one point of score is (1 - c) / 100 of accuracy
        accuracies = np.clip(task.accuracy + np.array(above) * (1 - task.chance) / 100, 1e-3, 1 - 1e-3)
        drawn.append(answers(task, accuracies, searches, items or task.items, rng, grouped=items is None))
    return drawn


def _scores(setting: Setting, answered: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    """Scores 100 · Σ w (m - c) / (1 - c), (searches, models)."""
    points = [
        100 * task.weight * (right.mean(axis=2, dtype=np.float64) - task.chance) / (1 - task.chance)
        for task, right in zip(setting.tasks, answered, strict=True)
    ]
    return np.asarray(np.sum(points, axis=0, dtype=np.float64))


def _standings(names: list[str], search: NDArray[np.float64], validation: NDArray[np.float64]) -> list[Standing]:
    """Standings of the models scored on validation, as `finalists.standings` reads them from a ledger.

    Args:
        names: Names of all models.
        search: Scores of all models on search, (models,), in the order of `names`.
        validation: Scores of the baselines in their order, then of the finalists.
    """
    entries = [
        Standing(name, f"id-{name}", kind_of(name), {"search": float(on)}, {"search": float(on)})
        for name, on in zip(names, search, strict=True)
    ]
    validated = [entry for entry in entries if entry.kind != "candidate"]
    validated += [entry for entry in choose(entries, FINALISTS) if entry.kind == "candidate"]
    return [
        Standing(e.candidate, e.recipe_id, e.kind, {**e.scores, "validation": float(on)}, e.fitness)
        for e, on in zip(validated, validation, strict=True)
    ]


def _end(entries: list[Standing], test: Mapping[str, NDArray[np.float32]], measure: Measure) -> Ended:
    """Choose the finalist and let the gate decide.

    Args:
        entries: Standings on search and validation.
        test: Task → answers (4, items) of base, best parent, best baseline and finalist.
        measure: The gate's measure.
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
