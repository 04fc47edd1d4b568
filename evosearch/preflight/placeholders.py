"""Placeholders for the winners of stages that have not run yet, while a spec is checked.

Like a winner, a placeholder is a separate model that the spec does not name.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evosearch.checkpoints.cache.drafts import Draft, sweep
from evosearch.checkpoints.references import default_cache
from evosearch.errors import CandidateError, CheckpointError, RecipeError
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.materialize.plan import donor_of
from evosearch.recipe.files import STAGE
from evosearch.search.baselines import single
from evosearch.search.progress import Watcher
from evosearch.setup.prepare import Prepared
from evosearch.spec.spec import SearchSpec, Winner


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A temporary folder in the cache, on the disk that winners will be merged to.

    Folders of killed processes are removed first.

    Raises:
        CheckpointError: The cache cannot be written.
    """
    cache = default_cache()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        sweep(cache)
        made = Draft(cache, "check")
    except OSError as error:
        what = f"cannot be written: {error.strerror or error}"
        raise CheckpointError(str(cache), what, next="Choose another folder in EVOSEARCH_CACHE") from None
    try:
        yield made.folder
    finally:
        made.close()


def merged_start(name: str, prepared: Prepared, folder: Path, watcher: Watcher) -> Winner:
    """The start of a stage, merged as its winner will be.

    Args:
        name: Name of the stage.
        prepared: Its search.
        folder: Where to write the model.
        watcher: Shows that it is being merged.

    Raises:
        CheckpointError: The disk is full.
        RecipeError: It cannot be merged.
    """
    recipe, doing = prepared.example, f"merging the start of {STAGE}{name}"
    models = {reference: prepared.models.checkpoints[reference] for reference in recipe.references()}
    watcher.preparing(doing, 0.0)
    try:
        write_checkpoint(recipe, models, folder / name, donor_of(recipe))
    except CandidateError as error:
        raise RecipeError(prepared.spec.where, error.reason, next="Choose another start with init") from error
    watcher.preparing(doing, 1.0)
    return Winner(recipe.to_dict(), prepared.models.identify(recipe), place=folder / name)


def same_size(stage: SearchSpec) -> Winner:
    """A recipe of the size of a stage's winner: its frame, or for routes the first model alone."""
    recipe = stage.frame
    if stage.is_route:
        recipe = single(donor_of(recipe), recipe.output_dtype)
    return Winner(recipe.to_dict(), "", stage.recipes)
