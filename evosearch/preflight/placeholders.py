"""What stands in place of winners that stages are yet to find, for as long as a spec is checked.

Each is another model than any that the spec names, as the winner will be.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

from evosearch.checkpoints.references import default_cache
from evosearch.errors import CandidateError, CheckpointError, RecipeError
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.materialize.plan import donor_of
from evosearch.recipe.files import STAGE
from evosearch.recipe.schema import Input, Recipe
from evosearch.search.progress import Watcher
from evosearch.search.space.routes import is_route
from evosearch.search.space.template import frame
from evosearch.setup.prepare import Prepared
from evosearch.spec.spec import SearchSpec, Winner

PREFIX = "check-"  # of folders in the cache
LOCK = ".lock"  # in each, held for as long as it is used


@contextmanager
def kept_for_now() -> Iterator[Path]:
    """A folder in the cache, on the disk that winners will be merged to, and gone afterwards.

    One that was left behind, by a process that was killed, goes with it.

    Raises:
        CheckpointError: the cache cannot be written.
    """
    cache = default_cache()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        folder, lock = _made(cache)
    except OSError as error:
        what = f"cannot be written: {error.strerror or error}"
        raise CheckpointError(str(cache), what, next="Name another folder in EVOSEARCH_CACHE") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _made(cache: Path) -> tuple[Path, int]:
    """A new folder, and the lock in it that says that it is used."""
    while True:
        folder = Path(mkdtemp(dir=cache, prefix=PREFIX))
        with suppress(FileNotFoundError):  # swept before it was locked
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (folder / LOCK).exists():
                return folder, lock
            os.close(lock)


def _sweep(cache: Path) -> None:
    """Remove folders that no process uses: the system gives a lock back however its process ends."""
    for folder in cache.glob(f"{PREFIX}*"):
        with suppress(OSError):  # it is used, or another's, or somebody else sweeps it
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def merged(name: str, prepared: Prepared, folder: Path, watcher: Watcher) -> Winner:
    """What a stage starts from, merged as its winner will be.

    Raises:
        CheckpointError: there is no room for it.
        RecipeError: there is no merge of it.
    """
    recipe, doing = prepared.example, f"merging the start of {STAGE}{name}"
    models = {reference: prepared.models.checkpoints[reference] for reference in recipe.references()}
    watcher.preparing(doing, 0.0)
    try:
        write_checkpoint(recipe, models, folder / name, donor_of(recipe))
    except CandidateError as error:
        raise RecipeError(prepared.spec.where, error.reason, next="Start elsewhere: see init") from error
    watcher.preparing(doing, 1.0)
    return Winner(recipe.to_dict(), prepared.models.identify(recipe), place=folder / name)


def described(stage: SearchSpec) -> Winner:
    """A recipe of the size of a stage's winner: of its frame, or of a search over routes the first model alone."""
    recipe = frame(stage.template, stage.where)
    if is_route(stage.template):
        recipe = Recipe(merge_method="linear", models=(Input(model=donor_of(recipe)),), dtype=recipe.output_dtype)
    return Winner(recipe.to_dict(), "", stage.recipes)
