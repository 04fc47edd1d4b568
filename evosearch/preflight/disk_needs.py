"""Disk space that a search needs, compared with the free space.

Sizes come from files, indices and configs. A shortage is a problem.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import constants

from evosearch.checkpoints import pickles, references
from evosearch.checkpoints.cache.layout import MERGED, PREPARED
from evosearch.checkpoints.disk_space import is_read_only
from evosearch.checkpoints.disk_space import size as shown
from evosearch.checkpoints.model_files import read_json
from evosearch.checkpoints.references import default_cache
from evosearch.checkpoints.tensor_files import INDEX
from evosearch.errors import InputError, SpecError
from evosearch.preflight.model_size import FLOAT32
from evosearch.preflight.sizes import Sizes
from evosearch.recipe import files
from evosearch.recipe.schema import Recipe
from evosearch.setup.trackers import JSON_LINES
from evosearch.spec.run_dir import SQLITE
from evosearch.spec.spec import SearchSpec
from evosearch.untrusted import present

# Measured on searches of 65 to 135 candidates, whose ledgers have 21 to 25 KB per candidate
BYTES_PER_ITEM = 40
BYTES_PER_CANDIDATE = 8192
RECIPES_PER_CANDIDATE = 3  # copies of a recipe, and of the genome it is made from
MIRRORED = 24 * 1024  # bytes per candidate in MLflow's database, without its recipe; measured: 15 KB with two tasks
MARGIN = 2.0**28  # bytes that stay free on every disk


@dataclass(frozen=True)
class Need:
    """Data that will be written to a folder, which need not exist yet.

    Attributes:
        what: The data, in words.
        folder: The folder.
        size: Bytes.
        setting: The key or environment variable that names the folder.
    """

    what: str
    folder: Path
    size: float
    setting: str


def to_fetch(spec: SearchSpec, sizes: Sizes) -> list[Need]:
    """Data that is fetched or merged before a search starts: weights of hub models, nested recipes.

    The cache names a merged recipe by its models' content, which is not known yet: a cached merge of about the same
    size is assumed to be this one.
    """
    hub = Path(constants.HF_HUB_CACHE)
    merged = [_bytes(folder) for folder in (default_cache() / MERGED).glob("*")]
    found = []
    for reference, size in sizes.stored.items():
        if files.is_recipe(reference):
            if not any(abs(have - size) < 0.02 * size for have in merged):
                found.append(Need(f"'{reference}' merged", default_cache() / MERGED, size, "EVOSEARCH_CACHE"))
        elif references.is_hub_id(reference) and not _is_here(reference):
            found.append(Need(f"'{reference}'", hub, size, "HF_HUB_CACHE"))
    return found


def to_write(spec: SearchSpec, evaluations: int, items: int, sizes: Sizes, recipe: Recipe) -> list[Need]:
    """Data that a search writes while it runs.

    Args:
        spec: The spec.
        evaluations: Evaluations of candidates and baselines, at most.
        items: Item evaluations of all of them.
        sizes: Sizes of the models.
        recipe: The recipe of a candidate.
    """
    run_dir, promotion = spec.run_dir, spec.config.promotion
    each = BYTES_PER_CANDIDATE + RECIPES_PER_CANDIDATE * len(recipe.model_dump_json())
    recorded = evaluations * each + items * BYTES_PER_ITEM
    found = []
    if run_dir.ledger.startswith(SQLITE):
        folder = Path(run_dir.ledger.removeprefix(SQLITE)).parent
        found.append(Need("the ledger", folder, recorded, "ledger"))
    local = run_dir.tracking.startswith(SQLITE)
    if local:
        folder = Path(run_dir.tracking.removeprefix(SQLITE)).parent
        mirrored = evaluations * (MIRRORED + len(recipe.model_dump_json()))
        found.append(Need("MLflow's records", folder, mirrored, "tracking.uri"))
    elif run_dir.tracking.startswith(JSON_LINES):
        found.append(Need(run_dir.tracking.removeprefix(JSON_LINES), run_dir.folder, recorded, "EVOSEARCH_RUNS"))
    if spec.config.baselines.placebo:
        size = float(_random_bytes(sizes, recipe))
        found.append(Need("the placebo's models", default_cache() / PREPARED, size, "EVOSEARCH_CACHE"))
    if promotion.checkpoint:
        size = float(sizes.output.parameters * getattr(torch, recipe.output_dtype).itemsize)
        found.append(Need("the exported checkpoint", run_dir.export_folder, size, "EVOSEARCH_RUNS"))
        if local and promotion.register_as:
            found.append(Need("its copy in MLflow", folder, size, "tracking.uri"))
    return found


def _random_bytes(sizes: Sizes, recipe: Recipe) -> int:
    """Bytes of a placebo's models, in float32: all tensors, or those that an adapter changes."""
    parents = [reference for reference in recipe.references() if reference != recipe.base_model]
    adapted = [reference for reference in parents if references.split(reference)[1] is not None]
    return sum(sizes.held[one] for one in adapted) + FLOAT32 * sizes.output.parameters * (len(parents) - len(adapted))


def lacking(needs: Sequence[Need]) -> list[InputError]:
    """One problem for each disk that cannot be written to, or has less free space than will be written to it."""
    disks: dict[int, list[Need]] = {}
    problems: list[InputError] = []
    for need in needs:
        if is_read_only(_existing(need.folder)):
            what = f"on a read-only file system, and {need.what} will be written there"
            problems.append(SpecError(str(need.folder), what, next=f"Choose another place ({need.setting})"))
        else:
            disks.setdefault(_existing(need.folder).stat().st_dev, []).append(need)
    for on_disk in disks.values():
        largest = max(on_disk, key=lambda need: need.size)
        total, free = sum(need.size for need in on_disk), shutil.disk_usage(_existing(largest.folder)).free
        if total + MARGIN > free:
            listed = ", ".join(f"{need.what} {shown(int(need.size))}" for need in on_disk)
            what = f"about {shown(int(total))} will be written to this disk ({listed}), which must keep "
            what += f"{shown(int(MARGIN))} free, and {shown(free)} are free"
            next_step = f"Free some space, or choose another place ({largest.setting})"
            problems.append(SpecError(str(largest.folder), what, next=next_step))
    return problems


def _is_here(reference: str) -> bool:
    """Whether the hub cache has all weights of this revision of a model."""
    model, _, revision = reference.partition("@")
    home = references.hub_cache() / f"models--{model.replace('/', '--')}"
    snapshot = home / "snapshots" / _commit(home, revision or constants.DEFAULT_REVISION)
    for index in (INDEX, pickles.INDEX):
        if present(snapshot / index):
            listed = read_json(snapshot / index).get("weight_map")
            shards = set(map(str, listed.values())) if isinstance(listed, dict) else set()
            return bool(shards) and all(os.path.isfile(snapshot / shard) for shard in shards)
    patterns = ("*.safetensors", *pickles.PATTERNS)
    return any(path.is_file() for pattern in patterns for path in snapshot.glob(pattern))


def _commit(home: Path, revision: str) -> str:
    """The commit of a branch or tag when it was last fetched; any other revision is a commit itself."""
    named = home / "refs" / revision
    return named.read_text(encoding="utf-8").strip() if named.is_file() else revision


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    return next(one for one in (folder, *folder.parents) if os.path.isdir(one))
