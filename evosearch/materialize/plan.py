"""Merge plans: one operation per tensor, with its parameters evaluated. Does not read the disk."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch

from evosearch import documents
from evosearch.errors import RecipeError
from evosearch.merging.method_parameters import Origin, Parameters
from evosearch.recipe.blocks import Block, Entry, Scope, blocks
from evosearch.recipe.checks import check
from evosearch.recipe.hops import Routing
from evosearch.recipe.parameters import lookup
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import MethodSpec, ModelShape, Param, Place, Scalar
from evosearch.routing.fold import Fold

ROUTE = "routing"  # name in place of a merge method


@dataclass(frozen=True)
class Input:
    """One tensor of one model, by its name in that model."""

    reference: str
    tensor: str


@dataclass(frozen=True)
class TensorOp:
    """The operation that computes one tensor of the output.

    Attributes:
        tensor: Name on disk in the output.
        method: Name of the merge method.
        base: The base's tensor, or None.
        parents: The parents' tensors, in the recipe's order.
        parameters: Parameters at this tensor.
        fold: For routes, which have one parent and no method: the change of its tensor.
        statistics: Load the statistics of `sources` at this tensor; empty if the method needs none, or there is none.
        transposed: A linear weight stored as (in, out), which methods with Gram matrices get as (out, in).
    """

    tensor: str
    method: str
    base: Input | None
    parents: tuple[Input, ...]
    parameters: Parameters
    fold: Fold | None = None
    statistics: tuple[Callable[[], torch.Tensor], ...] = field(default=(), compare=False, repr=False)
    transposed: bool = False

    @property
    def sources(self) -> tuple[Input, ...]:
        """Return every input tensor."""
        return (self.base, *self.parents) if self.base is not None else self.parents


def donor_of(recipe: Recipe) -> str:
    """Return the model that config, tokenizer and chat template come from: the base, or else the first model."""
    return recipe.references()[0]


def statistics_key(recipe: Recipe, spec: MethodSpec) -> tuple[str, str]:
    """Return the key of the recipe's statistics in `Checkpoint.statistics`.

    Statistics of a sequential method are those of one recipe, and are named by all of it.
    """
    assert recipe.sample is not None
    if not spec.sequential:
        return recipe.sample.key, spec.statistic
    return recipe.sample.key, f"{spec.statistic} {hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()}"


def output_dtype(recipe: Recipe) -> torch.dtype:
    """Return the type that merged weights are rounded to."""
    dtype: torch.dtype = getattr(torch, recipe.output_dtype)
    return dtype


def plan(
    recipe: Recipe,
    shapes: Mapping[str, ModelShape],
    out: ModelShape,
    methods: Mapping[str, MethodSpec],
    contents: Mapping[str, str] | None = None,
) -> tuple[TensorOp, ...]:
    """Plan a merge or a route: one operation per tensor, in the order of the output.

    A parameter is looked up in the model's own `parameters`, then in the slice's, the module's and the recipe's; then
    it has the method's default. If no filter of a scope matches, the next scope is tried. A gradient spans the layers
    of its slice; embeddings are at its start, final norm and head at its end.

    Args:
        recipe: The recipe.
        shapes: Shape of every model that the recipe names.
        out: Shape of the output, from `layout.output`.
        methods: The registered merge methods by name.
        contents: Reference → content_sha256, for random masks and remembered facts.

    Raises:
        RecipeError: The recipe does not fit its method, or a parameter without default has no value at some tensor.
    """
    check(recipe, methods)
    if recipe.routing is not None:
        return _route(recipe.routing, out)
    assert recipe.merge_method is not None
    spec = methods[recipe.merge_method]
    runs = tuple(_Run(block, spec, recipe, shapes, contents or {}) for block in blocks(recipe))
    for run in runs:
        run.refuse_hidden_base()
    first, last, starts = runs[0], runs[-1], _starts(runs)
    ops = []
    for tensor in out.tensors:
        if tensor.layer is None:
            run, position = (first, 0.0) if tensor.place is Place.EMBEDDINGS else (last, 1.0)
            ops.append(run.op(tensor.name, None, out, position))
            continue
        index = max(i for i, start in enumerate(starts) if start <= tensor.layer)
        run, offset = runs[index], tensor.layer - starts[index]
        ops.append(run.op(tensor.name, offset, out, offset / (run.length - 1) if run.length > 1 else 1.0))
    return tuple(ops)


def _route(routing: Routing, out: ModelShape) -> tuple[TensorOp, ...]:
    """Plan a route: layer tensors come from their hop's layer, all others from the first hop's model."""
    hops, divisors = routing.hops, routing.divisors()
    no_parameters = Parameters({}, {}, torch.float32, 0, None, (Origin("", ""),))
    ops = []
    for tensor in out.tensors:
        if tensor.layer is None:
            source, fold = Input(hops[0].model, tensor.name), Fold()
        else:
            hop = hops[tensor.layer]
            source = Input(hop.model, out.at_layer(tensor.name, hop.layer))
            fold = Fold(divisors[tensor.layer], out.writer_offset) if tensor.writes_residual else Fold()
        ops.append(TensorOp(tensor.name, ROUTE, None, (source,), no_parameters, fold))
    return tuple(ops)


def length_of(block: Block, shapes: Mapping[str, ModelShape], takes_base: bool = False) -> int:
    """Return the number of the output's layers that a block makes.

    Args:
        block: The block.
        shapes: Shape of every model that the block names.
        takes_base: Whether the method uses the base's layers, even if the base is not listed.

    Raises:
        RecipeError: A source or the base does not have the layers that the block names.
    """
    for entry in block.entries:
        depth = shapes[entry.model].num_layers
        if entry.layers is not None and entry.layers[1] > depth:
            where = documents.join("recipe", entry.where, "layer_range")
            raise RecipeError(where, f"got {list(entry.layers)}", f"'{entry.model}' has layers 0 to {depth - 1}")
    base = block.layers_of_base() if takes_base and block.base is not None else None
    if base is not None and block.base is not None and base[1] > (depth := shapes[block.base].num_layers):
        what = f"needs layers {base[0]} to {base[1] - 1} of the base '{block.base}', which has 0 to {depth - 1}"
        next = "List the base with its own layer_range"
        raise RecipeError(documents.join("recipe", block.where, "sources"), what, next=next)
    entry = block.entries[0]
    first, end = entry.layers or (0, shapes[entry.model].num_layers)
    return end - first


def _starts(runs: tuple["_Run", ...]) -> list[int]:
    starts, layer = [], 0
    for run in runs:
        starts.append(layer)
        layer += run.length
    return starts


class _Run:
    """The operations of one block of a recipe."""

    def __init__(
        self,
        block: Block,
        spec: MethodSpec,
        recipe: Recipe,
        shapes: Mapping[str, ModelShape],
        contents: Mapping[str, str],
    ) -> None:
        self.block, self.spec, self.recipe, self.shapes, self.contents = block, spec, recipe, shapes, contents
        self.length = length_of(block, shapes, spec.takes_base)
        self.base = block.base if spec.takes_base else None
        self.parents = block.parents if spec.takes_base else block.entries
        layers = block.layers_of_base() if self.base is not None else None
        self.base_entry = Entry(self.base, layers, {}, "base_model") if self.base is not None else None

    def refuse_hidden_base(self) -> None:
        """Reject a base that is neither listed nor clearly left out; mergekit would average it in.

        mergekit gives it the recipe's weight. In slices it does not add the base.

        Raises:
            RecipeError: The base is ambiguous in this way.
        """
        listed = [entry.model for entry in self.block.entries]
        sliced = self.block.entries[0].layers is not None
        if self.spec.takes_base or self.block.base is None or self.block.base in listed or sliced:
            return
        for scope, key in zip(self.block.shared, self.block.keys, strict=True):
            for name, param in self.spec.parameters.items():
                if param.per_model and name in scope:
                    raise RecipeError(
                        documents.join("recipe", key, name),
                        "may or may not apply to base_model, which is not listed in models",
                        "List the base in models with its own weight (0 to leave it out), "
                        "or give every model its own weight",
                    )

    def op(self, tensor: str, offset: int | None, out: ModelShape, position: float) -> TensorOp:
        """Return the operation for a tensor at layer `offset` of the block; None outside of the layers."""
        base = self._input(self.base_entry, tensor, offset, out) if self.base_entry is not None else None
        parents = tuple(self._input(entry, tensor, offset, out) for entry in self.parents)
        at = _At(self.block, tensor, position)
        shared = {name: at.shared(name, p) for name, p in self.spec.parameters.items() if not p.per_model}
        own = {name: at.own(name, p, self.parents) for name, p in self.spec.parameters.items() if p.per_model}
        parameters = Parameters(
            shared,
            own,
            getattr(torch, self.recipe.dtype),
            self.recipe.seed,
            self._origin(base) if base is not None else None,
            tuple(self._origin(parent) for parent in parents),
            head_size=self.shapes[parents[0].reference].head_size if parents else 0,
        )
        return TensorOp(tensor, self.spec.name, base, parents, parameters)

    def _input(self, entry: Entry, tensor: str, offset: int | None, out: ModelShape) -> Input:
        if offset is None:
            return Input(entry.model, tensor)
        first = entry.layers[0] if entry.layers is not None else 0
        return Input(entry.model, out.at_layer(tensor, first + offset))

    def _origin(self, source: Input) -> Origin:
        return Origin(self.contents.get(source.reference, ""), source.tensor)


@dataclass(frozen=True)
class _At:
    """Parameter values at one tensor."""

    block: Block
    tensor: str
    position: float

    def shared(self, name: str, param: Param) -> Scalar:
        return self._value(name, param, self.block.shared, documents.join("recipe", "parameters", name))

    def own(self, name: str, param: Param, parents: tuple[Entry, ...]) -> tuple[Scalar, ...]:
        return tuple(
            self._value(
                name,
                param,
                (entry.own, *self.block.shared),
                documents.join("recipe", entry.where, "parameters", name),
            )
            for entry in parents
        )

    def _value(self, name: str, param: Param, scopes: tuple[Scope, ...], where: str) -> Scalar:
        value = lookup(name, scopes, self.tensor, self.position)
        if value is None:
            value = param.default
        if value is None:
            next = "Add a last entry without a filter for all other tensors"
            raise RecipeError(where, f"no filter matches tensor '{self.tensor}'", next=next)
        return value


def with_survey(ops: tuple[TensorOp, ...], facts: Iterator[object]) -> tuple[TensorOp, ...]:
    """Return the operations, each with its fact from the survey."""
    return tuple(
        replace(op, parameters=replace(op.parameters, survey=fact)) for op, fact in zip(ops, facts, strict=True)
    )
