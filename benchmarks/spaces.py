#!/usr/bin/env python3
"""Merging weights, routing data, or first one and then the other: test scores at equal item evaluations.

    scripts/bench/spaces [--seeds 5] [--candidates 96] [--spec LABEL=FILE ...]

`recipes/quickstart.yaml` (parameter space), `recipes/dataflow.yaml` and `recipes/hybrid.yaml` on the embedded tiny
models (trained on first use), in this process, each with its own optimizer and as many item evaluations as
`--candidates` take on the first spec's search split. The two stages of the hybrid have half of them each; the first
one's winner on `validation` is the first model of the second. Every seed replaces the optimizers' own; finalists are
chosen on `validation` as `evosearch run` does, and the best of them is scored on `test` for this table only: nothing is
promoted, and the opening is not counted. Beside it stand best parent, uniform average and best scale of the first
spec's models. For merges of 7B models the order hybrid, parameter space, data flow, best parent was published
(arXiv:2403.13187, table 1); which order holds here is for the table to say. One JSON document on standard output, the
table on standard error. About 25 minutes on one core; `--quick` is a short run to see that all is well.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one worker, one thread

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks._synthetic.figures import table
from benchmarks._synthetic.searches import Bench, search_rows

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SPECS = {"parameter space": "quickstart.yaml", "data flow": "dataflow.yaml", "hybrid": "hybrid.yaml"}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, help="how many (5)")
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--candidates", type=int, help="of each search, counted as their items (96)")
    parser.add_argument("--finalists", type=int, default=6)
    parser.add_argument("--spec", action="append", metavar="LABEL=FILE", help="another spec, instead of the three")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.seeds = options.seeds or (1 if options.quick else 5)
    options.candidates = options.candidates or (28 if options.quick else 96)
    return options


def main() -> None:
    options = parsed()
    began = time.monotonic()
    files = {label: RECIPES / file for label, file in SPECS.items()}
    if options.spec:
        files = {label: Path(file) for label, _, file in (spec.partition("=") for spec in options.spec)}
    seeds = list(range(options.seed, options.seed + options.seeds))
    with Bench() as bench:
        found = bench.compare_spaces(files, seeds, options.candidates, options.finalists)
    print(json.dumps({"seeds": seeds, "seconds": time.monotonic() - began} | found))
    head = ["space", "test", "ahead of the best scale by", "validation", "search", "item evaluations", "searches"]
    print(table(head, search_rows(found)), file=sys.stderr)


if __name__ == "__main__":
    main()
