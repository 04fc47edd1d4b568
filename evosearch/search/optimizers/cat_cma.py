"""CatCMA with margin, for choices, whole numbers and floats (Hamano et al. 2025, arXiv:2504.07884), by cmaes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cmaes
import numpy as np
from numpy.typing import NDArray

from evosearch.recipe.shapes import Scalar
from evosearch.search.optimizer import Problem
from evosearch.search.optimizers import _cmaes
from evosearch.search.optimizers._generations import (
    SIGMA,
    WIDEST,
    Generations,
    Point,
    default_population,
    mean_rate,
    reflected,
    units,
)
from evosearch.search.optimizers.registry import optimizer
from evosearch.search.space.dimensions import Dimension, Genome

LONGEST = 1000  # whole numbers with more values are drawn as floats and rounded: a margin would have no effect
MARGIN = 1 - 0.73  # least probability that a draw differs somewhere from the most likely one


@dataclass(frozen=True)
class Drawn:
    """One draw.

    Attributes:
        solution: The library's: `_v_raw` (N,) of the normal distribution, `c` (K, most choices) one-hot.
        genome: The genome of the draw.
        numbers: (N,) whether each number had an effect.
        choices: (K,) whether each choice had an effect.
    """

    solution: cmaes.CatCMAwM.Solution
    genome: Genome
    numbers: NDArray[np.bool_]
    choices: NDArray[np.bool_]


@optimizer(
    "cat_cma",
    population=default_population,
    options={"sigma": SIGMA},
    categoricals=True,
    least_population=4,
    asynchronous=True,
)
class CatCma(Generations[Drawn]):
    """CMA-ES over every kind of dimension: a normal distribution over numbers, a categorical one over choices.

    Numbers are scaled to [0, 1] and reflected there; a margin keeps every whole number and every choice within reach.
    A categorical with `doubt` starts with probability 1 - doubt for the start's choice, any other one with equal
    probabilities.

    Nothing is learned from inactive values. An inactive choice is replaced by the current probabilities, an inactive
    number does not move the mean, and a number's standard deviation moves in proportion to how often it was active: a
    dimension that no draw of a generation used keeps its distribution. (Replacing an inactive number by the mean, which
    is simpler, would shrink its variance and the common step size.)

    In asynchronous mode it learns from λ results of any age, as `cma_es` does.
    """

    def __init__(self, problem: Problem, *, sigma: float) -> None:
        self._dimensions = problem.dimensions
        self._integers = [d for d in self._dimensions if _has_margin(d)]
        self._floats = [d for d in self._dimensions if d.kind != "categorical" and not _has_margin(d)]
        self._numbers = [*self._floats, *self._integers]  # the library's order
        self._categoricals = [d for d in self._dimensions if d.kind == "categorical"]
        self._strategy = self._new(problem, sigma)
        super().__init__(problem.population, problem.asynchronous)
        self._exhausted = False

    def stop_reason(self) -> str | None:
        """Return a reason if the normal distribution has converged and every choice is made, or if it diverged."""
        if self._exhausted:
            return "cat_cma diverged: its covariance matrix is numerically singular"
        if not self._updates or not self._numbers or not self._decided() or not self._strategy.should_stop():
            return None
        return f"cat_cma: converged, to steps of at most {_cmaes.standard_deviations(self._strategy).max():.1e}"

    def _new(self, problem: Problem, sigma: float) -> cmaes.CatCMAwM:
        numbers, start = len(self._numbers), problem.start
        levels = [[d.to_unit(value) for value in range(int(d.low), int(d.high) + 1)] for d in self._integers]
        strategy = cmaes.CatCMAwM(
            x_space=[[-np.inf, np.inf]] * len(self._floats) or None,  # bounds are kept by reflection
            z_space=levels or None,
            c_space=[len(d.choices) for d in self._categoricals] or None,
            population_size=problem.population,
            mean=np.array(units(self._numbers, start)) if numbers else None,
            sigma=min(sigma, WIDEST),
            cov=np.eye(numbers) if numbers else None,
            cat_param=self._first_probabilities(start) if self._categoricals else None,
            seed=problem.seed,
        )
        for row, level in enumerate(levels):
            # The library pads short rows with their last value and takes that for a border between two values: its
            # margin then guards that border, and the last value is never left. The last true border must end the row.
            strategy._z_lim[row, len(level) - 1 :] = strategy._z_lim[row, len(level) - 2]
        return strategy

    def _first_probabilities(self, start: Genome) -> NDArray[np.float64]:
        """Return (K, most choices): rows sum to 1, padded with zeros; no choice is below the margin's share."""
        rows = np.zeros((len(self._categoricals), max(len(d.choices) for d in self._categoricals)))
        margin = 1 - (1 - MARGIN) ** (1 / (len(self._integers) + len(self._categoricals)))
        for row, dimension in zip(rows, self._categoricals, strict=True):
            others = len(dimension.choices) - 1
            even = others / len(dimension.choices)
            doubt = even if dimension.doubt is None else min(max(dimension.doubt, margin), 1 - margin / others)
            row[: others + 1] = doubt / others
            row[dimension.choices.index(start[dimension.name])] = 1 - doubt
        return rows

    def _centre(self) -> Genome:
        found = self._numbers_at(self._strategy._mean) if self._numbers else {}
        if self._categoricals:
            found |= self._choices_of(self._strategy._q)
        return self._with_inactive(found)

    def _draw(self, n: int) -> list[Drawn]:
        return [self._one() for _ in range(n)]

    def _one(self) -> Drawn:
        strategy = self._strategy
        raw = chosen = None
        drawn: Genome = {}
        if self._numbers:
            raw = _cmaes.draw(strategy, strategy._A)
            drawn |= self._numbers_at(raw)
        if self._categoricals:
            chosen = strategy._sample_from_categorical()
            _complete(chosen, [len(d.choices) for d in self._categoricals])
            drawn |= self._choices_of(chosen)
        solution = cmaes.CatCMAwM.Solution(None, None, chosen, raw)
        genome = self._with_inactive(drawn)
        return Drawn(
            solution,
            genome,
            np.array([d.active(genome) for d in self._numbers], dtype=bool),
            np.array([d.active(genome) for d in self._categoricals], dtype=bool),
        )

    def _numbers_at(self, raw: Point) -> Genome:
        """Return the numbers at a point of the unbounded space."""
        floats, point = len(self._floats), reflected(raw)
        if self._integers:
            point[floats:] = self._strategy._discretization(raw[floats:])
        return {d.name: d.from_unit(unit) for d, unit in zip(self._numbers, point.tolist(), strict=True)}

    def _choices_of(self, rows: NDArray[Any]) -> Genome:
        """Return the choice with the largest number in each dimension's row."""
        taken = np.argmax(rows, axis=1).tolist()
        return {d.name: d.choices[index] for d, index in zip(self._categoricals, taken, strict=True)}

    def _with_inactive(self, drawn: Genome) -> Genome:
        """Return the values in the dimensions' order, inactive ones at their `init`."""
        found: dict[str, Scalar] = {}
        for dimension in sorted(self._dimensions, key=lambda d: d.active_if is not None):
            found[dimension.name] = drawn[dimension.name] if dimension.active(found) else dimension.init
        return {dimension.name: found[dimension.name] for dimension in self._dimensions}

    def _genome(self, sample: Drawn) -> Genome:
        return sample.genome

    def _learn(self, samples: Sequence[Drawn], losses: Sequence[float], lags: Sequence[int]) -> None:
        strategy = self._strategy
        strategy._cm = mean_rate(lags)
        solutions = [self._adjusted(sample, lag) for sample, lag in zip(samples, lags, strict=True)]
        if not self._numbers:
            self._exhausted = not _cmaes.tell(strategy, solutions, losses)
            return
        before = _Normal(strategy)
        self._exhausted = not _cmaes.tell(strategy, solutions, losses)
        if self._exhausted:
            return
        order = np.argsort(losses, kind="stable")
        active = np.stack([samples[index].numbers for index in order])  # (λ, N)
        if not active.all():
            self._undo_inactive(before, active, np.stack([solutions[index]._v_raw for index in order]))
        floats = len(self._floats)
        greatest = np.where(np.arange(len(self._numbers)) < floats, WIDEST, np.inf)  # the margin widens whole numbers
        _cmaes.limit_steps(strategy, np.zeros(len(self._numbers)), greatest)

    def _adjusted(self, sample: Drawn, lag: int) -> cmaes.CatCMAwM.Solution:
        """Prepare a draw for the library's `tell`: moved nearer if it is old, without inactive choices."""
        raw, chosen = sample.solution._v_raw, sample.solution.c
        if lag and self._numbers:
            raw = _cmaes.brought_near(self._strategy, raw, self._strategy._A)
        if self._categoricals:
            chosen = np.where(sample.choices[:, np.newaxis], chosen, self._strategy._q)  # the gradient c - q is 0
        return cmaes.CatCMAwM.Solution(None, None, chosen, raw)

    def _undo_inactive(self, before: "_Normal", active: NDArray[np.bool_], points: NDArray[np.float64]) -> None:
        """Undo the effect of inactive numbers on the distribution.

        Args:
            before: The distribution before the update.
            active: (λ, N) whether each number had an effect, best draw first.
            points: (λ, N) the draws, best first.
        """
        strategy, floats = self._strategy, len(self._floats)
        best = strategy._mu
        weights = strategy._weights[:best, np.newaxis]
        # Floats: m ← m - c_m Σ w_k (x_k - m) over the selected in which they were inactive
        steps = np.where(active[:best], 0.0, points[:best] - before.mean)[:, :floats]
        strategy._mean[:floats] -= strategy._cm * (weights * steps).sum(axis=0)
        # Whole numbers, which the library centres before selection and corrects after it: by the active draws' weight
        share = (weights * active[:best]).sum(axis=0)[floats:]
        strategy._mean[floats:] = before.mean[floats:] + share * (strategy._mean[floats:] - before.mean[floats:])
        inert = np.asarray(~active.any(axis=0))
        strategy._A[inert] = before.spread[inert]
        if self._integers:
            strategy._pmut[inert[floats:]] = before.mutation[inert[floats:]]
        ratio = before.steps / _cmaes.standard_deviations(strategy)
        _cmaes.scale(strategy, ratio ** (1.0 - active.mean(axis=0)))

    def _decided(self) -> bool:
        """Return whether every categorical has one choice with all the probability that the margin leaves."""
        if not self._categoricals:
            return True
        left = self._strategy._qmin * (self._strategy._K - 1)
        return bool((self._strategy._q.max(axis=1) >= 1 - 2 * left).all())


class _Normal:
    """The state of a strategy's normal distribution before an update."""

    def __init__(self, strategy: cmaes.CatCMAwM) -> None:
        self.mean: Point = strategy._mean.copy()
        self.steps = _cmaes.standard_deviations(strategy)
        self.spread: Point = strategy._A.copy()
        self.mutation: Point = strategy._pmut.copy() if hasattr(strategy, "_pmut") else np.zeros(0)


def _has_margin(dimension: Dimension) -> bool:
    return dimension.kind == "int" and 2 <= dimension.high - dimension.low + 1 <= LONGEST


def _complete(chosen: NDArray[np.bool_], counts: Sequence[int]) -> None:
    """Choose the last if the library chose none, since its probabilities may sum to a little less than 1."""
    for row in np.flatnonzero(~chosen.any(axis=1)).tolist():
        chosen[row, counts[row] - 1] = True
