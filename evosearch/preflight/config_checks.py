"""Checks of a spec that need its models' configs, and none of their weights."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from evosearch.checkpoints import references
from evosearch.checkpoints.families.registry import Family, family_of
from evosearch.checkpoints.model_files import read_json
from evosearch.checkpoints.references import default_cache
from evosearch.checkpoints.tensor_files import CONFIG
from evosearch.documents import join
from evosearch.errors import CheckpointError, InputError, in_one
from evosearch.evaluation.harness.harness import Harness
from evosearch.execution.loaders import register_schemes
from evosearch.materialize.plan import donor_of
from evosearch.merging.registry import specs
from evosearch.preflight.counts import planned_baselines
from evosearch.recipe import files
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import ModelShape
from evosearch.search.progress import Watcher
from evosearch.search.space.space import SearchSpace
from evosearch.setup.input_checks import check_items
from evosearch.setup.optimizing import choose_optimizer, divided
from evosearch.setup.sweep import scales_of, share_of_baselines
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
    models = _models(spec, watcher) if recipe is not None else {}
    if recipe is None or not models:
        return
    depths = {name: model.shape.num_layers for name, model in models.items()}
    if recipe.routing is None and not recipe.named_slices():
        _check_depths(spec, depths, diagnostics)
    ranges = diagnostics.passes(lambda: _check_ranges(spec, recipe, depths))
    shape = diagnostics.attempt(lambda: _output(recipe, models)) if ranges else None
    if shape is None:
        return
    space = diagnostics.attempt(lambda: SearchSpace.from_template(spec.template, shape, specs(), spec.where, depths))
    choice = diagnostics.attempt(lambda: choose_optimizer(spec, space, harness)) if space is not None else None
    if space is None or choice is None or harness is None:
        return
    batch = diagnostics.attempt(lambda: harness.batch("search"))
    if batch is not None and diagnostics.passes(lambda: check_items(spec, batch, choice.config, space.dimensions)):
        minibatches = divided(spec, choice.config, space.dimensions, batch)
        scored = planned_baselines(spec, scales_of(spec, batch, minibatches))
        if choice.why:
            diagnostics.note(f"optimizer: {choice.config.name}, because {choice.why}")
        diagnostics.note(share_of_baselines(spec, scored, batch, minibatches))


@dataclass(frozen=True)
class _Model:
    """A model by its config.

    Attributes:
        config: Contents of config.json.
        family: Its family.
        shape: Its tensors.
    """

    config: Mapping[str, Any]
    family: Family
    shape: ModelShape


def _models(spec: SearchSpec, watcher: Watcher) -> dict[str, _Model]:
    """Return every model whose config can be read, by reference; nested recipes have none before a merge."""
    register_schemes()
    found: dict[str, _Model] = {}
    for reference in spec.frame.references():
        with suppress(InputError):  # invalid references are reported with their keys by the estimate of cost
            model, _ = references.split(reference)
            if files.is_recipe(model):
                continue
            folder = references.resolve_settings(model, default_cache(), watcher.preparing)
            config = read_json(folder / CONFIG)
            family = family_of(config, str(folder / CONFIG))
            found[reference] = _Model(config, family, family.shape(config))
    return found


def _check_ranges(spec: SearchSpec, recipe: Recipe, depths: Mapping[str, int]) -> None:
    """Check that every model has the layers of its slices.

    Raises:
        CheckpointError: It has fewer.
        Problems: Several have.
    """
    found: list[InputError] = []
    for key, part in recipe.named_slices():
        for index, source in enumerate(part.sources):
            depth = depths.get(source.model)
            if depth is not None and source.layer_range[1] > depth:
                where = join(spec.where, *_keys(key), "sources", index, "layer_range")
                what = f"got {list(source.layer_range)}, and '{source.model}' has {depth} layers"
                found.append(CheckpointError(where, what, f"At most [0, {depth}]"))
    if found:
        raise in_one(str(spec.file), found)


def _output(recipe: Recipe, models: Mapping[str, _Model]) -> ModelShape | None:
    """Return the tensors of the merge, of the slices' depth if it has any; None if one of its models has no config."""
    slices = [part for _, part in recipe.named_slices()]
    if not slices:
        return (models.get(donor_of(recipe)) or next(iter(models.values()))).shape
    if any(source.model not in models for part in slices for source in part.sources):
        return None
    deepest = max(models.values(), key=lambda model: model.shape.num_layers)
    layers = [layer for part in slices for layer in range(*part.sources[0].layer_range)]
    return deepest.family.shape(deepest.family.with_layers(deepest.config, layers))


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
