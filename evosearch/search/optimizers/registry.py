"""The optimizers: found by file name, configured in the spec, created for a space.

A new optimizer is one new file beside this one, named as it is called in a spec, with one decorated class in it. Only
the file of the chosen optimizer is imported, so that a search by one library does not wait for the others.
"""

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal, Protocol, Self, TypeVar

from pydantic import Field, model_validator

from evosearch.documents import Document, join
from evosearch.errors import SpecError, did_you_mean
from evosearch.search.space.types import Dimension, Genome, Observation


class Optimizer(Protocol):
    """Asks for genomes and is told what they were worth.

    Deterministic in (seed, history of asks and tells), with a random generator of its own. `ask(n)` gives what `n`
    single asks would give, so that a search may be replayed in any portions. One that is registered as `asynchronous`
    can, where its config says so, be asked at any time and be told of any pending genomes in any order.
    """

    @property
    def population(self) -> int:
        """How many to ask together next: a generation, or what is left of one that a budget cut short."""

    def ask(self, n: int) -> list[Genome]:
        """The next `n` genomes, within bounds; they are pending until told."""

    def tell(self, observations: Sequence[Observation]) -> None:
        """What became of pending genomes, in ask order.

        Any that keeps its constraints (`Observation.violation` is 0) is better than any that breaks one; of those that
        do, the less violated is better; a failure is worse than all (Deb 2000, doi:10.1016/S0045-7825(99)00389-8).
        """

    def stop_reason(self) -> str | None:
        """Why asking on is of no use, or None."""


class OptimizerConfig(Document):
    """The spec's `optimizer`.

    `start` says from where: `init` (the holes' own `init`), `best_baseline` or `parents` (the weights of the best
    baseline, or of the best parent). `population` is how many candidates are asked together, `sigma` the first step
    size as a part of each dimension's range. `warm_start` names another search (or its folder or spec): the best that
    was found there is where this one starts, in place of `start`, and optimizers that learn from single trials are told
    its candidates. `diagonal` keeps the covariance diagonal, `restarts` is how often a converged search begins again
    with twice the population, `points` is how many values of a number a grid tries.
    """

    name: str = "cma_es"
    population: Annotated[int, Field(ge=1, le=100_000)] | None = None
    sigma: Annotated[float, Field(gt=0, le=1)] = 0.17
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    start: Literal["init", "best_baseline", "parents"] = "best_baseline"
    asynchronous: bool = False
    warm_start: Annotated[str, Field(min_length=1)] | None = None
    diagonal: bool = False
    restarts: Annotated[int, Field(ge=0, le=20)] = 0
    points: Annotated[int, Field(ge=2, le=10_000)] | None = None

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.name not in names():
            raise SpecError(
                "name",
                f"unknown optimizer '{self.name}'",
                f"Known: {', '.join(names())}",
                did_you_mean(self.name, names()),
            )
        entry = load(self.name)
        if self.asynchronous and not entry.asynchronous:
            others = ", ".join(name for name in names() if load(name).asynchronous)
            what = f"{self.name} must know of all that it asked before it asks on"
            raise SpecError("asynchronous", what, f"With: {others}", "Leave it out, or take one of these")
        for key, what in OPTIONS.items():
            if key in self.model_fields_set and key not in entry.options:
                raise SpecError(key, f"{self.name} takes no {what}", next="Leave it out")
        if self.warm_start is not None and "start" in self.model_fields_set:
            what = f"got '{self.start}' with warm_start, and a search starts from one place"
            raise SpecError("start", what, next="Leave out one of the two")
        least = entry.least_population
        if self.population is not None and self.population < least:
            raise SpecError("population", f"got {self.population}", f"{self.name} needs at least {least}")
        return self


# Options of some optimizers → what they are in words
OPTIONS = {
    "sigma": "step size",
    "diagonal": "covariance",
    "restarts": "restarts",
    "points": "grid",
}


