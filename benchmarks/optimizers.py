"""Comparison of optimizers by the scores of their winners on held-out items.

    .venv/bin/python -m benchmarks.optimizers --landscapes [--seeds 10] [--evaluations 50 200 1000] [--jobs N] [--slow]
    .venv/bin/python -m benchmarks.optimizers --zoo [--seeds 5] [--candidates 96]

`--landscapes`: synthetic merges with a known optimum (`benchmarks/_synthetic/landscapes.py`) and few enough search
items for overfitting. Each seed draws a new landscape, new items and a new optimizer seed. Searches start from the best
of ten equal weights ("scale sweep"), which is also a baseline, like random search. Routes start from the first model's
own forward pass, grid and greedy_soup from the initial values. cma_es, lra_cma and cat_cma sample around the start
without evaluating it, so they may end below it; the other optimizers evaluate it first. The winner is the candidate
with the best fitness; its test score is its true accuracy. Repeated candidates count as evaluations. Because `ask`
slows down with the number of trials, tpe stops at 200 evaluations and gp at 50 unless `--slow` is given. A step of
gradient sees all search items and counts as three evaluations; its winner is the best of its answers, and landscapes
without a derivative refuse it.

`--zoo`: `recipes/groups.yaml` on the built-in tiny models (trained on first use) with several optimizers, in this
process. Finalists are selected on `validation` as in `evosearch run`. The winner is then scored on `test` for this
table only: no model is promoted and the test opening is not counted. Repeated recipes, such as baselines, are scored
once.

`--only` selects landscapes, `--optimizers` rows of the table ("cma_es, diagonal"); `--quick` is a short smoke test.
Prints one JSON document and tables. On idle cores the defaults take about 15 minutes for `--landscapes` (8 with
`--jobs 2`) and 25 minutes for `--zoo`.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # set before numpy is imported, since searches run in parallel

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from benchmarks._paths import RECIPES
from benchmarks._report import publish
from benchmarks._synthetic.contestants import contestants
from benchmarks._synthetic.contests import Contest, summary
from benchmarks._synthetic.figures import shown, table
from benchmarks._synthetic.landscapes import LANDSCAPES

GROUPS = RECIPES / "groups.yaml"
ON_THE_ZOO = ("cma_es", "lra_cma", "tpe", "random")


def on_landscapes(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Figures and tables of all contests on synthetic landscapes."""
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
    tables = "\n\n".join(landscape_table(name, found[name], checkpoints) for name in options.only)
    return {"evaluations": checkpoints, "summary": found, "contests": done}, tables


def outcomes(contests: list[Contest], jobs: int) -> Iterator[dict[str, Any]]:
    """Run all contests, `jobs` at a time; yield their results in order."""
    if jobs == 1:
        yield from map(Contest.run, contests)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        yield from pool.map(Contest.run, contests)


def landscape_table(name: str, found: dict[str, Any], checkpoints: Iterable[int]) -> str:
    """Markdown table of the winners' true accuracy in %, median [quartiles] over seeds.

    The columns after the checkpoints are for the largest number of evaluations in the row.
    """
    counts = [str(count) for count in checkpoints]
    seeds = len(found["seeds"])
    head = [name, *(f"{int(count):,} evaluations" for count in counts), "below the optimum"]
    head += [f"ahead of the {found['baseline_name']}", "ahead of random search", "ms per ask"]
    rows = [["optimum", *([shown(found["optimum"])] * len(counts)), "0", "", "", ""]]
    rows += [[found["baseline_name"], *([shown(found["baseline"])] * len(counts)), "", "", "", ""]]
    for label, entry in found["contestants"].items():
        last = list(entry["after"].values())[-1]
        cells = [shown(entry["after"][count]["test"]) if count in entry["after"] else "–" for count in counts]
        random = "–" if last["leads_random"] is None else f"{last['leads_random']} of {seeds}"
        cells += [shown(last["below_optimum"]), f"{last['leads_baseline']} of {seeds}", random]
        if int(entry["proposed"]["median"]) < int(max(entry["after"], key=int)):
            label = f"{label} (stopped after {entry['proposed']['median']:.0f})"
        rows.append([label, *cells, f"{entry['ms_per_ask']['median']:.1f}"])
    note = f"{LANDSCAPES[name][1]}; {found['items']} search items, {seeds} seeds."
    refused = [f"{label} does not support this landscape: {why}" for label, why in found["refused"].items()]
    return "\n".join([note, "", table(head, rows), *(["", *refused] if refused else [])])


def on_the_zoo(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Figures and table of searches on the built-in models."""
    from benchmarks._synthetic.searches import Bench  # imports torch and lm-eval, which `--landscapes` does not need

    with Bench() as bench:
        found = bench.compare_optimizers(
            GROUPS,
            contestants(options.optimizers or list(ON_THE_ZOO)),
            range(options.seed, options.seed + options.seeds),
            options.candidates,
            options.finalists,
        )
    return found, search_table("optimizer", found)


def search_table(what: str, found: dict[str, Any]) -> str:
    """Markdown table of baselines and searches.

    Args:
        what: Heading of the first column.
    """
    from benchmarks._synthetic.searches import search_rows

    head = [what, "test", "ahead of the best scale by", "validation", "search", "item evaluations", "searches"]
    return table(head, search_rows(found))


def parse_arguments() -> argparse.Namespace:
    """Command-line options with their defaults filled in."""
    labels = [one.label for one in contestants()]
    parser = argparse.ArgumentParser(
        "python -m benchmarks.optimizers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--landscapes", action="store_true", help="synthetic merges with a known optimum")
    kind.add_argument("--zoo", action="store_true", help="the built-in tiny models")
    parser.add_argument("--seeds", type=int, help="number of seeds (10 with --landscapes, 5 with --zoo)")
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--optimizers", nargs="+", choices=labels, metavar="LABEL", help="rows of the table, by label")
    names = ", ".join(LANDSCAPES)
    parser.add_argument(
        "--only", nargs="+", choices=LANDSCAPES, default=list(LANDSCAPES), metavar="LANDSCAPE", help=names
    )
    parser.add_argument(
        "--evaluations", nargs="+", type=int, help="evaluations after which the best candidate is tested (50 200 1000)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="number of landscapes to run in parallel")
    parser.add_argument("--slow", action="store_true", help="run also tpe and gp to the last evaluation")
    parser.add_argument(
        "--candidates", type=int, help="budget of each search with --zoo, in candidates on the full search split (96)"
    )
    parser.add_argument("--finalists", type=int, default=6, help="number scored on validation, default %(default)s")
    parser.add_argument("--quick", action="store_true", help="short smoke test")
    options = parser.parse_args()
    options.seeds = options.seeds or ((2 if options.quick else 10) if options.landscapes else 1 if options.quick else 5)
    options.evaluations = options.evaluations or ([20, 60] if options.quick else [50, 200, 1_000])
    options.candidates = options.candidates or (14 if options.quick else 96)
    return options


def main() -> None:
    """Run the comparison and print it."""
    options = parse_arguments()
    began = time.monotonic()
    found, tables = on_landscapes(options) if options.landscapes else on_the_zoo(options)
    head = {"seeds": list(range(options.seed, options.seed + options.seeds)), "seconds": time.monotonic() - began}
    publish(head | found, tables)


if __name__ == "__main__":
    main()
