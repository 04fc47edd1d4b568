#!/usr/bin/env python3
"""How the loaders of recipes, search specs and suites stand accidents, as one JSON document and a table.

    scripts/bench/fuzz [DOCUMENTS] [--seed N]

DOCUMENTS (default 20000) real files are changed at random, a third of them for each loader: keys dropped, renamed and
doubled, values replaced by odd ones, text cut and stained. Whatever is refused must be refused by an error of our own.
Exit code 1 where anything else came out; each kind is then shown once, with the text that did it.
"""

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks._mutations.accidents import accident, bombs
from benchmarks._mutations.loaders import Loader, loaders


def measure(loader: Loader, documents: int, seed: int) -> dict[str, Any]:
    """Counts by outcome, seconds, and one example of every foreign exception."""
    draw = random.Random(f"{seed}:{loader.name}")
    texts = bombs() + [accident(draw.choice(loader.seeds), draw) for _ in range(documents - len(bombs()))]
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
    lines = ["| loader | documents | refused | accepted | foreign | slowest, s |", "|---|---:|---:|---:|---:|---:|"]
    for name, row in found.items():
        cells = (row["documents"], row["refused"], row["accepted"], row["foreign"], f"{row['seconds']['slowest']:.2f}")
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("documents", type=int, nargs="?", default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        listed = loaders(Path(folder))
        share = -(-options.documents // len(listed))
        found = {loader.name: measure(loader, max(share, len(bombs())), options.seed) for loader in listed}
    print(json.dumps({"seed": options.seed, "loaders": found}))
    print(table(found), file=sys.stderr)
    return int(any(row["foreign"] for row in found.values()))


if __name__ == "__main__":
    sys.exit(main())
