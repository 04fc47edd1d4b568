"""Checks of a spec that need its models' configs, and none of their weights."""

from contextlib import suppress

from evosearch.checkpoints import references
from evosearch.checkpoints.families.registry import family_of
from evosearch.checkpoints.model_files import read_json
from evosearch.checkpoints.references import default_cache
from evosearch.checkpoints.tensor_files import CONFIG
from evosearch.documents import join
from evosearch.errors import CheckpointError, InputError
from evosearch.evaluation.harness.harness import Harness
from evosearch.execution.loaders import register_schemes
from evosearch.merging.registry import specs
from evosearch.recipe import files
from evosearch.recipe.shapes import ModelShape
from evosearch.search.progress import Watcher
from evosearch.search.space.space import SearchSpace
from evosearch.setup.input_checks import check_items
from evosearch.setup.optimizing import choose_optimizer
from evosearch.spec.diagnostics import Diagnostics
from evosearch.spec.spec import SearchSpec


def check_configs(spec: SearchSpec, harness: Harness | None, watcher: Watcher, diagnostics: Diagnostics) -> None:
    """Check holes, depths, layer ranges, optimizer and budget of one search.

    Args:
        spec: The spec.
        harness: Its suite; None if it cannot be loaded.
        watcher: Shows which configs are fetched.
        diagnostics: Where problems are recorded.
    """
    recipe = diagnostics.attempt(lambda: spec.frame)
    shapes = _shapes(spec, watcher, diagnostics) if recipe is not None else {}
    if recipe is None or not shapes:
        return
    depths = {name: shape.num_layers for name, shape in shapes.items()}
    if recipe.routing is None and not recipe.named_slices():
        _check_depths(spec, depths, diagnostics)
    for key, part in recipe.named_slices():
        for index, source in enumerate(part.sources):
            depth = depths.get(source.model)
            if depth is not None and source.layer_range[1] > depth:
                where = join(spec.where, *_keys(key), "sources", index, "layer_range")
                what = f"got {list(source.layer_range)}, and '{source.model}' has {depth} layers"
                diagnostics.add(CheckpointError(where, what, f"At most [0, {depth}]"))
    if recipe.named_slices():
        return  # the output's depth follows from the slices; `check` builds it from the models
    first = next(iter(shapes.values()))
    space = diagnostics.attempt(lambda: SearchSpace.from_template(spec.template, first, specs(), spec.where, depths))
    choice = diagnostics.attempt(lambda: choose_optimizer(spec, space, harness)) if space is not None else None
    if space is not None and choice is not None and harness is not None:
        batch = diagnostics.attempt(lambda: harness.batch("search"))
        if batch is not None:
            diagnostics.attempt(lambda: check_items(spec, batch, choice.config, space.dimensions))


def _shapes(spec: SearchSpec, watcher: Watcher, diagnostics: Diagnostics) -> dict[str, ModelShape]:
    """Return reference → tensors of every model whose config can be read; nested recipes have none before a merge."""
    register_schemes()
    found: dict[str, ModelShape] = {}
    for reference in spec.frame.references():
        shape = None
        with suppress(InputError):  # invalid references are reported with their keys by the estimate of cost
            model, _ = references.split(reference)
            if files.is_recipe(model):
                continue
            folder = references.resolve_settings(model, default_cache(), watcher.preparing)
            config = read_json(folder / CONFIG)
            shape = family_of(config, str(folder / CONFIG)).shape(config)
        if shape is not None:
            found[reference] = shape
    return found


def _check_depths(spec: SearchSpec, depths: dict[str, int], diagnostics: Diagnostics) -> None:
    names = list(depths)
    for name in names[1:]:
        if depths[name] != depths[names[0]]:
            what = f"'{names[0]}' and '{name}' cannot be merged: {depths[names[0]]} and {depths[name]} layers"
            diagnostics.add(CheckpointError(spec.where, what, "Use models fine-tuned from one base"))


def _keys(place: str) -> list[str | int]:
    """Return the keys in a place: `modules.default.slices[2]` → modules, default, slices, 2."""
    parts = place.replace("[", ".").replace("]", "").split(".")
    return [int(part) if part.isdigit() else part for part in parts]
