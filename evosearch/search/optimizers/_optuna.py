"""What the optimizers on Optuna share: dimensions and observations in its words, studies in memory."""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import Trial

from evosearch.recipe.shapes import Scalar
from evosearch.search.optimizers.registry import Problem
from evosearch.search.space.types import Dimension, Observation

optuna.logging.set_verbosity(optuna.logging.ERROR)  # its studies are in memory, and their news nobody's business


def study(sampler: BaseSampler, objectives: int) -> Study:
    """A study in memory of so many objectives, larger is better."""
    return optuna.create_study(directions=["maximize"] * objectives, sampler=sampler)


def suggest(trial: Trial, dimension: Dimension) -> Scalar:
    """The sampler's value of one dimension."""
    if dimension.kind == "categorical":
        return trial.suggest_categorical(dimension.name, dimension.choices)
    if dimension.kind == "int":
        low, high = int(dimension.low), int(dimension.high)
        return int(trial.suggest_int(dimension.name, low, high, log=dimension.log))
    return dimension.clip(float(trial.suggest_float(dimension.name, dimension.low, dimension.high, log=dimension.log)))


def distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension as `suggest` describes it to Optuna."""
    if dimension.kind == "categorical":
        return CategoricalDistribution(dimension.choices)
    if dimension.kind == "int":
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def known(problem: Problem) -> list[Observation]:
    """What is known from elsewhere and says something of these objectives: failures, and what has as many values."""
    return [one for one in problem.known if one.state == "failed" or len(one.objectives) == problem.objectives]


def values(observation: Observation) -> list[float]:
    """The objectives of a scored candidate."""
    return [estimate.value for estimate in observation.objectives]


def constraints(observation: Observation) -> dict[str, float]:
    """Violations as Optuna ranks them (Deb 2000): none where all are kept, and a failure breaks more than anybody."""
    if observation.state == "failed":
        return {"failed": math.inf}
    return {"violation": observation.violation} if observation.violation > 0 else {}


def distributions(dimensions: Iterable[Dimension]) -> dict[str, BaseDistribution]:
    return {dimension.name: distribution(dimension) for dimension in dimensions}


def actives(dimensions: Sequence[Dimension], genome: dict[str, Scalar]) -> list[Dimension]:
    """The dimensions that have an effect in a genome."""
    return [dimension for dimension in dimensions if dimension.active(genome)]


@contextmanager
def experimental() -> Iterator[None]:
    """Parts that Optuna calls experimental: its version is pinned, and our own law tests cover what they do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
