"""Fuzz test of the loaders for recipes, search specs and suites.

    .venv/bin/python -m benchmarks.fuzz [DOCUMENTS] [--seed N]

Mutates real files at random (DOCUMENTS in total, default 20000, a third for each loader): keys are dropped, renamed and
duplicated, values are replaced, text is truncated and corrupted. A loader may reject a document only with one of the
package's own errors. Prints one JSON document and a table. Exit code 1 if any other exception was raised; the JSON
document then has one example of each exception, with the text that caused it.
"""

import argparse
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks._mutations.loaders import Loader, loaders
from benchmarks._mutations.mutate import bombs, mutate
from benchmarks._report import publish


def measure(loader: Loader, documents: int, seed: int) -> dict[str, Any]:
    """Count and time the outcomes, and keep one example of every foreign exception."""
    draw = random.Random(f"{seed}:{loader.name}")
    texts = bombs() + [mutate(draw.choice(loader.seeds), draw) for _ in range(documents - len(bombs()))]
    counts: Counter[str] = Counter()
    seconds, foreign = [], dict[str, str]()
    for text in texts:
        outcome = loader.try_text(text)
        counts[outcome.kind] += 1
        seconds.append(outcome.seconds)
        if outcome.kind == "foreign":
            foreign.setdefault(outcome.said, text)
    kinds = {kind: counts[kind] for kind in ("refused", "accepted", "foreign")}
    times = {"total": sum(seconds), "slowest": max(seconds)}
    return {"documents": len(texts), **kinds, "seconds": times, "examples": foreign}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown table with one row per loader."""
    lines = ["| loader | documents | refused | accepted | foreign | slowest, s |", "|---|---:|---:|---:|---:|---:|"]
    for name, row in found.items():
        cells = (row["documents"], row["refused"], row["accepted"], row["foreign"], f"{row['seconds']['slowest']:.2f}")
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> int:
    """Fuzz all loaders; return 1 if one raised a foreign exception."""
    parser = argparse.ArgumentParser("python -m benchmarks.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("documents", type=int, nargs="?", default=20_000, help="total number, default %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        listed = loaders(Path(folder))
        share = -(-options.documents // len(listed))
        found = {loader.name: measure(loader, max(share, len(bombs())), options.seed) for loader in listed}
    publish({"seed": options.seed, "loaders": found}, table(found))
    return int(any(row["foreign"] for row in found.values()))


if __name__ == "__main__":
    sys.exit(main())
