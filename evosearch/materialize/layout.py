"""Layout of a recipe's output: its config and its tensors, before any of them is computed.

The config is that of the donor (`plan.donor_of`): the base if the recipe has one, else the first model. Models in
memory and checkpoints on disk both take it from here.
"""

from collections.abc import Hashable, Mapping, Sequence
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

LAYOUTS_KEPT = 16


@dataclass(frozen=True)
class Output:
    """Layout of a recipe's output.

    Attributes:
        config: Contents of config.json.
        shape: The tensors and their positions.
        sizes: Tensor → size, in the order of the model.
        origins: Tensor → an input tensor of the same size.
    """

    config: Mapping[str, Any]
    shape: ModelShape
    sizes: Mapping[str, tuple[int, ...]]
    origins: Mapping[str, Input]

    def answers_as(self, other: "Output") -> bool:
        """Return whether equal weights give equal answers in both layouts: same tensors, same relevant config keys."""
        return self is other or (self.shape == other.shape and not differences(self.config, other.config))


class Layouts:
    """Layouts of recipes over some checkpoints, each computed once.

    The candidates of a search differ in parameter values, so that most or all of them share one layout.

    Args:
        checkpoints: Reference → checkpoint, for every model that the recipes name.
    """

    def __init__(self, checkpoints: Mapping[str, Checkpoint]) -> None:
        self._checkpoints = checkpoints
        self._known: dict[Hashable, Output] = {}

    def of(self, recipe: Recipe) -> Output:
        """Return the layout of a recipe's output: the same object for recipes that differ in parameters only.

        Raises:
            RecipeError: See `output`.
        """
        key = _structure(recipe)
        if key not in self._known:
            if len(self._known) == LAYOUTS_KEPT:  # routes differ from candidate to candidate
                del self._known[next(iter(self._known))]
            self._known[key] = output(recipe, self._checkpoints)
        return self._known[key]


def _structure(recipe: Recipe) -> Hashable:
    """Return the models and layers of a recipe, without parameters: a layout depends on nothing else."""
    if recipe.routing is not None:
        return tuple((hop.model, hop.layer) for hop in recipe.routing.hops)
    found = tuple(
        (block.base, tuple((entry.model, entry.layers) for entry in block.entries)) for block in blocks(recipe)
    )
    return recipe.merge_method, donor_of(recipe), found


