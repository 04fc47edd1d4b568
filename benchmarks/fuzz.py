"""Fuzz test of the loaders for recipes, search specs and suites, and of merges of model folders.

    .venv/bin/python -m benchmarks.fuzz [DOCUMENTS] [--models N] [--seed N]

Mutates real files at random (DOCUMENTS in total, default 20000, a third for each loader): keys are dropped, renamed and
duplicated, values are replaced, text is truncated and corrupted. A loader may reject a document only with one of the
package's own errors. Then mutates the files of a small model N times (default 20000) and merges it: the merge ends in
one of the package's own errors, or in a checkpoint that transformers loads. Prints one JSON document and a table. Exit
code 1 if any other exception was raised, or a checkpoint does not load; the JSON document then has one example of each
exception, with the text or the changes that caused it.
"""

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers.utils import logging

from benchmarks._mutations.loaders import Loader, loaders
from benchmarks._mutations.model_folders import ModelFolders
from benchmarks._mutations.mutate import bombs, mutate
from benchmarks._mutations.outcome import Outcome
from benchmarks._report import publish

FAILURES = ("unloadable", "foreign")


def measure(loader: Loader, documents: int, seed: int) -> dict[str, Any]:
    """Count and time the outcomes, and keep one example of every foreign exception."""
    draw = random.Random(f"{seed}:{loader.name}")
    texts = bombs() + [mutate(draw.choice(loader.seeds), draw) for _ in range(documents - len(bombs()))]
    return summarized((text, loader.try_text(text)) for text in texts)


def measure_models(fuzzer: ModelFolders, folders: int, seed: int) -> dict[str, Any]:
    """Count and time the outcomes of mutated model folders, and keep one example of every failure."""
    draw = random.Random(f"{seed}:{fuzzer.name}")
    return summarized(fuzzer.try_one(draw) for _ in range(folders))


def summarized(outcomes: Iterable[tuple[str, Outcome]]) -> dict[str, Any]:
    """Counts, seconds and examples of inputs and their outcomes."""
    counts: Counter[str] = Counter()
    seconds, examples = [0.0], dict[str, str]()
    for given, outcome in outcomes:
        counts[outcome.kind] += 1
        seconds.append(outcome.seconds)
        if outcome.kind in FAILURES:
            examples.setdefault(outcome.said, given)
    kinds = {kind: counts[kind] for kind in ("refused", "accepted", *FAILURES)}
    times = {"total": sum(seconds), "slowest": max(seconds)}
    return {"documents": counts.total(), **kinds, "seconds": times, "examples": examples}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown table with one row per loader."""
    kinds = ("documents", "refused", "accepted", *FAILURES)
    lines = [f"| loader | {' | '.join(kinds)} | slowest, s |", f"|---|{'---:|' * (len(kinds) + 1)}"]
    for name, row in found.items():
        cells = (*(row[kind] for kind in kinds), f"{row['seconds']['slowest']:.2f}")
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> int:
    """Fuzz all loaders and merges; return 1 if one raised a foreign exception, or wrote what does not load."""
    parser = argparse.ArgumentParser("python -m benchmarks.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("documents", type=int, nargs="?", default=20_000, help="total number, default %(default)s")
    parser.add_argument("--models", type=int, default=20_000, help="mutated model folders, default %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        listed = loaders(Path(folder))
        share = -(-options.documents // len(listed))
        found = {loader.name: measure(loader, max(share, len(bombs())), options.seed) for loader in listed}
    logging.set_verbosity_error()  # of damaged configs
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = ModelFolders(Path(folder))
        found[fuzzer.name] = measure_models(fuzzer, options.models, options.seed)
    publish({"seed": options.seed, "loaders": found}, table(found))
    return int(any(row[kind] for row in found.values() for kind in FAILURES))


if __name__ == "__main__":
    sys.exit(main())
