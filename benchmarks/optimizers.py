#!/usr/bin/env python3
"""Which optimizer finds what, by its winner's score on questions that the search never saw: one JSON document, tables.

    scripts/bench/optimizers --landscapes [--seeds 10] [--evaluations 50 200 1000] [--jobs N] [--slow]
    scripts/bench/optimizers --zoo [--seeds 5] [--candidates 96]

`--landscapes`: synthetic merges of a known best (`scripts/_optimizers/landscapes.py`), whose search items are few
enough to be overfitted to. Each seed draws another landscape, other items and another start of the optimizer's
generator. Searches start from the best of ten equal weights ("scale sweep"), a baseline as random search is; a route
from the first model's own pass; a grid and a soup from the inits. cma_es, lra_cma and cat_cma draw around their start
and do not ask it, so that they may end below it; the others ask it first. The winner is the candidate of best fitness;
its test score is its true accuracy. A candidate that was asked before counts. tpe goes to 200 evaluations and gp to 50,
unless `--slow`: the more they know, the longer an ask takes.

`--zoo`: `recipes/quickstart.yaml` on the embedded tiny models (trained on first use) by several optimizers, in this
process. Finalists are chosen on `validation` as `evosearch run` does; then the winner is scored on `test` for this
table only: nothing is promoted, and the opening is not counted. What was scored once, as baselines, is not scored again.

`--only` names landscapes, `--optimizers` rows of the table ("cma_es, diagonal"); `--quick` is a short run to see that
all is well. The default runs take about 15 (with `--jobs 2` 8) and 25 minutes on otherwise idle cores.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: searches run side by side

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks._synthetic.contestants import contestants
from benchmarks._synthetic.figures import shown, table
from benchmarks._synthetic.landscapes import LANDSCAPES
from benchmarks._synthetic.trials import Contest, summary

QUICKSTART = Path(__file__).resolve().parents[2] / "recipes" / "quickstart.yaml"
ON_THE_ZOO = ("cma_es", "lra_cma", "tpe", "random")


def on_landscapes(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    checkpoints = tuple(sorted(set(options.evaluations)))
    chosen = tuple(options.optimizers) if options.optimizers else None
    contests = [
        Contest(name, seed, checkpoints, chosen, options.slow)
        for name in options.only
        for seed in range(options.seed, options.seed + options.seeds)
    ]
    began, done = time.monotonic(), list[dict[str, Any]]()
    for contest, found in zip(contests, outcomes(contests, options.jobs), strict=True):
        done.append(found)
        print(f"{time.monotonic() - began:5.0f} s  {contest.landscape}, seed {contest.seed}", file=sys.stderr)
    found = {name: summary([one for one in done if one["landscape"] == name]) for name in options.only}
    shown = "\n\n".join(landscape_table(name, found[name], checkpoints) for name in options.only)
    return {"evaluations": checkpoints, "summary": found, "contests": done}, shown


def outcomes(contests: list[Contest], jobs: int) -> Iterator[dict[str, Any]]:
    """Of all contests, in their order."""
    if jobs == 1:
        yield from map(Contest.run, contests)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        yield from pool.map(Contest.run, contests)


def landscape_table(name: str, found: dict[str, Any], checkpoints: Iterable[int]) -> str:
    """True accuracy of the winner in %: median [quartiles] over seeds; the rest is of the most evaluations of a row."""
    counts = [str(count) for count in checkpoints]
    seeds = len(found["seeds"])
    head = [name, *(f"{int(count):,} evaluations" for count in counts), "below the best there is"]
    head += [f"ahead of the {found['baseline_name']}", "of random search", "ms an ask"]
    rows = [["best there is", *([shown(found["optimum"])] * len(counts)), "0", "", "", ""]]
    rows += [[found["baseline_name"], *([shown(found["baseline"])] * len(counts)), "", "", "", ""]]
    for label, entry in found["contestants"].items():
        last = list(entry["after"].values())[-1]
        cells = [shown(entry["after"][count]["test"]) if count in entry["after"] else "–" for count in counts]
        random = "–" if last["leads_random"] is None else f"{last['leads_random']} of {seeds}"
        cells += [shown(last["below_optimum"]), f"{last['leads_baseline']} of {seeds}", random]
        if int(entry["asked"]["median"]) < int(max(entry["after"], key=int)):
            label = f"{label} (ended after {entry['asked']['median']:.0f})"
        rows.append([label, *cells, f"{entry['ms_per_ask']['median']:.1f}"])
    note = f"{LANDSCAPES[name][1]}; {found['items']} search items, {seeds} seeds."
    refused = [f"Not for {label}: {why}" for label, why in found["refused"].items()]
    return "\n".join([note, "", table(head, rows), *(["", *refused] if refused else [])])


def on_the_zoo(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from benchmarks._synthetic.searches import Bench  # torch and lm-eval: not for landscapes

    with Bench() as bench:
        found = bench.compare_optimizers(
            QUICKSTART,
            contestants(options.optimizers or list(ON_THE_ZOO)),
            range(options.seed, options.seed + options.seeds),
            options.candidates,
            options.finalists,
        )
    return found, search_table("optimizer", found)


def search_table(what: str, found: dict[str, Any]) -> str:
    from benchmarks._synthetic.searches import search_rows

    head = [what, "test", "ahead of the best scale by", "validation", "search", "item evaluations", "searches"]
    return table(head, search_rows(found))


def parsed() -> argparse.Namespace:
    labels = [one.label for one in contestants()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--landscapes", action="store_true")
    kind.add_argument("--zoo", action="store_true")
    parser.add_argument("--seeds", type=int, help="how many (10 landscapes, 5 on the zoo)")
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--optimizers", nargs="+", choices=labels, metavar="LABEL", help="rows of the table")
    parser.add_argument("--only", nargs="+", choices=LANDSCAPES, default=list(LANDSCAPES), metavar="LANDSCAPE")
    parser.add_argument("--evaluations", nargs="+", type=int, help="when winners are tested (50 200 1000)")
    parser.add_argument("--jobs", type=int, default=1, help="landscapes at a time")
    parser.add_argument("--slow", action="store_true", help="tpe and gp to the end as well")
    parser.add_argument("--candidates", type=int, help="of each search on the zoo, counted as their items (96)")
    parser.add_argument("--finalists", type=int, default=6)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.seeds = options.seeds or ((2 if options.quick else 10) if options.landscapes else 1 if options.quick else 5)
    options.evaluations = options.evaluations or ([20, 60] if options.quick else [50, 200, 1_000])
    options.candidates = options.candidates or (14 if options.quick else 96)
    return options


def main() -> None:
    options = parsed()
    began = time.monotonic()
    found, shown = on_landscapes(options) if options.landscapes else on_the_zoo(options)
    head = {"seeds": list(range(options.seed, options.seed + options.seeds)), "seconds": time.monotonic() - began}
    print(json.dumps(head | found))
    print(shown, file=sys.stderr)


if __name__ == "__main__":
    main()
