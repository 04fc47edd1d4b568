"""Comparison of parameter space, data flow and hybrid searches by test score at equal item evaluations.

    .venv/bin/python -m benchmarks.spaces [--seeds 5] [--candidates 96] [--spec LABEL=FILE ...]

Runs `recipes/groups.yaml` (parameter space), `recipes/dataflow.yaml` and `recipes/hybrid.yaml` on the built-in tiny
models (trained on first use) in this process, each with its own optimizer. Every search has the item evaluations that
`--candidates` candidates need on the search split of the first spec. The two stages of the hybrid search have half of
them each; the winner of the first stage on `validation` is the first model of the second. Each seed replaces the seed
in the spec. Finalists are selected on `validation` as in `evosearch run`, and the best is scored on `test` for this
table only: no model is promoted and the test opening is not counted. The table also has the best parent, the uniform
average and the best scale of the first spec's models.

For merges of 7B models, Akiba et al. (arXiv:2403.13187, table 1) report the ranking hybrid, parameter space, data flow,
best parent; the table shows the ranking here. Prints one JSON document and the table. Takes about 25 minutes on one
core; `--quick` is a short smoke test.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one worker, one thread

import argparse
import time
from pathlib import Path

from benchmarks._paths import RECIPES
from benchmarks._report import publish
from benchmarks._synthetic.figures import table
from benchmarks._synthetic.searches import Bench, search_rows

SPECS = {"parameter space": "groups.yaml", "data flow": "dataflow.yaml", "hybrid": "hybrid.yaml"}


def parse_arguments() -> argparse.Namespace:
    """Command-line options with their defaults filled in."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.spaces", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, help="number of seeds (5)")
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument(
        "--candidates", type=int, help="budget of each search, in candidates on the full search split (96)"
    )
    parser.add_argument("--finalists", type=int, default=6, help="number scored on validation, default %(default)s")
    parser.add_argument(
        "--spec", action="append", metavar="LABEL=FILE", help="spec to run instead of the three; repeatable"
    )
    parser.add_argument("--quick", action="store_true", help="short smoke test")
    options = parser.parse_args()
    options.seeds = options.seeds or (1 if options.quick else 5)
    options.candidates = options.candidates or (28 if options.quick else 96)
    return options


def main() -> None:
    """Run the comparison and print it."""
    options = parse_arguments()
    began = time.monotonic()
    files = {label: RECIPES / file for label, file in SPECS.items()}
    if options.spec:
        files = {label: Path(file) for label, _, file in (spec.partition("=") for spec in options.spec)}
    seeds = list(range(options.seed, options.seed + options.seeds))
    with Bench() as bench:
        found = bench.compare_spaces(files, seeds, options.candidates, options.finalists)
    head = ["space", "test", "ahead of the best scale by", "validation", "search", "item evaluations", "searches"]
    publish({"seeds": seeds, "seconds": time.monotonic() - began} | found, table(head, search_rows(found)))


if __name__ == "__main__":
    main()
