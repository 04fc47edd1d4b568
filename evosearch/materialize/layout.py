"""What a recipe's output looks like before a tensor of it is made: its config and its tensors.

The config is the base's where the recipe has a base_model, else the first model's (`plan.donor_of`), whatever the other
models' configs say; what is scored in memory and what is written to disk both have it from here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evosearch.checkpoints.families.parts import SLIDING
from evosearch.checkpoints.reader import CONFIG, Checkpoint
from evosearch.errors import CheckpointError, RecipeError
from evosearch.materialize.forward import differences, settings
from evosearch.materialize.plan import Input, donor_of, length_of
from evosearch.merging.registry import specs
from evosearch.recipe.blocks import Block, blocks
from evosearch.recipe.hops import Routing
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import ModelShape


@dataclass(frozen=True)
class Output:
    """The output's config.json, its tensors, their sizes by name, in order; and for each one of its sources."""

    config: Mapping[str, Any]
    shape: ModelShape
    sizes: Mapping[str, tuple[int, ...]]
    origins: Mapping[str, Input]

    def answers_as(self, other: "Output") -> bool:
        """Whether weights give the same answers in both: the tensors are the same, and all that decides a forward."""
        return self.shape == other.shape and not differences(self.config, other.config)


def output(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> Output:
    """The layout of a recipe's output: the donor's own, the same object, where every layer stays in its place.

    Args:
        checkpoints: reference → checkpoint, for every model the recipe names.

    Raises:
        RecipeError: a source lacks layers that are asked of it.
    """
    shapes = {reference: checkpoint.shape for reference, checkpoint in checkpoints.items()}
    first = donor_of(recipe)
    donor = checkpoints[first]
    if recipe.routing is not None:
        return _routed(recipe.routing, checkpoints)
    parts = blocks(recipe)
    spec = specs().get(recipe.merge_method or "")
    for block in parts:
        length_of(block, shapes, spec is not None and spec.takes_base)
    if _in_place(parts, shapes, donor):
        return unchanged(first, donor)
    layers = [layer for block in parts for layer in _layers(block, first)]
    return _of_layers(first, checkpoints, layers, _resized(donor, checkpoints, layers), "recipe.slices")


def _of_layers(
    first: str,
    checkpoints: Mapping[str, Checkpoint],
    layers: Sequence[tuple[str, int]],
    config: Mapping[str, Any],
    where: str,
) -> Output:
    """The layout whose layer k is shaped like `layers[k]`, a model's layer, and all else like that of `first`.

    Args:
        where: the key that layers are asked for in; a `{}` in it is filled with k.
    """
    shape = checkpoints[first].family.shape(config)
    sizes, origins = {}, {}
    for tensor in shape.tensors:
        source, layer = layers[tensor.layer] if tensor.layer is not None else (first, 0)
        name = shape.at_layer(tensor.name, layer)
        if name not in checkpoints[source].tensors:
            what = f"the output's layer {tensor.layer} has '{tensor.name}'"
            raise RecipeError(where.format(tensor.layer), f"{what}, but layer {layer} of '{source}' has no such tensor")
        sizes[tensor.name] = checkpoints[source].tensors[name].shape
        origins[tensor.name] = Input(source, name)
    return Output(config, shape, sizes, origins)


def _routed(routing: Routing, checkpoints: Mapping[str, Checkpoint]) -> Output:
    """The layout of a route: the first hop's model with the hops' layers, each of the kind it is in its own model."""
    first, layers = routing.hops[0].model, [(hop.model, hop.layer) for hop in routing.hops]
    donor = checkpoints[first]
    _check_hops(layers, checkpoints)
    if layers == [(first, layer) for layer in range(donor.shape.num_layers)]:
        return unchanged(first, donor)
    try:
        config = donor.family.with_layers(
            donor.config, [layer for _, layer in layers], [checkpoints[name].config for name, _ in layers]
        )
    except CheckpointError as error:  # the family's layers may not change places
        k = next((k for k, (_, layer) in enumerate(layers) if layer != k), 0)
        what = f"'{layers[k][0]}' cannot be routed: {error.where}: {error.what}"
        raise RecipeError(f"recipe.routing.hops[{k}].layer", what, error.allowed, error.next) from None
    _check_windows(config, layers)
    return _of_layers(first, checkpoints, layers, config, "recipe.routing.hops[{}].layer")


def _check_windows(config: Mapping[str, Any], layers: Sequence[tuple[str, int]]) -> None:
    """Layers with a sliding window need a config that says how wide it is: the first model's may know of none."""
    kinds = config.get("layer_types") or ()
    if SLIDING not in kinds or getattr(settings(config, CONFIG), "sliding_window", None) is not None:
        return
    k = kinds.index(SLIDING)
    name, layer = layers[k]
    what = f"layer {layer} of '{name}' has a sliding window, and the config of '{layers[0][0]}' has none"
    next_step = f"Begin the route with '{name}', or leave such layers out"
    raise RecipeError(f"recipe.routing.hops[{k}].layer", what, next=next_step)


def _check_hops(layers: Sequence[tuple[str, int]], checkpoints: Mapping[str, Checkpoint]) -> None:
    """Whether all are of one family, every layer is there, and the family says what writes to the residual stream."""
    first = checkpoints[layers[0][0]].shape
    for k, (name, layer) in enumerate(layers):
        shape = checkpoints[name].shape
        if shape.architecture != first.architecture:
            what = f"'{name}' is a {shape.architecture}, and the route begins in a {first.architecture}"
            raise RecipeError(f"recipe.routing.hops[{k}].model", what, "Models of one family")
        if layer >= shape.num_layers:
            allowed = f"'{name}' has layers 0 to {shape.num_layers - 1}"
            raise RecipeError(f"recipe.routing.hops[{k}].layer", f"got {layer}", allowed)
        if not any(tensor.writes_residual for tensor in shape.tensors):
            what = f"{shape.architecture} cannot be routed: its family names nothing that writes to the residual stream"
            raise RecipeError(f"recipe.routing.hops[{k}].model", what)


def unchanged(reference: str, checkpoint: Checkpoint) -> Output:
    """The layout of a checkpoint as it is."""
    sizes = {name: info.shape for name, info in checkpoint.tensors.items()}
    origins = {name: Input(reference, name) for name in sizes}
    return Output(checkpoint.config, checkpoint.shape, sizes, origins)


def _in_place(parts: tuple[Block, ...], shapes: Mapping[str, ModelShape], donor: Checkpoint) -> bool:
    """Whether every layer stays where it is: whole models, or slices of models as deep as the donor, in order."""
    first = 0
    for block in parts:
        for entry in block.entries:
            if entry.layers is None:
                return True  # whole models of another depth than the donor's are refused as no match for it
            if entry.layers[0] != first or shapes[entry.model].num_layers != donor.shape.num_layers:
                return False
        first += length_of(block, shapes)
    return first == donor.shape.num_layers


def _layers(block: Block, donor: str) -> list[tuple[str, int]]:
    """The layer of a model that each layer of the block is shaped like: the donor's, where it takes part."""
    entry = next((entry for entry in block.entries if entry.model == donor), block.entries[0])
    assert entry.layers is not None
    return [(entry.model, layer) for layer in range(*entry.layers)]


def _resized(
    donor: Checkpoint, checkpoints: Mapping[str, Checkpoint], layers: list[tuple[str, int]]
) -> Mapping[str, Any]:
    """The donor's config with these layers; what configs say of single layers is the deepest model's."""
    deepest = max(
        (donor, *(checkpoints[reference] for reference, _ in layers)), key=lambda model: model.shape.num_layers
    )
    picked = [layer for _, layer in layers]
    resized = deepest.family.with_layers(deepest.config, picked)
    of_layers = deepest.family.of_layers
    kept = {key: value for key, value in donor.config.items() if key not in of_layers}
    return kept | {key: resized[key] for key in of_layers if key in resized}
