"""Host and GPU memory that a search needs, compared with this machine's.

Only a certain shortage is a problem. A possible one is a note, because it must not stop a search that could run.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from evosearch.checkpoints.digest import DTYPES
from evosearch.checkpoints.disk_space import GIB
from evosearch.errors import InputError, SpecError
from evosearch.execution.memory import allowed, cards
from evosearch.preflight.model_size import FLOAT32
from evosearch.recipe.schema import Recipe
from evosearch.setup.models import Models
from evosearch.spec.spec import SearchSpec


def memory_of(models: Models, largest: Recipe | None = None, another: bool = False) -> dict[str, Any]:
    """Host memory in GiB: the parents (memory-mapped, read once per candidate) and the resident model in float32.

    Args:
        models: The opened models.
        largest: The candidate with the largest memory need; None for the models' own recipe.
        another: Whether a baseline needs a second resident model of about the same size.
    """
    parents = sum(
        math.prod(info.shape) * DTYPES[info.dtype].itemsize
        for checkpoint in models.checkpoints.values()
        for name, info in checkpoint.tensors.items()
        if checkpoint.shares(name) is None  # an adapter's base is counted once
    )
    resident = FLOAT32 * models.live_numbers(largest or models.recipe) * (2 if another else 1)
    gib = {"parents_gib": parents / GIB, "resident_gib": resident / GIB}
    gib |= {"available_gib": psutil.virtual_memory().available / GIB, "total_gib": host_memory() / GIB}
    return gib | {"needed_gib": (parents + resident) / GIB}


def host_memory() -> float:
    """Bytes of memory that this process and its children may use: the machine's, or their container's limit."""
    total = float(psutil.virtual_memory().total)
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, float(Path(limit).read_text()))
        except (OSError, ValueError):  # no such file, or `max`
            continue
    return total


def device_of(spec: SearchSpec, gpus: float, needed: dict[str, float]) -> dict[str, Any] | None:
    """GPU memory of a worker on this machine, available and needed, in GiB; None if it has no GPU.

    If GPUs differ, the figures are those of the smallest; `largest` is the best case.

    Args:
        spec: The spec.
        gpus: GPUs of one worker; a fraction is a fraction of a GPU's memory.
        needed: GiB by kind, as `cost` estimates them.
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
    """GiB of a worker's share of its GPUs: all of their memory, or a fraction of one."""
    if gpus >= 1:
        return sum(float(card["total_gib"]) for card in found)
    return allowed(int(found[0]["total_gib"] * GIB), gpus) / GIB


def judge_memory(spec: SearchSpec, memory: dict[str, Any], count: int) -> tuple[list[InputError], list[str]]:
    """Problems and notes about the memory of this machine's workers.

    Parents are memory-mapped: without enough memory they are read from disk again, which is slow but works. The
    resident models must fit.

    Args:
        spec: The spec.
        memory: As `memory_of` returns it, with `device` if workers have GPUs.
        count: Number of workers on this machine.
    """
    device = memory.get("device")
    if device is not None:
        return _judge_device(spec, device)
    resident = count * memory["resident_gib"]
    workers = "one worker needs" if count == 1 else f"{count} workers need"
    if resident > memory["total_gib"]:
        what = f"{workers} {resident:.1f} GiB for candidates alone, and this machine has {memory['total_gib']:.1f}"
        return [SpecError(spec.at("workers.count"), what, next="Use fewer workers, or a larger machine")], []
    needed = memory["parents_gib"] + resident
    if needed > memory["available_gib"]:
        return [], [
            f"{workers} about {needed:.1f} GiB of memory, and {memory['available_gib']:.1f} GiB are available here"
        ]
    return [], []


def _judge_device(spec: SearchSpec, device: Mapping[str, Any]) -> tuple[list[InputError], list[str]]:
    """A problem if a candidate fits on no GPU; a note if it does not fit on the smallest."""
    best, share, resident = device["largest"], device["share_gib"], device["resident_gib"]
    many = f"{device['gpus_per_worker']:g} of a"
    if resident > best["share_gib"]:
        what = f"a candidate needs {resident:.1f} GiB, and a worker has {best['share_gib']:.1f}: {many} {best['name']}"
        return [SpecError(spec.at("workers.gpus_per_worker"), what, next="Give each worker more of a GPU")], []
    if resident > share:
        text = f"a candidate needs {resident:.1f} GiB, and a worker with {many} {device['name']} has {share:.1f}"
        return [], [f"{text}: it could not score any. Exclude that GPU (CUDA_VISIBLE_DEVICES)"]
    if device["needed_gib"] > share:
        text = f"a worker could use {device['needed_gib']:.1f} GiB of GPU memory, and has {share:.1f}"
        return [], [f"{text} ({many} {device['name']}): its batches will be smaller"]
    return [], []
