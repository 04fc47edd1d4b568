"""Whether a search has room: on the disks that it writes to, in the memory of this machine, on its GPUs.

Only what is certain is a problem: what is reckoned from a file's size, a config or a measured part of the machine. The
rest is a note, since an estimate must not stop a search that would have gone well.
"""

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import constants

from evosearch.checkpoints import pickles, references
from evosearch.checkpoints.digest import DTYPES
from evosearch.checkpoints.disk_space import GIB
from evosearch.checkpoints.files import INDEX, read_json
from evosearch.checkpoints.references import default_cache
from evosearch.errors import InputError, SpecError
from evosearch.execution.memory import allowed, cards
from evosearch.preflight.sizes import FLOAT32, Sizes
from evosearch.recipe import files
from evosearch.recipe.schema import Recipe
from evosearch.setup.models import Models
from evosearch.setup.trackers import JSON_LINES
from evosearch.spec.run_dir import SQLITE, places_of
from evosearch.spec.spec import SearchSpec

# By searches of 65 to 135 candidates, whose ledgers have 21 to 25 KB of each: scores are compressed to 4 bytes a number
BYTES_AN_ITEM = 40
BYTES_A_CANDIDATE = 8192
RECIPES_A_CANDIDATE = 3  # its recipe stands in `asked`, beside the genome that it is made of
MIRRORED = 32 * 1024  # bytes of a candidate in MLflow's database and artifacts
MARGIN = 2.0**28  # what a disk is left with: a full one stops more than this search


@dataclass(frozen=True)
class Need:
    """What is written into a folder that may not be there yet, in bytes."""

    what: str
    folder: Path
    size: float
    mend: str  # how another folder is named


def to_fetch(spec: SearchSpec, sizes: Sizes) -> list[Need]:
    """What is fetched or merged before a search begins: weights of hub models that are not here, recipes as models.

    A recipe that is merged already lies in the cache under a name that only its models' bytes tell: where a merge of
    about that size is there, it is taken to be this one.
    """
    hub = Path(constants.HF_HUB_CACHE)
    merged = [_bytes(folder) for folder in (default_cache() / "merged").glob("*")]
    found = []
    for reference, size in sizes.stored.items():
        if files.is_recipe(reference):
            if not any(abs(have - size) < 0.02 * size for have in merged):
                found.append(Need(f"'{reference}' merged", default_cache() / "merged", size, "EVOSEARCH_CACHE"))
        elif references.is_hub_id(reference) and not _is_here(reference):
            found.append(Need(f"'{reference}'", hub, size, "HF_HUB_CACHE"))
    return found


def to_write(spec: SearchSpec, candidates: int, items: int, sizes: Sizes, recipe: Recipe) -> list[Need]:
    """What a search writes while it runs.

    Args:
        candidates: at most, baselines too.
        items: that are scored in all, of all of them.
        recipe: of a candidate.
    """
    places, promotion = places_of(spec), spec.config.promotion
    each = BYTES_A_CANDIDATE + RECIPES_A_CANDIDATE * len(recipe.model_dump_json())
    recorded = candidates * each + items * BYTES_AN_ITEM
    found = []
    if places.ledger.startswith(SQLITE):
        folder = Path(places.ledger.removeprefix(SQLITE)).parent
        found.append(Need("the ledger", folder, recorded, "ledger"))
    local = places.tracking.startswith(SQLITE)
    if local:
        folder = Path(places.tracking.removeprefix(SQLITE)).parent
        found.append(Need("MLflow's records", folder, candidates * MIRRORED, "tracking.uri"))
    elif places.tracking.startswith(JSON_LINES):
        found.append(Need(places.tracking.removeprefix(JSON_LINES), places.folder, recorded, "EVOSEARCH_RUNS"))
    if promotion.checkpoint:
        size = float(sizes.output.parameters * getattr(torch, recipe.output_dtype).itemsize)
        found.append(Need("the exported checkpoint", places.exported, size, "EVOSEARCH_RUNS"))
        if local and promotion.register_as:
            found.append(Need("its copy in MLflow", folder, size, "tracking.uri"))
    return found


def lacking(needs: Sequence[Need]) -> list[InputError]:
    """A problem for every disk that has less free than is written to it."""
    disks: dict[int, list[Need]] = {}
    for need in needs:
        disks.setdefault(_nearest(need.folder).stat().st_dev, []).append(need)
    problems: list[InputError] = []
    for on_it in disks.values():
        largest = max(on_it, key=lambda need: need.size)
        total, free = sum(need.size for need in on_it), shutil.disk_usage(_nearest(largest.folder)).free
        if total + MARGIN > free:
            parts = ", ".join(f"{need.what} {need.size / GIB:.1f}" for need in on_it)
            what = f"about {total / GIB:.1f} GiB will be written to this disk ({parts}), and {free / GIB:.1f} are free"
            next_step = f"Make room, or name another place ({largest.mend})"
            problems.append(SpecError(str(largest.folder), what, next=next_step))
    return problems


