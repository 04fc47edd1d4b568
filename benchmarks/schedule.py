"""Worker utilization, controller time per candidate and memory growth of a search with simulated workers.

    .venv/bin/python -m benchmarks.schedule [--quick] [--only utilization|controller|memory] [--optimizer NAME]
                                            [--clock wall|cpu]

The controller, its SQLite ledger, the search space and the optimizers are real; the workers are simulated. The duration
of an evaluation is lognormal with mean 60 s and sigma 1 (half take less than 36 s, one in a hundred more than six
minutes). The controller's own time between two calls is measured and added to the same clock. Utilization is the share
of worker time that is busy, between the first and the last submitted candidate. On a busy machine, use `--clock cpu`,
which counts the controller's CPU time instead and excludes waiting for the disk. Everything runs in one thread. Prints
one JSON document and tables. Exit code 1 if a claim is not met.
"""

import argparse
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # set before numpy is imported, here and in child processes

from benchmarks._report import publish
from benchmarks._simulated.measures import Setting, busy, memory

WORKERS = (1, 8, 64, 512)
LEAST = {1: 0.95, 8: 0.95, 64: 0.95, 512: 0.90}
CANDIDATES = {1: 40, 8: 200, 64: 800, 512: 4096}
DIAGONAL = (("diagonal", True),)
GROWTH_KIB = 16.0  # maximum per candidate: its row of the search state, without genome and recipe


def utilizations() -> list[Setting]:
    """Asynchronous optimizers with 300 dimensions (tpe with 60), and generational ones with a population per worker.

    gp and grid are meant for few dimensions and trials: 20 and 2 dimensions, at most 256 candidates. There is no claim
    for gp, whose `ask` may take seconds by design.
    """
    found = []
    for count in WORKERS:
        for name, options in (("cma_es", DIAGONAL), ("lra_cma", ()), ("cat_cma", ()), ("random", ())):
            found.append(Setting(name, count, CANDIDATES[count], options=options, least=LEAST[count]))
        found.append(Setting("tpe", count, min(CANDIDATES[count], 1600), models=1, least=LEAST[count]))
        generation = (*DIAGONAL, ("population", max(21, count)))
        found.append(Setting("cma_es", count, CANDIDATES[count], asynchronous=False, options=generation))
        found.append(Setting("nsga2", count, CANDIDATES[count], asynchronous=False, options=generation[1:]))
    for count in WORKERS[:3]:
        few = min(CANDIDATES[count], 256)
        found.append(Setting("gp", count, few, models=10, per=None))
        points = (("points", 16),)
        found.append(Setting("grid", count, few, models=1, per=None, options=points, least=LEAST[count]))
    return found


def controllers() -> list[Setting]:
    """Controller time per candidate with 300 dimensions."""
    return [
        Setting("random", 8, 400),
        Setting("cma_es", 8, 400, options=DIAGONAL, most_ms=20.0),
        Setting("lra_cma", 8, 400, most_ms=20.0),
        Setting("cat_cma", 8, 400),
        Setting("tpe", 8, 40, known=1000, most_ms=1000.0),
    ]


def memories() -> list[Setting]:
    """Memory growth over long searches."""
    return [Setting("cma_es", 8, 2000, options=DIAGONAL), Setting("lra_cma", 8, 2000)]


def measured(measure: Callable[[Setting], dict[str, Any]], setting: Setting) -> dict[str, Any]:
    """Run one measurement in a new process, without memory and caches of the others."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, setting).result()


def quick(setting: Setting) -> Setting:
    """The same setting with few candidates: takes minutes, but is not evidence for the claims about 512 workers."""
    least = 2 * setting.workers if setting.workers < 512 else setting.workers + 128
    return replace(setting, candidates=max(40, min(setting.candidates, least)), known=min(setting.known, 100))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown table of utilization and controller time."""
    lines = ["| optimizer | mode | workers | candidates | dimensions | utilization | controller, ms |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|")
    for row in rows:
        mode = "asynchronous" if row["asynchronous"] else "generations"
        known = f" after {row['known']}" if row["known"] else ""
        cells = [row["optimizer"], mode, row["workers"], f"{row['candidates']}{known}", row["dimensions"]]
        lines.append(f"| {' | '.join(map(str, cells))} | {row['utilization']:.1%} | {row['controller_ms']:.1f} |")
    return "\n".join(lines)


def growth_table(rows: list[dict[str, Any]]) -> str:
    """Markdown table of memory and ledger growth."""
    lines = ["| optimizer | candidates | resident, MiB | growth, KiB per candidate | ledger, bytes per candidate |"]
    lines.append("|---|---:|---:|---:|---:|")
    for row in rows:
        counts, sizes = (" → ".join(f"{value:.0f}" for value in row[key]) for key in ("candidates", "resident_mib"))
        sums = f"{row['growth_kib_per_candidate']:.1f} | {row['ledger_bytes_per_candidate']:.0f}"
        lines.append(f"| {row['optimizer']} | {counts} | {sizes} | {sums} |")
    return "\n".join(lines)


def missed(row: dict[str, Any]) -> bool:
    """Return whether a claim is not met."""
    if "growth_kib_per_candidate" in row:
        return bool(row["growth_kib_per_candidate"] > GROWTH_KIB)
    slow = row["most_ms"] is not None and row["controller_ms"] > row["most_ms"]
    return bool(slow or (row["least"] is not None and row["utilization"] < row["least"]))


def main() -> int:
    """Run the measurements; return 1 if a claim is not met."""
    measurements: dict[str, tuple[Callable[[Setting], dict[str, Any]], list[Setting], Callable[[list[Any]], str]]] = {
        "controller": (busy, controllers(), table),
        "memory": (memory, memories(), growth_table),
        "utilization": (busy, utilizations(), table),
    }
    known = sorted({setting.optimizer for _, settings, _ in measurements.values() for setting in settings})
    parser = argparse.ArgumentParser("python -m benchmarks.schedule", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smoke test with few candidates; not evidence for a claim")
    parser.add_argument("--only", choices=("utilization", "controller", "memory"))
    parser.add_argument("--optimizer", action="append", choices=known, help="measure only this optimizer; repeatable")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="clock for the controller's time")
    options = parser.parse_args()
    wanted = {
        part: (measure, [s for s in settings if options.optimizer is None or s.optimizer in options.optimizer], shown)
        for part, (measure, settings, shown) in measurements.items()
        if options.only in (None, part)
    }
    if not any(settings for _, settings, _ in wanted.values()):
        parser.error(f"argument --only: {options.only} has no measurement of {', '.join(options.optimizer)}")
    found: dict[str, Any] = {"clock": options.clock, "quick": options.quick}
    failed, tables = False, []
    for part, (measure, settings, shown) in wanted.items():
        rows = []
        for setting in settings:
            chosen = replace(quick(setting) if options.quick else setting, clock=options.clock)
            rows.append(measured(measure, chosen))
            print(f"{part}: {setting.optimizer}, {setting.workers} workers", file=sys.stderr)
        found[part] = rows
        failed |= any(map(missed, rows))
        tables.append(shown(rows))
    publish(found, *tables)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
