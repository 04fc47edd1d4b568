#!/usr/bin/env python3
"""What a night brings, on real processes: nobody lost, nobody recorded twice, the reason on record.

    scripts/bench/faults [--only NAME ...] [--seed 0] [--folder DIR]

Each scenario is a search of its own, in a folder and on Ray nodes of its own, with a real ledger, controller and pool
and light workers, which make a score card of the recipe; `disk` is `evosearch run` on the embedded models. Something
is done to it while it runs; in the end the ledger is read: every candidate that was asked has one result, its items'
scores, and was told once; events are numbered without gaps; whoever was scored again has the reason on record.
Prints one JSON document and a table. Exit code 1 where a scenario has not passed. What this machine does not have
(memory to spare, PostgreSQL, a disk that may be mounted) is said, and left out.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks._accidents import disk, machines, records, workers
from benchmarks._accidents.stage import Finding, NotHere, Stage

SCENARIOS: dict[str, Callable[[Stage], Finding]] = {
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
    """One scenario, as a row of the document; `passed` is None where this machine cannot play it."""
    began, stage = time.monotonic(), Stage(folder / name)
    row: dict[str, Any] = {"passed": False, "problems": []}
    try:
        found = SCENARIOS[name](stage)
        record = found.record
        row |= {"happened": found.happened, "candidates": record.candidates, "again": len(record.retried)}
        row |= {"lost": len(record.lost), "doubled": len(record.doubled), "reasons": found.reasons}
        row |= {"problems": found.problems, "passed": not found.problems}
    except NotHere as exc:
        row |= {"passed": None, "happened": f"not played: {exc}"}
    except Exception as exc:  # one that breaks must not take the others with it
        row |= {"problems": [f"{type(exc).__name__}: {exc}"], "happened": "it was not played to its end"}
    finally:
        stage.end()
    return row | {"seconds": round(time.monotonic() - began, 1)}


def table(found: dict[str, dict[str, Any]]) -> str:
    lines = ["| scenario | what happened | lost | doubled | reason on record | passed |", "|---|---|---:|---:|---|---|"]
    for name, row in found.items():
        passed = {True: "yes", False: "NO", None: "–"}[row["passed"]]
        reasons = "; ".join(row.get("reasons", ())) or "–"
        cells = [name, row["happened"], row.get("lost", "–"), row.get("doubled", "–"), reasons, passed]
        lines.append(f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, metavar="NAME", help=", ".join(SCENARIOS))
    parser.add_argument("--seed", type=int, default=0, help="of when and whom it hits; what follows has its own time")
    parser.add_argument("--folder", type=Path, help="keep ledgers and logs there")
    options = parser.parse_args()
    random.seed(options.seed)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="evosearch-faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)  # PostgreSQL's user has to pass it
    found: dict[str, dict[str, Any]] = {}
    try:
        for name in options.only or SCENARIOS:
            found[name] = row = play(name, folder)
            print(f"{name}: {row['happened']} ({row['seconds']} s)", *row["problems"], sep="\n  ", file=sys.stderr)
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({"seed": options.seed, "scenarios": found}))
    print(f"\n{table(found)}", file=sys.stderr)
    return int(any(row["passed"] is False for row in found.values()))


if __name__ == "__main__":
    sys.exit(main())