def memory_of(models: Models, largest: Recipe | None = None, another: bool = False) -> dict[str, Any]:
    """GiB on the host: the parents (mapped from disk, read once a candidate) and the resident model in float32.

    Args:
        largest: the candidate that takes most; None: the models' own recipe.
        another: a second resident model, of about the same size, stands beside it at times.
    """
    parents = sum(
        math.prod(info.shape) * DTYPES[info.dtype].itemsize
        for checkpoint in models.checkpoints.values()
        for name, info in checkpoint.tensors.items()
        if checkpoint.shares(name) is None  # an adapter's base is held once
    )
    resident = FLOAT32 * models.live_numbers(largest or models.recipe) * (2 if another else 1)
    gib = {"parents_gib": parents / GIB, "resident_gib": resident / GIB}
    gib |= {"available_gib": psutil.virtual_memory().available / GIB, "total_gib": host_memory() / GIB}
    return gib | {"needed_gib": (parents + resident) / GIB}


def host_memory() -> float:
    """Bytes of memory that this process and its children may have at most: the machine's, or their container's."""
    total = float(psutil.virtual_memory().total)
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, float(Path(limit).read_text()))
        except (OSError, ValueError):  # there is none, or it says `max`
            continue
    return total


def device_of(spec: SearchSpec, gpus: float, needed: dict[str, float]) -> dict[str, Any] | None:
    """A worker's GPUs on this machine against what it needs there, in GiB; None where it has none.

    Where cards differ, it is the smallest that most has to be said of; `largest` is what a worker has at best.

    Args:
        gpus: of one worker; a part of one is a part of its memory.
        needed: GiB by kind, as `cost` reckons them.
    """
    found = sorted(cards(), key=lambda card: float(card["total_gib"]))
    if not found or spec.config.workers.device == "cpu" or not gpus:
        return None
    count = max(1, int(gpus))
    smallest, largest = found[:count], found[-count:]
    return {
        "name": smallest[0]["name"],
        "gpus_per_worker": gpus,
        "total_gib": smallest[0]["total_gib"],
        "share_gib": _share(smallest, gpus),
        "largest": {"name": largest[-1]["name"], "share_gib": _share(largest, gpus)},
        "resident_gib": needed["resident"],
        "needed_gib": needed["needed"],
    }


def _share(found: Sequence[Mapping[str, Any]], gpus: float) -> float:
    """GiB that a worker has of its cards: of all of them, or of a part of one."""
    if gpus >= 1:
        return sum(float(card["total_gib"]) for card in found)
    return allowed(int(found[0]["total_gib"] * GIB), gpus) / GIB


def judge_memory(spec: SearchSpec, memory: dict[str, Any], count: int) -> tuple[list[InputError], list[str]]:
    """Problems and notes on what the workers of this machine need.

    Parents are mapped: with less memory than they take they are read from disk again, which is slow and works. The
    resident models cannot be done without.

    Args:
        memory: as `memory_of`, with `device` where workers have GPUs.
        count: workers on this machine.
    """
    device = memory.get("device")
    if device is not None:
        return _judge_device(spec, device)
    whole = count * memory["resident_gib"]
    workers = "one worker needs" if count == 1 else f"{count} workers need"
    if whole > memory["total_gib"]:
        what = f"{workers} {whole:.1f} GiB for candidates alone, and there are {memory['total_gib']:.1f} in all"
        return [SpecError(spec.at("workers.count"), what, next="Ask for fewer workers, or a larger machine")], []
    needed = memory["parents_gib"] + whole
    if needed > memory["available_gib"]:
        return [], [f"{workers} about {needed:.1f} GiB and {memory['available_gib']:.1f} GiB are free here"]
    return [], []


def _judge_device(spec: SearchSpec, device: Mapping[str, Any]) -> tuple[list[InputError], list[str]]:
    """What not even the largest card holds is a problem; what the smallest does not is a note: others may do."""
    best, share, resident = device["largest"], device["share_gib"], device["resident_gib"]
    many = f"{device['gpus_per_worker']:g} of a"
    if resident > best["share_gib"]:
        what = f"a candidate takes {resident:.1f} GiB, and a worker has {best['share_gib']:.1f}: {many} {best['name']}"
        return [SpecError(spec.at("workers.gpus_per_worker"), what, next="Give each worker more of a GPU")], []
    if resident > share:
        text = f"a candidate takes {resident:.1f} GiB, and a worker with {many} {device['name']} has {share:.1f}"
        return [], [f"{text}: it would score nothing. Leave that card out (CUDA_VISIBLE_DEVICES)"]
    if device["needed_gib"] > share:
        text = f"a worker would take {device['needed_gib']:.1f} GiB of its GPU, which has {share:.1f}"
        return [], [f"{text} ({many} {device['name']}): fewer tokens will be run together"]
    return [], []


def _is_here(reference: str) -> bool:
    """Whether all weights of this revision of a hub model are in the hub's cache."""
    model, _, revision = reference.partition("@")
    home = references.hub_cache() / f"models--{model.replace('/', '--')}"
    snapshot = home / "snapshots" / _commit(home, revision or constants.DEFAULT_REVISION)
    for index in (INDEX, pickles.INDEX):
        if (snapshot / index).is_file():
            listed = read_json(snapshot / index).get("weight_map")
            shards = set(map(str, listed.values())) if isinstance(listed, dict) else set()
            return bool(shards) and all((snapshot / shard).is_file() for shard in shards)
    patterns = ("*.safetensors", *pickles.PATTERNS)
    return any(path.is_file() for pattern in patterns for path in snapshot.glob(pattern))


def _commit(home: Path, revision: str) -> str:
    """The commit that a branch or tag stood for when it was last asked; what is no such name is a commit itself."""
    named = home / "refs" / revision
    return named.read_text(encoding="utf-8").strip() if named.is_file() else revision


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(one for one in (folder, *folder.parents) if os.path.isdir(one))
