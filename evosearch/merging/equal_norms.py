"""`norm: equal`: task vectors scaled to their mean norm before a method merges them.

Fine-tunes that were trained longer, or at a higher learning rate, have longer task vectors and dominate a merge. The
option is of all methods whose merge is θ₀ + f(τ₁, τ₂, …) with τᵢ = θᵢ − θ₀: the registry wraps their functions, which
then receive zeros as the base and the scaled τᵢ as the parents, so that θ₀ adds no rounding to the τᵢ.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evosearch.merging.kernels import elementwise, same, total
from evosearch.merging.method_parameters import Memory, Parameters
from evosearch.recipe.shapes import MergekitForm, Param

if TYPE_CHECKING:
    from evosearch.merging.registry import Derivative, Merge, Site, Slope, Survey

PARAMETERS = {
    "norm": Param(default="keep", kind="choice", choices=("keep", "equal")),
    "norm_scope": Param(default="tensor", kind="choice", choices=("tensor", "model")),
}
KEPT = {name: param.default for name, param in PARAMETERS.items() if param.default is not None}


@dataclass(frozen=True)
class Scaled:
    """The survey's fact of a tensor with `norm: equal`.

    Attributes:
        scales: The factor of each task vector with `norm_scope: model`; None with `tensor`.
        fact: The fact of the method's own survey.
    """

    scales: tuple[float, ...] | None
    fact: Any


def applies(p: Parameters) -> bool:
    """Return whether the task vectors of a tensor are scaled."""
    return p.shared.get("norm") == "equal"


def scales_of(norms: Sequence[float]) -> tuple[float, ...]:
    """Return the factors that give task vectors their mean norm.

    A norm of zero has the factor 1 and does not count in the mean: a model that leaves a tensor as it is, as adapters
    do, shall not shorten the changes of the others.
    """
    moved = [norm for norm in norms if norm != 0]
    return tuple(sum(moved) / len(moved) / norm if norm != 0 else 1.0 for norm in norms)


def in_mergekit(form: MergekitForm | None) -> MergekitForm | None:
    """Return a method's form in mergekit, which lacks the option."""
    return None if form is None else replace(form, fixed={**form.fixed, **KEPT})


