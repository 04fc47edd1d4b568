"""Problems, methods and optimizers: one file each in a folder of its kind; a file that is added is found."""

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

Json = dict[str, Any]
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Given:
    """Inputs of a problem, ready to be merged and scored.

    Attributes:
        base: Reference of the base.
        experts: References of the experts.
        suite: The suite, as in a suite file; the folders under `include` are absolute.
    """

    base: str
    experts: tuple[str, ...]
    suite: Json


@dataclass(frozen=True)
class Problem:
    """Models to merge, and documents that judge the result.

    Attributes:
        name: Name in results.
        family: Problems that share a table: their runs are seeds of one comparison.
        text: One line for the page.
        items: Item evaluations of a search; the backward pass of a gradient counts as two.
        groups: Groups of layers for methods with few numbers.
        scales: Scales of the baseline sweep.
        finalists: Candidates that are scored on `validation`.
        item_seconds: Duration of scoring one item on one thread, for the estimate before there are results.
        make: Prepares the inputs; takes a folder for files that it needs.
    """

    name: str
    family: str
    text: str
    items: int
    groups: int
    scales: tuple[float, ...]
    finalists: int
    item_seconds: float
    make: Callable[[Path], Given]


@dataclass(frozen=True)
class Method:
    """What is searched, and what the search is told.

    Attributes:
        text: One line for the page.
        weight: Makes the hole of an expert's weight, without bounds, for a problem.
        suite: Keys that replace those of the problem's suite; `documents` replaces single splits.
        baselines: Keys of the spec's `baselines`.
    """

    text: str
    weight: Callable[[Problem], Json]
    suite: Mapping[str, Any] = field(default_factory=dict)
    baselines: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Optimizer:
    """One optimizer with its options.

    Attributes:
        text: One line for the page.
        config: The spec's `optimizer`, without seed.
    """

    text: str
    config: Mapping[str, Any]


def problems() -> dict[str, Problem]:
    """All problems, by name; a file may have several."""
    found = [one for module in _modules("problems") for one in module.PROBLEMS]
    return {one.name: one for one in found}


def methods() -> dict[str, Method]:
    """All methods, by the name of their file."""
    return _named("methods", "METHOD", Method)


def optimizers() -> dict[str, Optimizer]:
    """All optimizers, by the name of their file."""
    return _named("optimizers", "OPTIMIZER", Optimizer)


def _named(folder: str, attribute: str, kind: type[Kind]) -> dict[str, Kind]:
    found = {}
    for module in _modules(folder):
        entry = getattr(module, attribute)
        assert isinstance(entry, kind), module.__name__
        found[module.__name__.rpartition(".")[2]] = entry
    return found


def _modules(folder: str) -> list[Any]:
    package = import_module(f"{__package__}.{folder}")
    names = [info.name for info in pkgutil.iter_modules(package.__path__) if not info.name.startswith("_")]
    return [import_module(f"{package.__name__}.{name}") for name in names]
