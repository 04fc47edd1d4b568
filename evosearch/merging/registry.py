"""Registry of merge methods.

A built-in method is one file in `methods/`; its `@merge_method` decorator is the only line that registers it. Other
packages add methods with an entry point of the group `evosearch.merge_methods`, whose value is a decorated function or
a module that contains some:

    [project.entry-points."evosearch.merge_methods"]
    my_method = "my_package.my_module"
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Protocol

from torch import Tensor

from evosearch.errors import RecipeError, did_you_mean
from evosearch.merging import equal_norms, methods
from evosearch.merging.method_parameters import Parameters
from evosearch.plugins import load_entry_points
from evosearch.recipe.shapes import STATISTICS, MergekitForm, MethodSpec, Param

ENTRY_POINTS = "evosearch.merge_methods"


class Merge(Protocol):
    """A merge method: a pure function of tensors of one shape."""

    def __call__(self, base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
        """Merge one tensor.

        Args:
            base: θ₀; None if the recipe has no base or the method does not take one.
            parents: θᵢ, at least one, of any floating type, all on one device.
            p: Parameters at this tensor, and the type of the arithmetic.

        Returns:
            A new tensor of the same shape, of type `p.dtype`. The inputs are not changed.

        Raises:
            CandidateError: The merge is undefined for these parameter values.
        """
        ...


@dataclass(frozen=True)
class Site:
    """One tensor of a planned merge, with loaders for its inputs.

    Attributes:
        base: Loads θ₀; None without a base.
        parents: Load θᵢ.
        parameters: Parameters at this tensor.
        statistics: Load the statistics at this tensor, see `Parameters.statistics`.
    """

    base: Callable[[], Tensor] | None
    parents: tuple[Callable[[], Tensor], ...]
    parameters: Parameters
    statistics: tuple[Callable[[], Tensor], ...] = ()


class Survey(Protocol):
    """A pass over all tensors before the first one is merged, for methods that do not work tensor by tensor."""

    def __call__(self, sites: Sequence[Site]) -> Sequence[Any] | None:
        """Survey the models.

        Args:
            sites: Every tensor of the merge, in the output's order. Loading all of them reads every model once.

        Returns:
            One fact per site, which `merge` receives as `p.survey`; None if these parameters need no survey.
        """
        ...


Slope = float | tuple[float, ...]  # derivative in a shared parameter, or in a parameter of each parent


class Derivative(Protocol):
    """The derivative of a merge in its parameters, contracted with a gradient. Does not change its inputs."""

    def __call__(
        self, base: Tensor | None, parents: Sequence[Tensor], p: Parameters, grad: Tensor
    ) -> Mapping[str, Slope]:
        """Return dL/dp for a loss L of the merged tensor, at the parameters `p`.

        Decisions between entries (kept or dropped, elected or not) are held fixed.

        Args:
            base: θ₀, as in `Merge`.
            parents: θᵢ, as in `Merge`.
            p: Parameters at this tensor; with the survey's fact, as in `Merge`.
            grad: dL/dθ of the merged tensor θ: of its shape, of any floating type, on its device.

        Returns:
            Differentiable parameter → one number per parent if it is `per_model`, else one number. Sums are made in
            float64 (`kernels.totals`), and are NaN if a term is not finite.
        """
        ...


@dataclass(frozen=True)
class Factors:
    """The factors fᵢ of a merge θ₀ + Σ fᵢτᵢ with τᵢ = θᵢ − θ₀, which are the same for all entries of a tensor.

    Adapters can be merged and differentiated by their factors alone, without the dense τᵢ.

    Attributes:
        of: Parameters at a tensor → fᵢ, one per parent.
        chain: (parameters at a tensor, dL/dfᵢ, one per parent) → dL/dp, in the form of `Derivative`.
    """

    of: Callable[[Parameters], Sequence[float]]
    chain: Callable[[Parameters, Sequence[float]], Mapping[str, Slope]]


@dataclass(frozen=True)
class Method:
    """A registered method: its description and its functions."""

    spec: MethodSpec
    merge: Merge
    survey: Survey | None = None
    derivative: Derivative | None = None
    factors: Factors | None = None

    def factors_at(self, p: Parameters) -> Factors | None:
        """Return the factors if they describe the merge at these parameters: not with `norm: equal`."""
        return None if equal_norms.applies(p) else self.factors


_methods: dict[str, Method] = {}


def merge_method(
    name: str,
    *,
    paper: str,
    summary: str,
    parameters: Mapping[str, Param],
    needs_base: bool = False,
    takes_base: bool = True,
    models: tuple[int, int | None] = (1, None),
    random: bool = False,
    mergekit: MergekitForm | None = None,
    survey: Survey | None = None,
    differentiable: tuple[str, ...] = (),
    derivative: Derivative | None = None,
    factors: Factors | None = None,
    norms: bool = False,
    statistic: str = "",
    aligns: bool = False,
) -> Callable[[Merge], Merge]:
    """Register the decorated function as a merge method. The arguments are those of `MethodSpec` and `Method`.

    With `norms`, the method also has the options `norm` and `norm_scope` (`equal_norms.py`). Its merge must be
    θ₀ + f(τ₁, τ₂, …) with τᵢ = θᵢ − θ₀.

    Raises:
        ValueError: A method of that name is already registered, `differentiable` does not fit the method, or there is
            no such statistic.
    """
    if name in _methods:
        raise ValueError(f"a merge method named '{name}' is already registered")
    for parameter in differentiable:
        if parameter not in parameters or parameters[parameter].kind != "float":
            raise ValueError(f"merge method '{name}': differentiable: '{parameter}' is not a float parameter of it")
    if bool(differentiable) != (derivative is not None):
        raise ValueError(f"merge method '{name}': differentiable and derivative must be given together")
    if norms:
        parameters, mergekit = {**parameters, **equal_norms.PARAMETERS}, equal_norms.in_mergekit(mergekit)
        survey = equal_norms.surveying(survey)
        derivative = None if derivative is None else equal_norms.differentiating(derivative)
    if statistic and statistic not in STATISTICS:
        raise ValueError(f"merge method '{name}': unknown statistic '{statistic}', not one of {', '.join(STATISTICS)}")
    flags = (needs_base, takes_base, models, random)
    spec = MethodSpec(name, paper, dict(parameters), *flags, summary, mergekit, differentiable, statistic, aligns)

    def register(function: Merge) -> Merge:
        function = equal_norms.merging(function) if norms else function
        _methods[name] = Method(spec, function, survey, derivative, factors)
        return function

    return register


def method(name: str) -> Method:
    """Return the method of that name.

    Raises:
        RecipeError: No such method is registered, or a third-party method cannot be loaded.
    """
    _load()
    if name not in _methods:
        known = ", ".join(sorted(_methods))
        raise RecipeError(
            "merge_method", f"unknown method '{name}'", f"Known methods: {known}", did_you_mean(name, _methods)
        )
    return _methods[name]


def specs() -> Mapping[str, MethodSpec]:
    """Return the spec of every method, by name in alphabetical order.

    Raises:
        RecipeError: A third-party method cannot be loaded.
    """
    _load()
    return {name: _methods[name].spec for name in sorted(_methods)}


@cache
def _load() -> None:
    for module in pkgutil.iter_modules(methods.__path__, methods.__name__ + "."):
        importlib.import_module(module.name)
    for source, loaded in load_entry_points(ENTRY_POINTS, RecipeError):
        if not any(_belongs(method.merge, loaded) for method in _methods.values()):
            what = "registers no merge method"
            raise RecipeError(source, what, next="Decorate a function of this module with @merge_method")


def _belongs(merge: Merge, loaded: object) -> bool:
    """Return whether a registered function is, or is from the module, that an entry point names."""
    if isinstance(loaded, ModuleType):
        return f"{merge.__module__}.".startswith(f"{loaded.__name__}.")
    return merge is loaded
