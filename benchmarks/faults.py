"""Fault injection into real processes: no candidate is lost or recorded twice, and every retry has its reason.

    .venv/bin/python -m benchmarks.faults [--only NAME ...] [--seed 0] [--folder DIR]

Each scenario is a search with its own folder and Ray nodes. Ledger, controller and pool are real; the workers are
light: they compute a score card from the recipe. Scenario `disk` is `evosearch run` on the built-in models. A fault is
injected while the search runs. Afterwards the ledger must contain exactly one result, the per-item scores and one
report to the optimizer for each proposed candidate; event numbers must not have gaps; each retry must have its reason.
Prints one JSON document and a table. Exit code 1 if a scenario fails. Scenarios that cannot run on this machine (too
little free memory, no PostgreSQL, no permission to mount a disk) are reported and skipped.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks._accidents import disk, machines, records, workers
from benchmarks._accidents.stage import ScenarioResult, Stage, UnavailableError
from benchmarks._report import publish

SCENARIOS: dict[str, Callable[[Stage], ScenarioResult]] = {
    "worker": workers.worker_killed,
    "poison": workers.poison,
    "hang": workers.hang,
    "memory": workers.memory,
    "node-removed": machines.node_removed,
    "node-added": machines.node_added,
    "connection": records.connections,
    "driver": records.driver_killed,
    "disk": disk.disk_full,
}


def play(name: str, folder: Path) -> dict[str, Any]:
    """Run one scenario; return its row, where `passed` is None if it cannot run on this machine."""
    began, stage = time.monotonic(), Stage(folder / name)
    row: dict[str, Any] = {"passed": False, "problems": []}
    try:
        found = SCENARIOS[name](stage)
        record = found.record
        row |= {"happened": found.happened, "candidates": record.candidates, "again": len(record.retried)}
        row |= {"lost": len(record.lost), "duplicated": len(record.duplicated), "reasons": found.reasons}
        row |= {"problems": found.problems, "passed": not found.problems}
    except UnavailableError as exc:
        row |= {"passed": None, "happened": f"skipped: {exc}"}
    except Exception as exc:  # one broken scenario must not stop the others
        row |= {"problems": [f"{type(exc).__name__}: {exc}"], "happened": "the scenario did not finish"}
    finally:
        stage.end()
    return row | {"seconds": round(time.monotonic() - began, 1)}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown table with one row per scenario."""
    lines = [
        "| scenario | what happened | lost | duplicated | recorded reason | passed |",
        "|---|---|---:|---:|---|---|",
    ]
    for name, row in found.items():
        passed = {True: "yes", False: "NO", None: "–"}[row["passed"]]
        reasons = "; ".join(row.get("reasons", ())) or "–"
        cells = [name, row["happened"], row.get("lost", "–"), row.get("duplicated", "–"), reasons, passed]
        lines.append(f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Run the scenarios; return 1 if one failed."""
    parser = argparse.ArgumentParser("python -m benchmarks.faults", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, metavar="NAME", help=", ".join(SCENARIOS))
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed for time and target of each fault; its effects are not reproducible",
    )
    parser.add_argument("--folder", type=Path, help="keep ledgers and logs in this folder")
    options = parser.parse_args()
    random.seed(options.seed)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="evosearch-faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)  # PostgreSQL's user must be able to traverse it
    found: dict[str, dict[str, Any]] = {}
    try:
        for name in options.only or SCENARIOS:
            found[name] = row = play(name, folder)
            print(f"{name}: {row['happened']} ({row['seconds']} s)", *row["problems"], sep="\n  ", file=sys.stderr)
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    publish({"seed": options.seed, "scenarios": found}, table(found))
    return int(any(row["passed"] is False for row in found.values()))


if __name__ == "__main__":
    sys.exit(main())
