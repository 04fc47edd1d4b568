"""`evosearch merge`: write a recipe's merge as a checkpoint."""

from pathlib import Path
from typing import Any

from evosearch.materialize.on_disk import write_checkpoint
from evosearch.merging.registry import specs
from evosearch.recipe import checks, files
from evosearch.search.progress import Watcher
from evosearch.setup.models import open_models


def merge(path: Path, out: Path, watcher: Watcher, allow_pickle: bool = False) -> dict[str, Any]:
    """Merge the recipe in `path` into the folder `out`; the result is what `evosearch merge --json` prints."""
    recipe = files.load(path)
    for text in checks.check(recipe, specs(), str(path) + ": "):
        watcher.note(text)
    models = open_models(recipe, str(path), watcher, allow_pickle)
    models.plan(recipe, f"{path}: recipe")
    recipe_id = models.identify(recipe)  # reads every weight, and so finds damaged parents before anything is written
    report = write_checkpoint(recipe, models.checkpoints, out, models.donor)
    return {
        "out": str(report.out),
        "tensors": report.tensors,
        "bytes": report.bytes,
        "seconds": dict(report.seconds),
        "peak_rss_gib": report.peak_rss_gib,
        "recipe_id": recipe_id,
        "weights_sha256": report.weights_sha256,
    }
