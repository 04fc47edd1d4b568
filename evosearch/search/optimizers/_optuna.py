"""Conversion of dimensions and observations to Optuna's, shared by the optimizers that use it."""

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
from evosearch.search.optimizer import Problem
from evosearch.search.space.dimensions import Dimension, Observation

optuna.logging.set_verbosity(optuna.logging.ERROR)  # it reports every study and trial


def study(sampler: BaseSampler, objectives: int) -> Study:
    """Create a study in memory; every objective is maximized."""
    return optuna.create_study(directions=["maximize"] * objectives, sampler=sampler)


def suggest(trial: Trial, dimension: Dimension) -> Scalar:
    """Return the sampler's value of one dimension."""
    if dimension.kind == "categorical":
        return trial.suggest_categorical(dimension.name, dimension.choices)
    if dimension.kind == "int":
        low, high = int(dimension.low), int(dimension.high)
        return int(trial.suggest_int(dimension.name, low, high, log=dimension.log))
    return dimension.clip(float(trial.suggest_float(dimension.name, dimension.low, dimension.high, log=dimension.log)))


def distribution(dimension: Dimension) -> BaseDistribution:
    """Return the distribution that `suggest` uses for a dimension."""
    if dimension.kind == "categorical":
        return CategoricalDistribution(dimension.choices)
    if dimension.kind == "int":
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def known(problem: Problem) -> list[Observation]:
    """Return the known observations that apply to these objectives: failures, and those with as many values."""
    return [one for one in problem.known if one.state == "failed" or len(one.objectives) == problem.objectives]


def values(observation: Observation) -> list[float]:
    """Return the objectives of a scored candidate."""
    return [estimate.value for estimate in observation.objectives]


def constraints(observation: Observation) -> dict[str, float]:
    """Return violations as Optuna ranks them (Deb 2000): none if all are kept, infinite for a failure."""
    if observation.state == "failed":
        return {"failed": math.inf}
    return {"violation": observation.violation} if observation.violation > 0 else {}


def distributions(dimensions: Iterable[Dimension]) -> dict[str, BaseDistribution]:
    """Return the distribution of each dimension, by name."""
    return {dimension.name: distribution(dimension) for dimension in dimensions}


def actives(dimensions: Sequence[Dimension], genome: dict[str, Scalar]) -> list[Dimension]:
    """Return the dimensions that have an effect in a genome."""
    return [dimension for dimension in dimensions if dimension.active(genome)]


@contextmanager
def experimental() -> Iterator[None]:
    """Silence warnings about experimental features: Optuna's version is pinned, and the law tests cover them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
