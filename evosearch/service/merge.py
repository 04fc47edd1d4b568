"""`evosearch merge`: write a recipe's merge as a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from evosearch.materialize.on_disk import WeightDigests, write_checkpoint
from evosearch.merging.registry import specs
from evosearch.recipe import checks, files
from evosearch.search.progress import Watcher
from evosearch.setup.lineage import check_lineage
from evosearch.setup.models import open_models
from evosearch.setup.recorded_inputs import REMOVE, changed_weights, check_recorded, refuse

OTHER_BITS = f"Use the recorded versions: others can change the last bits. To merge without the comparison, {REMOVE}"
MOST_SHOWN = 5  # tensors that an error names


@dataclass(frozen=True)
class MergeReport:
    """A merged checkpoint, as `evosearch merge --json` prints it.

    Attributes:
        out: The folder.
        tensors: Number of tensors.
        bytes: Size of the weights.
        seconds: Phase → duration; `total` is that of all phases.
        peak_rss_gib: Peak resident memory of this process so far, in GiB.
        recipe_id: Id of the recipe with its models' weights.
        weights_sha256: Digest of the merged weights; it does not depend on how they are split into files.
    """

    out: str
    tensors: int
    bytes: int
    seconds: Mapping[str, float]
    peak_rss_gib: float
    recipe_id: str
    weights_sha256: str


def merge(
    path: Path, out: Path, watcher: Watcher, allow_pickle: bool = False, allow_unrelated: bool = False
) -> MergeReport:
    """Merge the recipe in a file and write the result as a checkpoint.

    Args:
        path: The recipe file.
        out: Folder to write; it must be empty or not exist.
        watcher: Shows progress and notes.
        allow_pickle: Read pickled weights of models without safetensors.
        allow_unrelated: Merge models that share no base, which are refused otherwise.

    Raises:
        InputError: The recipe is wrong, its models cannot be merged, `out` is not empty, or models or merged weights
            are not those that the section `provenance` records.
    """
    recipe, recorded = files.load(path), files.load_provenance(path)
    for text in checks.check(recipe, specs(), str(path) + ": "):
        watcher.note(text)
    models = open_models(recipe, str(path), watcher, allow_pickle)
    models.plan(recipe, f"{path}: recipe")
    if not allow_unrelated:
        check_lineage(models, str(path))
    recipe_id = models.identify(recipe)  # reads every weight, and so finds damaged parents before anything is written
    if recorded is not None:
        check_recorded(recorded, models, recipe_id, str(path))

    def accept(digests: WeightDigests) -> None:
        if recorded is not None:
            refuse(changed_weights(recorded, digests)[:MOST_SHOWN], str(path), OTHER_BITS)

    report = write_checkpoint(recipe, models.checkpoints, out, models.donor, accept=accept)
    return MergeReport(
        out=str(report.out),
        tensors=report.tensors,
        bytes=report.bytes,
        seconds=report.seconds,
        peak_rss_gib=report.peak_rss_gib,
        recipe_id=recipe_id,
        weights_sha256=report.weights_sha256,
    )
