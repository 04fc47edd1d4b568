"""A plan carried out: the same code in memory and on disk, so that both give the same bits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from evosearch.errors import CandidateError
from evosearch.materialize.plan import Input, TensorOp, plan, with_survey
from evosearch.merging.parameters import Memory
from evosearch.merging.registry import Site, method, specs
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import ModelShape

TensorOf = Callable[[Input], torch.Tensor]
ContentOf = Callable[[str], str]  # reference → content_sha256


def operations(
    recipe: Recipe,
    shapes: Mapping[str, ModelShape],
    out: ModelShape,
    tensor_of: TensorOf,
    content_of: ContentOf,
    memory: Memory | None = None,
) -> tuple[TensorOp, ...]:
    """Every operation of a recipe, merges surveyed where its method looks at whole models first.

    Args:
        content_of: asked only where masks are drawn, since it may read every byte.

    Raises:
        RecipeError: see `plan`.
        CandidateError: the survey finds that these parameters have no merge.
    """
    spec = specs().get(recipe.merge_method or "")
    name_of = content_of if spec is not None and spec.random else str  # hashing reads every byte: only for masks
    ops = plan(recipe, shapes, out, specs(), {reference: name_of(reference) for reference in recipe.references()})
    if recipe.routing is not None:
        return ops
    if memory is not None:
        ops = tuple(replace(op, parameters=replace(op.parameters, memory=memory)) for op in ops)
    survey = method(ops[0].method).survey
    facts = survey([_site(op, tensor_of) for op in ops]) if survey is not None else None
    return ops if facts is None else with_survey(ops, iter(facts))


def apply(op: TensorOp, tensor_of: TensorOf, out_dtype: torch.dtype) -> torch.Tensor:
    """The merged, or the routed, tensor, rounded to `out_dtype`.

    Raises:
        CandidateError: its parameters have no merge.
    """
    if op.fold is not None:
        return op.fold(tensor_of(op.parents[0])).to(out_dtype)
    base = tensor_of(op.base) if op.base is not None else None
    parents = [tensor_of(parent) for parent in op.parents]
    return method(op.method).merge(base, parents, op.parameters).to(out_dtype)


def extremes(tensor: torch.Tensor) -> torch.Tensor:
    """(2,) least and largest value, on the tensor's device: finite exactly when every value is."""
    return torch.stack(torch.aminmax(tensor)).float()


def refuse_infinite(ops: Sequence[TensorOp], found: Sequence[torch.Tensor], recipe_dtype: str) -> None:
    """Args:
        found: the `extremes` of what each operation made; asked for at once, so that a device is waited for once.

    Raises:
        CandidateError: one is not finite.
    """
    for op, finite in zip(ops, torch.stack(list(found)).isfinite().all(dim=1).tolist(), strict=True):
        if not finite:
            raise CandidateError("materialize", not_finite(op.tensor, recipe_dtype))


def not_finite(name: str, recipe_dtype: str) -> str:
    """The reason to give for a merged tensor with an infinite or undefined value."""
    return f"tensor '{name}' is not finite in {recipe_dtype}: the weights are too large, or a parent is damaged"


def _site(op: TensorOp, tensor_of: TensorOf) -> Site:
    def read(source: Input) -> Callable[[], torch.Tensor]:
        return lambda: tensor_of(source)

    base = read(op.base) if op.base is not None else None
    return Site(base, tuple(read(parent) for parent in op.parents), op.parameters)