def output(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> Output:
    """Compute the layout of a recipe's output. If all layers keep their place, its shape is the donor's own object.

    Args:
        recipe: The recipe.
        checkpoints: Reference → checkpoint, for every model that the recipe names.

    Raises:
        RecipeError: The recipe names layers that a model does not have.
    """
    shapes = {reference: checkpoint.shape for reference, checkpoint in checkpoints.items()}
    first = donor_of(recipe)
    donor = checkpoints[first]
    if recipe.routing is not None:
        return _routed(recipe.routing, checkpoints)
    found = blocks(recipe)
    spec = specs().get(recipe.merge_method or "")
    for block in found:
        length_of(block, shapes, spec is not None and spec.takes_base)
    if _in_place(found, shapes, donor):
        return unchanged(first, donor)
    layers = [layer for block in found for layer in _layers(block, first)]
    return _of_layers(first, checkpoints, layers, _resized(donor, checkpoints, layers), "recipe.slices")


def _of_layers(
    first: str,
    checkpoints: Mapping[str, Checkpoint],
    layers: Sequence[tuple[str, int]],
    config: Mapping[str, Any],
    where: str,
) -> Output:
    """Return the layout whose layer k has the tensors of `layers[k]`, and those of `first` around the layers.

    Args:
        first: Reference of the donor.
        checkpoints: Reference → checkpoint.
        layers: (model, layer) for each layer of the output.
        config: Config of the output.
        where: Key of the layers for errors; a `{}` in it is replaced by k.
    """
    shape = checkpoints[first].family.shape(config)
    sizes, origins = {}, {}
    for tensor in shape.tensors:
        source, layer = layers[tensor.layer] if tensor.layer is not None else (first, 0)
        name = shape.at_layer(tensor.name, layer)
        if name not in checkpoints[source].tensors:
            what = f"layer {tensor.layer} of the output has '{tensor.name}'"
            raise RecipeError(where.format(tensor.layer), f"{what}, but layer {layer} of '{source}' has no such tensor")
        sizes[tensor.name] = checkpoints[source].tensors[name].shape
        origins[tensor.name] = Input(source, name)
    return Output(config, shape, sizes, origins)


def _routed(routing: Routing, checkpoints: Mapping[str, Checkpoint]) -> Output:
    """Return the layout of a route: the first hop's model with the hops' layers; each keeps its kind."""
    first, layers = routing.hops[0].model, [(hop.model, hop.layer) for hop in routing.hops]
    donor = checkpoints[first]
    _check_hops(layers, checkpoints)
    if layers == [(first, layer) for layer in range(donor.shape.num_layers)]:
        return unchanged(first, donor)
    try:
        config = donor.family.with_layers(
            donor.config, [layer for _, layer in layers], [checkpoints[name].config for name, _ in layers]
        )
    except CheckpointError as error:  # a family whose layers cannot be reordered
        k = next((k for k, (_, layer) in enumerate(layers) if layer != k), 0)
        what = f"'{layers[k][0]}' cannot be routed: {error.where}: {error.what}"
        raise RecipeError(f"recipe.routing.hops[{k}].layer", what, error.allowed, error.next) from None
    _check_windows(config, layers)
    return _of_layers(first, checkpoints, layers, config, "recipe.routing.hops[{}].layer")


def _check_windows(config: Mapping[str, Any], layers: Sequence[tuple[str, int]]) -> None:
    """Check that the config gives the width of sliding windows if the route has layers with one."""
    kinds = config.get("layer_types") or ()
    if SLIDING not in kinds or getattr(settings(config, CONFIG), "sliding_window", None) is not None:
        return
    k = kinds.index(SLIDING)
    name, layer = layers[k]
    what = f"layer {layer} of '{name}' has a sliding window, but the config of '{layers[0][0]}' gives no width"
    next_step = f"Start the route with '{name}', or leave such layers out"
    raise RecipeError(f"recipe.routing.hops[{k}].layer", what, next=next_step)


def _check_hops(layers: Sequence[tuple[str, int]], checkpoints: Mapping[str, Checkpoint]) -> None:
    """Check that all models are of one family that can be routed, and that every layer exists."""
    first = checkpoints[layers[0][0]].shape
    for k, (name, layer) in enumerate(layers):
        shape = checkpoints[name].shape
        if shape.architecture != first.architecture:
            what = f"'{name}' is a {shape.architecture}, but the route starts in a {first.architecture}"
            raise RecipeError(f"recipe.routing.hops[{k}].model", what, "All models of a route must be of one family")
        if layer >= shape.num_layers:
            allowed = f"'{name}' has layers 0 to {shape.num_layers - 1}"
            raise RecipeError(f"recipe.routing.hops[{k}].layer", f"got {layer}", allowed)
        if not any(tensor.writes_residual for tensor in shape.tensors):
            what = f"{shape.architecture} cannot be routed: its family declares no residual writers"
            raise RecipeError(f"recipe.routing.hops[{k}].model", what)


def unchanged(reference: str, checkpoint: Checkpoint) -> Output:
    """Return the layout of a checkpoint."""
    sizes = {name: info.shape for name, info in checkpoint.tensors.items()}
    origins = {name: Input(reference, name) for name in sizes}
    return Output(checkpoint.config, checkpoint.shape, sizes, origins)


def _in_place(found: tuple[Block, ...], shapes: Mapping[str, ModelShape], donor: Checkpoint) -> bool:
    """Return whether all layers keep their place: complete models, or slices in order of equally deep models."""
    first = 0
    for block in found:
        for entry in block.entries:
            if entry.layers is None:
                return True  # `check_fit` rejects complete models of another depth
            if entry.layers[0] != first or shapes[entry.model].num_layers != donor.shape.num_layers:
                return False
        first += length_of(block, shapes)
    return first == donor.shape.num_layers


def _layers(block: Block, donor: str) -> list[tuple[str, int]]:
    """Return the (model, layer) that gives each layer of a block its tensors: the donor's if it takes part."""
    entry = next((entry for entry in block.entries if entry.model == donor), block.entries[0])
    assert entry.layers is not None
    return [(entry.model, layer) for layer in range(*entry.layers)]


def _resized(
    donor: Checkpoint, checkpoints: Mapping[str, Checkpoint], layers: list[tuple[str, int]]
) -> Mapping[str, Any]:
    """Return the donor's config with these layers; per-layer keys are taken from the deepest model."""
    deepest = max(
        (donor, *(checkpoints[reference] for reference, _ in layers)), key=lambda model: model.shape.num_layers
    )
    picked = [layer for _, layer in layers]
    resized = deepest.family.with_layers(deepest.config, picked)
    of_layers = deepest.family.of_layers
    kept = {key: value for key, value in donor.config.items() if key not in of_layers}
    return kept | {key: resized[key] for key in of_layers if key in resized}