def merging(merge: "Merge") -> "Merge":
    """Return the merge with the option."""

    @wraps(merge)
    def merged(base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Tensor:
        if not applies(p):
            return merge(base, parents, p)
        assert base is not None
        return merge(*_scaled(base, parents, p)).add_(base.to(p.dtype))  # θ₀ + f(s₁τ₁, s₂τ₂, …)

    return merged


def differentiating(derivative: "Derivative") -> "Derivative":
    """Return the derivative with the option; the factors do not depend on differentiable parameters."""

    @wraps(derivative)
    def differentiated(
        base: Tensor | None, parents: Sequence[Tensor], p: Parameters, grad: Tensor
    ) -> Mapping[str, "Slope"]:
        if not applies(p):
            return derivative(base, parents, p, grad)
        assert base is not None
        return derivative(*_scaled(base, parents, p), grad)

    return differentiated


def surveying(survey: "Survey | None") -> "Survey":
    """Return the survey with the option: the norms of `norm_scope: model`, and then the method's own survey."""

    def surveyed(sites: "Sequence[Site]") -> Sequence[Any] | None:
        if not any(applies(site.parameters) for site in sites):
            return survey(sites) if survey is not None else None
        found = _over_the_model(sites)
        facts = survey([_site(site, one) for site, one in zip(sites, found, strict=True)]) if survey else None
        if facts is None and not any(found):
            return None
        own = [None] * len(sites) if facts is None else facts
        return [
            Scaled(scales, fact) if applies(site.parameters) else fact
            for site, scales, fact in zip(sites, found, own, strict=True)
        ]

    return surveyed


def _over_the_model(sites: "Sequence[Site]") -> list[tuple[float, ...] | None]:
    """Return for each site with `norm_scope: model` the factors of its task vectors; None for the others."""
    jointly = [applies(site.parameters) and site.parameters.choice("norm_scope") == "model" for site in sites]
    squares: dict[str, list[float]] = {}
    for site, joins in zip(sites, jointly, strict=True):
        if joins:
            assert site.base is not None
            parents = [load() for load in site.parents]
            for i, square in enumerate(_squares(site.base(), parents, site.parameters)):
                squares.setdefault(_model(site, i), []).append(square)
    norms = {model: math.sqrt(math.fsum(found)) for model, found in squares.items()}
    return [
        scales_of([norms[_model(site, i)] for i in range(len(site.parents))]) if joins else None
        for site, joins in zip(sites, jointly, strict=True)
    ]


def _model(site: "Site", i: int) -> str:
    """Return a key of the model of a parent: slices have models of their own."""
    origins = site.parameters.parents
    return (origins[i].content_sha256 if origins else "") or str(i)


def _site(site: "Site", scales: tuple[float, ...] | None) -> "Site":
    """Return the site that the method's own survey sees: zeros and the scaled task vectors."""
    p = site.parameters
    if not applies(p):
        return site
    assert site.base is not None
    load_base = site.base

    def zero() -> Tensor:
        return torch.zeros_like(load_base(), dtype=p.dtype)

    def scaled(i: int) -> Callable[[], Tensor]:
        def load() -> Tensor:
            base = load_base()
            found = scales or _of_tensor(base, [each() for each in site.parents], p)
            return _scale(base, site.parents[i](), found[i], p)

        return load

    return replace(
        site, base=zero, parents=tuple(map(scaled, range(len(site.parents)))), parameters=_within(p, scales, None)
    )


def _scaled(base: Tensor, parents: Sequence[Tensor], p: Parameters) -> tuple[Tensor, list[Tensor], Parameters]:
    """Return zeros, the scaled task vectors, and the parameters with the method's own fact."""
    known = p.survey if isinstance(p.survey, Scaled) else Scaled(None, p.survey)
    assert known.scales is not None or p.choice("norm_scope") == "tensor", "norm_scope: model needs the survey"
    scales = known.scales or _of_tensor(base, parents, p)
    zero = torch.zeros_like(base, dtype=p.dtype, memory_format=torch.contiguous_format)
    taus = [
        zero if same(base, theta) else _scale(base, theta, scale, p)
        for theta, scale in zip(parents, scales, strict=True)
    ]
    return zero, taus, _within(p, known.scales, known.fact)


def _of_tensor(base: Tensor, parents: Sequence[Tensor], p: Parameters) -> tuple[float, ...]:
    return scales_of([math.sqrt(square) for square in _squares(base, parents, p)])


def _squares(base: Tensor, parents: Sequence[Tensor], p: Parameters) -> list[float]:
    """Return ‖τᵢ‖², remembered between candidates."""

    def square(theta: Tensor) -> float:
        return total(lambda _, ends: (ends[1] - ends[0]).square_(), (base, theta), torch.float64)

    def found(i: int, theta: Tensor) -> float:
        return 0.0 if same(base, theta) else p.recall_of(i, "square", lambda: square(theta))

    return [found(i, theta) for i, theta in enumerate(parents)]


def _scale(base: Tensor, theta: Tensor, scale: float, p: Parameters) -> Tensor:
    return elementwise(lambda _, ends: (ends[1] - ends[0]).mul_(scale), (base, theta), p.dtype)  # sᵢτᵢ


def _within(p: Parameters, scales: tuple[float, ...] | None, fact: Any) -> Parameters:
    """Return the method's own parameters, whose memory separates facts about scaled task vectors from others.

    They have no sink: the method's result is not the merge's, to which θ₀ is added.
    """
    origins = (p.base, *p.parents)
    named = bool(p.parents) and all(origin is not None and origin.content_sha256 for origin in origins)
    memory: Memory | None = None
    if p.memory is not None and (scales is not None or named):
        memory = p.memory.within(("equal norms", scales if scales is not None else origins))
    return replace(p, survey=fact, memory=memory, sink=None)
