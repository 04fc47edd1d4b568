"""Execution of merge plans; the same code in memory and on disk, so that both produce the same bits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from evosearch.errors import CandidateError
from evosearch.materialize.plan import Input, TensorOp, plan, with_survey
from evosearch.merging.method_parameters import Memory
from evosearch.merging.registry import Site, method, specs
from evosearch.merging.sink import Sink
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
    """Return every operation of a recipe, after the survey if its method has one.

    Args:
        recipe: The recipe.
        shapes: Shape of every model that the recipe names.
        out: Shape of the output.
        tensor_of: Loads an input tensor.
        content_of: Returns a model's content_sha256. Called only for methods that draw masks: it may read every byte.
        memory: Cache of facts about the inputs, shared between candidates.

    Raises:
        RecipeError: See `plan`.
        CandidateError: The survey rejects the parameter values.
    """
    spec = specs().get(recipe.merge_method or "")
    name_of = content_of if spec is not None and spec.random else str
    ops = plan(recipe, shapes, out, specs(), {reference: name_of(reference) for reference in recipe.references()})
    if recipe.routing is not None:
        return ops
    if memory is not None:
        ops = tuple(replace(op, parameters=replace(op.parameters, memory=memory)) for op in ops)
    survey = method(ops[0].method).survey
    facts = survey([_site(op, tensor_of) for op in ops]) if survey is not None else None
    return ops if facts is None else with_survey(ops, iter(facts))


def apply(op: TensorOp, tensor_of: TensorOf, out_dtype: torch.dtype) -> torch.Tensor:
    """Compute the tensor of one operation, rounded to `out_dtype`.

    Raises:
        CandidateError: The merge is undefined for the parameter values.
    """
    return merge(op, tensor_of, out_dtype).tensor


def merge(op: TensorOp, tensor_of: TensorOf, out_dtype: torch.dtype, into: torch.Tensor | None = None) -> Sink:
    """Compute the tensor of one operation and write it, rounded to `out_dtype`, into a tensor.

    Args:
        op: The operation.
        tensor_of: Loads an input tensor.
        out_dtype: Type that the result is rounded to.
        into: Tensor of any type to write to; default: a new one of `out_dtype`.

    Raises:
        CandidateError: The merge is undefined for the parameter values. `into` is then in an undefined state.
    """
    parents = [tensor_of(parent) for parent in op.parents]
    if into is None:
        into = torch.empty(parents[0].shape, dtype=out_dtype, device=parents[0].device)
    sink = Sink(into, out_dtype)
    if op.fold is not None:
        sink.take(op.fold(parents[0]))
        return sink
    base = tensor_of(op.base) if op.base is not None else None
    parameters = replace(op.parameters, sink=sink) if into.is_contiguous() else op.parameters
    sink.take(method(op.method).merge(base, parents, parameters))
    return sink


def extremes(tensor: torch.Tensor) -> torch.Tensor:
    """Return the least and the greatest value (2,) on the tensor's device; both are finite exactly if all are."""
    return torch.stack(torch.aminmax(tensor)).float()


def check_finite(ops: Sequence[TensorOp], found: Sequence[torch.Tensor], recipe_dtype: str) -> None:
    """Check that all results are finite, with a single synchronization of the device.

    Args:
        ops: The operations.
        found: The `extremes` of each operation's result.
        recipe_dtype: Name of the output type, for the error.

    Raises:
        CandidateError: A result is not finite.
    """
    if not ops:
        return
    for op, finite in zip(ops, torch.stack(list(found)).isfinite().all(dim=1).tolist(), strict=True):
        if not finite:
            raise CandidateError("materialize", not_finite(op.tensor, recipe_dtype))


def not_finite(name: str, recipe_dtype: str) -> str:
    """Return the failure reason for a merged tensor with infinite or undefined values."""
    return f"tensor '{name}' is not finite in {recipe_dtype}: the weights are too large, or a parent is damaged"


def _site(op: TensorOp, tensor_of: TensorOf) -> Site:
    def read(source: Input) -> Callable[[], torch.Tensor]:
        return lambda: tensor_of(source)

    base = read(op.base) if op.base is not None else None
    return Site(base, tuple(read(parent) for parent in op.parents), op.parameters)