@dataclass(frozen=True)
class Problem:
    """What an optimizer is made for.

    Attributes:
        start: the genome a distribution is centred on, or that an optimizer without one asks first.
        objectives: how many values an observation has.
        known: what another search found out, in this space's dimensions, for optimizers that learn from single trials;
            best first, none of them pending or to be counted.
    """

    dimensions: tuple[Dimension, ...]
    start: Genome
    objectives: int = 1
    known: tuple[Observation, ...] = ()


Factory = Callable[[OptimizerConfig, Problem], Optimizer]


@dataclass(frozen=True)
class Entry:
    """An optimizer as its file declares it."""

    name: str
    factory: Factory
    options: frozenset[str]  # of OptimizerConfig, beyond those every optimizer takes
    categoricals: bool  # takes dimensions with choices
    least_population: int
    asynchronous: bool = False  # may be asked before it is told
    objectives: bool = False  # takes several
    minibatches: bool = True  # candidates of different generations may be scored on different parts of the items


T = TypeVar("T", bound=Factory)
_entries: dict[str, Entry] = {}


def optimizer(
    name: str,
    *,
    options: Sequence[str] = (),
    categoricals: bool = False,
    least_population: int = 1,
    asynchronous: bool = False,
    objectives: bool = False,
    minibatches: bool = True,
) -> Callable[[T], T]:
    """Register a class whose constructor takes (config, problem) under its file's name.

    The constructor raises a SpecError that names the key below `optimizer` where it is not made for the problem.
    """

    def register(factory: T) -> T:
        assert factory.__module__.rsplit(".", 1)[-1] == name, f"optimizer {name} belongs in {name}.py"
        _entries[name] = Entry(
            name, factory, frozenset(options), categoricals, least_population, asynchronous, objectives, minibatches
        )
        return factory

    return register


@cache
def names() -> tuple[str, ...]:
    """Every optimizer, by the files that lie here; nothing is imported."""
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return tuple(sorted(name for name in found if name != "registry" and not name.startswith("_")))


def load(name: str) -> Entry:
    """The entry of a known optimizer, its file imported."""
    if name not in _entries:
        import_module(f"{__package__}.{name}")
    return _entries[name]


def create(
    config: OptimizerConfig,
    dimensions: Sequence[Dimension],
    start: Genome,
    where: str = "optimizer",
    objectives: int = 1,
    known: Sequence[Observation] = (),
) -> Optimizer:
    """The configured optimizer over these dimensions.

    Args:
        start, objectives, known: see `Problem`.
        where: what to put before the key in an error, as `night.yaml: optimizer`.

    Raises:
        SpecError: the optimizer takes no categorical dimensions, or one objective, and there are some; or it has other
            reasons not to be made for this space.
    """
    entry = load(config.name)
    categorical = [dimension.name for dimension in dimensions if dimension.kind == "categorical"]
    if categorical and not entry.categoricals:
        others = [name for name in names() if load(name).categoricals]
        have = "have" if len(categorical) > 1 else "has"
        what = f"{config.name} takes numbers only, and {_listed(categorical)} {have} choices"
        raise SpecError(join(where, "name"), what, f"Use one of: {', '.join(others)}")
    if objectives > 1 and not entry.objectives:
        others = [name for name in names() if load(name).objectives]
        what = f"{config.name} takes one objective, and there are {objectives}"
        raise SpecError(join(where, "name"), what, f"Use one of: {', '.join(others)}")
    assert_in(dimensions, start)
    try:
        return entry.factory(config, Problem(tuple(dimensions), start, objectives, tuple(known)))
    except SpecError as error:
        raise SpecError(join(where, error.where), error.what, error.allowed, error.next) from None


def assert_in(dimensions: Sequence[Dimension], genome: Mapping[str, object]) -> None:
    """What we ask for or start from lies in the space."""
    assert list(genome) == [dimension.name for dimension in dimensions], "a genome is ordered as the dimensions"
    for dimension in dimensions:
        value = genome[dimension.name]
        assert isinstance(value, float | int | str), f"{dimension.name} = {value!r}"
        assert dimension.contains(value), f"{dimension.name} = {value!r}"


def _listed(found: Sequence[str]) -> str:
    return found[0] if len(found) == 1 else f"{', '.join(found[:3])}{' and more' if len(found) > 3 else ''}"
