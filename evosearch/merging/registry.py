"""The merge methods by name. A method is one file in `methods/`; its decorator is the only line that registers it."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from torch import Tensor

from evosearch.errors import RecipeError, did_you_mean
from evosearch.merging import methods
from evosearch.merging.parameters import Parameters
from evosearch.recipe.shapes import MethodSpec, Param


class Merge(Protocol):
    """A merge method: a pure function of tensors of one shape.

    Args:
        base: θ₀, or None where the recipe names none or the method takes none.
        parents: θᵢ, at least one; any floating type, on one device.
        p: the parameters at this tensor, and the arithmetic's type.

    Returns:
        A new tensor of the same shape, of type `p.dtype`; the inputs are left as they were.

    Raises:
        CandidateError: the parameters' values have no merge at this tensor.
    """

    def __call__(self, base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor: ...


@dataclass(frozen=True)
class Site:
    """One tensor of a merge that is still to be done; its inputs are read when they are called for."""

    base: Callable[[], Tensor] | None
    parents: tuple[Callable[[], Tensor], ...]
    parameters: Parameters


class Survey(Protocol):
    """A look at the whole models before the first tensor is merged, for methods that are not tensor by tensor.

    Args:
        sites: every tensor of the merge, in the output's order. Reading them all costs a pass over the models.

    Returns:
        One fact a site, which `merge` finds in `p.survey`; None where these parameters need no survey.
    """

    def __call__(self, sites: Sequence[Site]) -> Sequence[Any] | None: ...


@dataclass(frozen=True)
class Method:
    """A registered method: what a recipe must know of it, and what it does."""

    spec: MethodSpec
    merge: Merge
    survey: Survey | None = None


_methods: dict[str, Method] = {}


def merge_method(
    name: str,
    *,
    paper: str,
    parameters: Mapping[str, Param],
    needs_base: bool = False,
    takes_base: bool = True,
    models: tuple[int, int | None] = (1, None),
    random: bool = False,
    survey: Survey | None = None,
) -> Callable[[Merge], Merge]:
    """Register the decorated function as the method `name`; the arguments are MethodSpec's, and its survey."""

    def register(function: Merge) -> Merge:
        assert name not in _methods, f"two methods are called '{name}'"
        spec = MethodSpec(name, paper, dict(parameters), needs_base, takes_base, models, random)
        _methods[name] = Method(spec, function, survey)
        return function

    return register


@cache
def _load() -> None:
    for module in pkgutil.iter_modules(methods.__path__, methods.__name__ + "."):
        importlib.import_module(module.name)


def method(name: str) -> Method:
    """The method of that name.

    Raises:
        RecipeError: there is none.
    """
    _load()
    if name not in _methods:
        known = ", ".join(sorted(_methods))
        raise RecipeError(
            "merge_method", f"unknown method '{name}'", f"Known methods: {known}", did_you_mean(name, _methods)
        )
    return _methods[name]


def specs() -> Mapping[str, MethodSpec]:
    """Every method's spec by name: what `recipe.schema.check` takes."""
    _load()
    return {name: _methods[name].spec for name in sorted(_methods)}
