"""Execution of merge plans; the same code in memory and on disk, so that both produce the same bits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import CandidateError, RecipeError
from evosearch.materialize.plan import Input, TensorOp, plan, statistics_key, with_survey
from evosearch.merging.method_parameters import Memory, Parameters
from evosearch.merging.registry import Site, method, specs
from evosearch.merging.sink import Sink
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import FISHER, ModelShape

TensorOf = Callable[[Input], torch.Tensor]
ContentOf = Callable[[str], str]  # reference → content_sha256


def operations(
    recipe: Recipe,
    shapes: Mapping[str, ModelShape],
    out: ModelShape,
    tensor_of: TensorOf,
    content_of: ContentOf,
    memory: Memory | None = None,
    checkpoints: Mapping[str, Checkpoint] | None = None,
) -> tuple[TensorOp, ...]:
    """Return every operation of a recipe, after the survey if its method has one.

    Args:
        recipe: The recipe.
        shapes: Shape of every model that the recipe names.
        out: Shape of the output.
        tensor_of: Loads an input tensor.
        content_of: Returns a model's content_sha256. Called only for methods that draw masks: it may read every byte.
        memory: Cache of facts about the inputs, shared between candidates.
        checkpoints: Reference → checkpoint with its statistics, for methods that need some.

    Raises:
        RecipeError: See `plan`.
        CheckpointError: Statistics cannot be computed.
        CandidateError: The survey rejects the parameter values.
    """
    spec = specs().get(recipe.merge_method or "")
    name_of = content_of if spec is not None and spec.random else str
    ops = plan(recipe, shapes, out, specs(), {reference: name_of(reference) for reference in recipe.references()})
    if recipe.routing is not None:
        return ops
    if memory is not None:
        ops = tuple(replace(op, parameters=replace(op.parameters, memory=memory)) for op in ops)
    if spec is not None and spec.statistic and recipe.sample is not None:
        assert checkpoints is not None, "methods with statistics need checkpoints that have them"
        ops = tuple(with_statistics(op, statistics_key(recipe, spec), checkpoints) for op in ops)
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
    if op.fold is not None:
        folded = op.fold(tensor_of(op.parents[0]))
        sink = Sink(torch.empty_like(folded, dtype=out_dtype) if into is None else into, out_dtype)
        sink.take(folded)
        return sink
    base, parents, parameters = arguments(op, tensor_of)
    if into is None:
        stored = parents[0].t() if op.transposed else parents[0]
        into = torch.empty(stored.shape, dtype=out_dtype, device=stored.device)
    sink = Sink(into, out_dtype)
    if into.is_contiguous() and not op.transposed:
        parameters = replace(parameters, sink=sink)
    merged = method(op.method).merge(base, parents, parameters)
    sink.take(merged.t() if op.transposed else merged)
    return sink


def arguments(op: TensorOp, tensor_of: TensorOf) -> tuple[torch.Tensor | None, list[torch.Tensor], Parameters]:
    """Return base, parents and parameters of one operation as its method takes them, with the statistics."""
    base = tensor_of(op.base) if op.base is not None else None
    parents = [tensor_of(parent) for parent in op.parents]
    if op.transposed:
        base, parents = base.t() if base is not None else None, [parent.t() for parent in parents]
    if not op.statistics:
        return base, parents, op.parameters
    loaded = tuple(load().to(parents[0].device) for load in op.statistics)
    return base, parents, replace(op.parameters, statistics=loaded)


def with_statistics(op: TensorOp, key: tuple[str, str], checkpoints: Mapping[str, Checkpoint]) -> TensorOp:
    """Return an operation that loads the statistics of its base and parents.

    Args:
        op: The operation.
        key: See `statistics_key`.
        checkpoints: Reference → checkpoint.

    Raises:
        RecipeError: The models have no statistics over this sample.
        CheckpointError: They cannot be computed.
    """
    loaders = list[Callable[[], torch.Tensor]]()
    for parent in op.sources:
        found = checkpoints[parent.reference].statistics.get(key)
        if found is None:
            what = "the models were not opened with this sample"
            raise RecipeError("recipe.sample", what, "The sample of the search's own recipe")
        if not found.has(parent.tensor):
            return op  # of the same layer kind in every parent
        loaders.append(partial(found.load, parent.tensor))
    first = op.parents[0]
    transposed = key[1] != FISHER and is_transposed(checkpoints[first.reference], first.tensor)
    named = replace(op.parameters, sample=key[0])
    return replace(op, parameters=named, statistics=tuple(loaders), transposed=transposed)


def is_transposed(checkpoint: Checkpoint, name: str) -> bool:
    """Return whether a linear weight is stored as (in, out): those of GPT-2's layers, but not its head."""
    return checkpoint.family.transposed and checkpoint.shape.by_name[name].layer is not None


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
    return Site(base, tuple(read(parent) for parent in op.parents), op.parameters, op.statistics)
