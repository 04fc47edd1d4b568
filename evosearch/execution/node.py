"""Preparation of a search's parents, once per node: fetch, copy to local disk, verify, apply adapters.

The first worker on a node does this under a lock while the others wait; they and later runs reuse the results. Disk
space is checked before anything large is written, and results appear by rename, so that a killed preparation leaves
only files that are recognizably incomplete.

`checkpoints/cache/layout.py` lists what is in the cache. Models on local disks are mapped in place, and hub models from
the hub's own cache.
"""

import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from evosearch.checkpoints import references
from evosearch.checkpoints.cache import applied_adapters, copies
from evosearch.checkpoints.cache.drafts import sweep
from evosearch.checkpoints.cache.inventory import cache_ceiling, prune
from evosearch.checkpoints.cache.layout import COPIES, PREPARED
from evosearch.checkpoints.cache.locks import LOCKS, locked
from evosearch.checkpoints.cache.mounts import Mount, mounts, network_type
from evosearch.checkpoints.cache.uses import hold
from evosearch.checkpoints.disk_space import check_disk_space
from evosearch.checkpoints.overlay import Overlay
from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.references import Progress
from evosearch.errors import CheckpointError
from evosearch.execution.worker_config import WorkerConfig
from evosearch.materialize.inputs import Opener
from evosearch.materialize.plan import donor_of, statistics_key
from evosearch.merging.registry import specs
from evosearch.moments.sampled_moments import SampledMoments
from evosearch.recipe import placebo_reference
from evosearch.recipe.blocks import blocks
from evosearch.recipe.files import is_recipe
from evosearch.recipe.identity import TOKENIZER_OF
from evosearch.recipe.sample import PREFIX as SAMPLE_OF
from evosearch.recipe.schema import Recipe


def prepare_node(config: WorkerConfig, progress: Progress | None = None) -> dict[str, Checkpoint]:
    """Prepare all models of a worker on this node unless they are, and open them.

    Returns:
        As `Opener.inputs`: reference → checkpoint, the donor first, in the output's vocabulary.

    Raises:
        CheckpointError: A model is missing, damaged, or differs from the controller's; there is not enough disk space;
            the cache cannot be written.
        RecipeError: A nested recipe is invalid.
    """
    recipe, ceiling = Recipe.model_validate(config.recipe), cache_ceiling()
    preparing = _Preparing(config, progress or _silent)
    with locked(
        config.cache / LOCKS / "prepare", partial(preparing.progress, "waiting for another worker's models", 0.0)
    ):
        opener = preparing.opener(recipe)
        _check_contents(config, recipe, opener)
        preparing.apply(opener, recipe)
        if ceiling is not None:
            with suppress(CheckpointError):  # another user's entries, which this search does not need
                prune(config.cache, ceiling)
    found = opener.inputs(recipe, config.also)
    _compute_statistics(recipe, found)
    return found


