"""Speed and memory of merges, compared with a copy of the same bytes and with mergekit 0.1.5 in the same process.

    .venv/bin/python -m benchmarks.merge [--only METHOD] [--disk] [--memory]

In memory (the default): candidates of a search are written, one after another, into a resident bfloat16 model of the
shape of SmolLM2-135M, from a base and three perturbed copies (slerp: one) in bfloat16, in float32 arithmetic, each with
other per-layer weights and densities. "Copy" is the time of reading base and parents once and writing one result at the
bandwidth of torch's copy, measured before and after each candidate; the ratio is the median over candidates. "First" is
the first candidate, for which nothing is remembered. mergekit merges the same file once into memory, and for that ratio
our candidate has its form (DARE and DELLA rescale by the L1 norm).

    --disk      the same merges to a folder, by turns with mergekit's; a median over rounds
    --processor-time    one thread, processor times: for a machine that is busy with other work; in memory only
    --memory    peak of anonymous memory of merges to disk of synthetic models of 1 and 4 GB, each in its own process

Two threads. Prints one JSON document and tables. Exit code 1 if a ratio is not reached.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks._merge import oracle
from benchmarks._merge.copying import Clock, Copying
from benchmarks._merge.models import layers_of, perturbed, synthetic
from benchmarks._merge.recipes import METHODS, recipe
from benchmarks._paths import ROOT
from benchmarks._report import publish
from evosearch.checkpoints.reader import Checkpoint
from evosearch.materialize.in_memory import ResidentModel
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.merging.registry import specs
from evosearch.recipe.schema import Recipe

BASE = ROOT / "models" / "smollm2" / "base"
COPIES = {  # method → at most so many times the copy
    **dict.fromkeys(("linear", "task_arithmetic"), 2.5),
    **dict.fromkeys(("slerp", "ties", "model_stock"), 4.0),
    **dict.fromkeys(("breadcrumbs", "sce", "ram"), 6.0),
    **dict.fromkeys(("dare_linear", "dare_ties"), 12.0),
    "della": 16.0,
}
FASTER = dict.fromkeys(METHODS, 8.0) | {"ties": 25.0, "dare_ties": 25.0}  # than mergekit, in memory
FASTER_TO_DISK = dict.fromkeys(METHODS, 3.0) | {"linear": 2.0}
PEAK_GIB, GROWTH = 1.5, 1.1
GIB = 2**30


@dataclass(frozen=True)
class InMemory:
    """Times in seconds of one method, in memory."""

    method: str
    copy: float
    first: float
    candidate: float
    copies: float
    allowed: float
    mergekit: float | None = None
    faster: float | None = None
    asked: float | None = None

    @property
    def met(self) -> bool:
        """Return whether both ratios are reached."""
        return self.copies <= self.allowed and (self.faster is None or self.faster >= (self.asked or 0.0))


@dataclass(frozen=True)
class ToDisk:
    """Times in seconds of one method, to disk."""

    method: str
    ours: float
    mergekit: float
    faster: float
    asked: float

    @property
    def met(self) -> bool:
        """Return whether the ratio is reached."""
        return self.faster >= self.asked


@dataclass(frozen=True)
class Peaks:
    """Peaks of anonymous memory of one method, in GiB, by size of the model in GB."""

    method: str
    start: dict[int, float]
    peak: dict[int, float]
    seconds: dict[int, float]

    @property
    def met(self) -> bool:
        """Return whether the peaks are low and alike."""
        return max(self.peak.values()) <= PEAK_GIB and max(self.peak.values()) <= GROWTH * min(self.peak.values())


class Bench:
    """The models, opened once."""

    def __init__(self, base: Path, folder: Path, clock: Clock) -> None:
        self.base, self.folder = str(base), folder
        self.parents = [str(parent) for parent in perturbed(base, folder)]
        self.layers = layers_of(base)
        self._clock = clock
        self.copying = Copying(clock)

    def checkpoints(self, method: str) -> dict[str, Checkpoint]:
        """Open the models that a method uses."""
        used = [self.base, *self.parents[: specs()[method].models[1]]]
        return {name: Checkpoint.open(Path(name)) for name in used}

    def in_memory(self, method: str, rounds: int, with_mergekit: bool) -> InMemory:
        """Measure candidates of one method."""
        checkpoints = self.checkpoints(method)
        resident = ResidentModel(checkpoints, self.base, compute_dtype=torch.bfloat16)
        read = list(checkpoints) if specs()[method].takes_base else self.parents
        moved = sum(_bytes(checkpoints[name]) for name in (*read, self.base))
        for checkpoint in checkpoints.values():
            checkpoint.content_sha256()  # as before a search
        first = self._timed(resident, self._recipe(method, 0))
        copies, times = [self.copying.seconds(moved)], []
        for seed in range(1, rounds + 1):
            times.append(self._timed(resident, self._recipe(method, seed)))
            copies.append(self.copying.seconds(moved))
        ratios = [2 * t / (a + b) for t, a, b in zip(times, copies, copies[1:], strict=False)]
        found = (statistics.median(copies), first, statistics.median(times), statistics.median(ratios), COPIES[method])
        if not with_mergekit:
            return InMemory(method, *found)
        ours = []
        for seed in range(3):
            shared = recipe(method, self.base, self.parents, self.layers, seed, shared_form=True)
            ours.append(self._timed(resident, shared))
        theirs = oracle.in_memory(shared, resident.shape)
        return InMemory(method, *found, theirs, theirs / statistics.median(ours[1:]), FASTER[method])

    def to_disk(self, method: str, rounds: int) -> ToDisk:
        """Measure merges to disk by turns with mergekit."""
        ours, theirs = [], []
        for seed in range(rounds):
            checkpoints = self.checkpoints(method)
            shared = recipe(method, self.base, self.parents, self.layers, seed, shared_form=True)
            with tempfile.TemporaryDirectory(dir=self.folder) as out:
                started = time.perf_counter()
                write_checkpoint(shared, checkpoints, Path(out) / "ours", self.base)
                ours.append(time.perf_counter() - started)
                theirs.append(oracle.to_disk(shared, checkpoints[self.base].shape, Path(out) / "theirs"))
        ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
        return ToDisk(method, statistics.median(ours), statistics.median(theirs), ratio, FASTER_TO_DISK[method])

    def _timed(self, resident: ResidentModel, candidate: Recipe) -> float:
        resident.forget()  # methods without weights have one candidate only
        started = self._clock()
        resident.materialize(candidate)
        return self._clock() - started

    def _recipe(self, method: str, seed: int) -> Recipe:
        return recipe(method, self.base, self.parents, self.layers, seed)


def peaks(methods: Sequence[str], sizes: Sequence[int]) -> list[Peaks]:
    """Measure peaks of memory, model by model."""
    found: dict[str, dict[int, dict[str, float]]] = {method: {} for method in methods}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            models = [str(model) for model in synthetic(Path(folder), size)]
            for method in methods:
                command = [sys.executable, "-m", "benchmarks._merge.peak", method, *models]
                done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
                found[method][size] = json.loads(done.stdout.splitlines()[-1])
                print(f"{method}, {size} GB: {found[method][size]}", file=sys.stderr)
    return [
        Peaks(
            method,
            {size: one["start"] / GIB for size, one in by_size.items()},
            {size: one["peak"] / GIB for size, one in by_size.items()},
            {size: one["seconds"] for size, one in by_size.items()},
        )
        for method, by_size in found.items()
    ]


def _bytes(checkpoint: Checkpoint) -> int:
    return sum(checkpoint.load(name).nbytes for name in checkpoint.tensors)


def table_in_memory(rows: Sequence[InMemory]) -> str:
    """Markdown table of candidates in memory."""
    lines = [
        "| method | copy, s | first, s | candidate, s | × copy | to reach "
        "| mergekit, s | mergekit / ours | to reach | met |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        cells = [row.method, f"{row.copy:.3f}", f"{row.first:.2f}", f"{row.candidate:.3f}"]
        cells += [f"{row.copies:.1f}", f"{row.allowed:g}"]
        missing = row.mergekit is None
        cells += ["", "", ""] if missing else [f"{row.mergekit:.1f}", f"{row.faster:.0f}", f"{row.asked:g}"]
        lines.append(f"| {' | '.join([*cells, 'yes' if row.met else '**no**'])} |")
    return "\n".join(lines)


def table_to_disk(rows: Sequence[ToDisk]) -> str:
    """Markdown table of merges to disk."""
    lines = [
        "| method | to disk, s | mergekit, s | mergekit / ours | to reach | met |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        cells = [row.method, f"{row.ours:.2f}", f"{row.mergekit:.2f}", f"{row.faster:.1f}", f"{row.asked:g}"]
        lines.append(f"| {' | '.join([*cells, 'yes' if row.met else '**no**'])} |")
    return "\n".join(lines)


def table_of_peaks(rows: Sequence[Peaks]) -> str:
    """Markdown table of memory."""
    sizes = list(rows[0].peak)
    head = [f"start / peak at {size} GB, GiB | seconds" for size in sizes]
    lines = [f"| method | {' | '.join(head)} | met |", f"|---|{'---:|' * (2 * len(sizes))}---|"]
    for row in rows:
        cells = [f"{row.start[size]:.2f} / {row.peak[size]:.2f} | {row.seconds[size]:.0f}" for size in sizes]
        lines.append(f"| {' | '.join([row.method, *cells, 'yes' if row.met else '**no**'])} |")
    return "\n".join(lines)


def main() -> int:
    """Run the parts; return the exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks.merge", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", type=Path, default=BASE, help="model folder; default %(default)s")
    parser.add_argument("--only", action="append", choices=list(METHODS), metavar="METHOD", help="may be repeated")
    parser.add_argument("--disk", action="store_true", help="merges to disk instead")
    parser.add_argument("--memory", action="store_true", help="memory of merges to disk instead")
    parser.add_argument("--rounds", type=int, help="candidates (default 9), or rounds to disk (default 3)")
    parser.add_argument("--sizes", type=int, nargs=2, default=(1, 4), metavar="GB", help="default 1 4")
    parser.add_argument("--no-mergekit", action="store_true", help="in memory: compare with a copy only")
    parser.add_argument("--processor-time", action="store_true", help="one thread, processor times; without mergekit")
    options = parser.parse_args()
    torch.set_num_threads(1 if options.processor_time else 2)
    options.no_mergekit |= options.processor_time
    methods = options.only or list(METHODS)
    if options.memory:
        rows: list[Any] = peaks(options.only or ["linear", "ties", "della"], options.sizes)
        publish({"peaks": [asdict(row) for row in rows]}, table_of_peaks(rows))
        return int(not all(row.met for row in rows))
    if not options.no_mergekit:
        oracle.prepare()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.base, Path(folder), time.process_time if options.processor_time else time.perf_counter)
        for method in methods:
            if options.disk:
                rows.append(bench.to_disk(method, options.rounds or 3))
            else:
                rows.append(bench.in_memory(method, options.rounds or 9, not options.no_mergekit))
            print(rows[-1], file=sys.stderr)
    table = table_to_disk if options.disk else table_in_memory
    publish({"rows": [asdict(row) for row in rows]}, table(rows))
    return int(not all(row.met for row in rows))


if __name__ == "__main__":
    sys.exit(main())