def _compute_statistics(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> None:
    """Compute the statistics that the recipe's method needs, before the resident model takes memory.

    Raises:
        CheckpointError: A model cannot be run, or the cache cannot be written.
    """
    spec = specs().get(recipe.merge_method or "")
    if recipe.sample is None or spec is None or not spec.statistic:
        return  # where the method is searched, they are computed for the first candidate that needs them
    for block in blocks(recipe):
        for entry in block.parents if spec.takes_base else block.entries:
            checkpoints[entry.model].statistics[statistics_key(recipe, spec)].has("")


class _Preparing:
    """Steps of a preparation, to be called in order and under the lock."""

    def __init__(self, config: WorkerConfig, progress: Progress) -> None:
        self._config, self.progress = config, progress

    def opener(self, recipe: Recipe) -> Opener:
        """Fetch or copy all models, merge nested recipes, and return an opener of the local results."""
        config = self._config
        sweep(config.cache)
        samples = SampledMoments(config.cache, config.device, self.progress, dict(config.samples))
        plain = Opener(config.cache, self.progress, config.allow_pickle, config.recipes, samples=samples)
        named = (donor_of(recipe), *recipe.references(), *config.also, *filter(None, [recipe.tokenizer_model]))
        models, adapters = _leaves(plain, named)
        self._check_fetching(models, adapters)
        near = {name: references.resolve(name, config.cache, self.progress, config.allow_pickle) for name in models}
        near |= {
            name: references.resolve_adapter(name, config.cache, self.progress, config.allow_pickle)
            for name in adapters
        }
        near |= self._copied({name: near[name] for name in models}, mounts())
        found = Opener(config.cache, self.progress, config.allow_pickle, config.recipes, near, samples)
        found.as_they_are(recipe, config.also)
        return found

    def apply(self, opener: Opener, recipe: Recipe) -> None:
        """Write the tensors that adapters or placebos change to the cache, and map them from there in the opener."""
        opened = opener.as_they_are(recipe, self._config.also)
        adapted = {
            name: checkpoint
            for name, checkpoint in opened.items()
            if isinstance(checkpoint, Overlay) and _is_computed(name, opener)
        }
        folders = {name: applied_adapters.folder_of(overlay, self._config.cache) for name, overlay in adapted.items()}
        for name, folder in folders.items():
            hold(self._config.cache, PREPARED, folder.name, name)
        distinct = {folders[name]: overlay for name, overlay in adapted.items()}
        needed = sum(applied_adapters.missing_bytes(overlay, folder) for folder, overlay in distinct.items())
        if needed:
            check_disk_space(self._config.cache, needed, f"{_count(len(distinct), 'model')} with adapters applied")
        for name, overlay in adapted.items():
            if applied_adapters.missing_bytes(overlay, folders[name]):
                note = partial(self.progress, f"applying the adapter of {name}")
                applied_adapters.store(overlay, folders[name], note)
            opener.put(applied_adapters.load(overlay, folders[name]))

    def _check_fetching(self, models: Iterable[str], adapters: Iterable[str]) -> None:
        allow = self._config.allow_pickle
        sizes = [references.bytes_to_fetch(name, allow_pickle=allow) for name in models]
        sizes += [references.bytes_to_fetch(name, adapter=True, allow_pickle=allow) for name in adapters]
        if needed := sum(sizes):
            fetched = sum(size > 0 for size in sizes)
            check_disk_space(references.hub_cache(), needed, f"{_count(fetched, 'model')} from the hub")

    def _copied(self, folders: dict[str, Path], mounted: list[Mount]) -> dict[str, Path]:
        """Copy models from network file systems unless the cache is on one too; return reference → copy."""
        cache = self._config.cache.resolve()
        if network_type(cache, mounted) is not None:
            return {}
        far = {
            name: Checkpoint.open(folder, name, self._config.allow_pickle)
            for name, folder in folders.items()
            if network_type(folder.resolve(), mounted) is not None
        }
        places = {name: copies.folder_of(checkpoint, cache) for name, checkpoint in far.items()}
        for name, place in places.items():
            hold(cache, COPIES, place.name, name, str(far[name].folder))
        distinct = {places[name]: checkpoint for name, checkpoint in far.items()}
        needed = sum(copies.missing_bytes(checkpoint, place) for place, checkpoint in distinct.items())
        if needed:
            check_disk_space(cache, needed, f"copies of {_count(len(distinct), 'model')} from network file systems")
        for name, checkpoint in far.items():
            copies.copy(checkpoint, places[name], partial(self.progress, f"copying {name} to this node"))
        return places


def _check_contents(config: WorkerConfig, recipe: Recipe, opener: Opener) -> None:
    """Compare the models on this node with the controller's.

    Raises:
        CheckpointError: A model differs, so that its scores would not belong to the search.
    """
    if config.inputs:
        for name, now in opener.contents(recipe, opener.as_they_are(recipe, config.also)).items():
            part = "tokenizer" if name.startswith(TOKENIZER_OF) else "sample" if name.startswith(SAMPLE_OF) else "model"
            _compare(part, name.removeprefix(TOKENIZER_OF), config.inputs.get(name, now), now, config, opener)
    if config.files:
        for name, files in opener.files(recipe, config.also).items():
            then = config.files.get(name, files)
            for file in sorted(then.keys() | files.keys()):
                _compare(file, name, then.get(file), files.get(file), config, opener)


def _compare(part: str, name: str, then: str | None, now: str | None, config: WorkerConfig, opener: Opener) -> None:
    if then != now:
        here = f"the {part} on {socket.gethostname()} ({_shown(now)})"
        what = f"{here} differs from the one the search was started with ({_shown(then)})"
        raise CheckpointError(name, what, next=_remedy(config, opener, name))


def _shown(digest: str | None) -> str:
    return "missing" if digest is None else f"content {digest[:12]}"


def _remedy(config: WorkerConfig, opener: Opener, reference: str) -> str:
    model, adapter = references.split(reference, opener.recipes)
    place = opener.near.get(model)
    copied = place is not None and place.parent == config.cache.resolve() / COPIES
    if not copied:
        return "Put the same files on every node"
    also = " and its adapter" if adapter is not None else ""
    return f"If its source{also} did not change, the copy is damaged: remove {place} on this node"


def _is_computed(reference: str, opener: Opener) -> bool:
    """Return whether a model has tensors that are computed from files: of an adapter or a placebo."""
    return placebo_reference.parse(reference) is not None or references.split(reference, opener.recipes)[1] is not None


def _leaves(opener: Opener, named: Iterable[str]) -> tuple[dict[str, None], dict[str, None]]:
    """Return the models and adapters in these references, including those of nested recipes."""
    models: dict[str, None] = {}
    adapters: dict[str, None] = {}
    recipes: set[str] = set()
    waiting = list(named)
    while waiting:
        reference = waiting.pop(0)
        placebo = placebo_reference.parse(reference)
        if placebo is not None:
            waiting += [placebo.base, placebo.model]
            continue
        model, adapter = references.split(reference, opener.recipes)
        if adapter is not None:
            adapters[adapter] = None
        if not is_recipe(model):
            models[model] = None
        elif model not in recipes:
            recipes.add(model)
            inner = opener.recipe(model)
            waiting += [*inner.references(), *filter(None, [inner.tokenizer_model])]
    return models, adapters


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _silent(step: str, fraction: float) -> None:
    """Ignore progress."""
