"""Measure every registered merge method, and write the table.

    .venv/bin/python -m benchmarks.methods [--problem zoo|sentences ...] [--methods M ...] [--seeds 0 1 ...]
                                           [--settings N] [--documents SPLIT=N,...] [--page FILE]

A cell is a method on the models and documents of a problem and seed. Its sweep is drawn from the bounds in the
registry, so a new method needs no entry. Settings are chosen on `validation` and judged on `test`. Methods that need
statistics of the models get prompts of `search` as their sample; statistics are kept in the work folder, computed once
a model, or by `regmean_plus` once a setting (11 GB for nine settings of `sentences`). Finished cells are one JSON line
each in RESULTS and are not measured again unless their settings have changed. `--page` writes the table from all
results; with `--only-page` nothing is measured.

The models of `zoo` are trained on first use (two minutes for each seed); `sentences` needs
`python -m examples.smollm2.prepare`. Exit code 1 if a cell failed.
"""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks._paths import EVALS, ROOT
from benchmarks.board.entries import Json
from benchmarks.board.results import append
from evosearch.errors import EvosearchError, InputError
from evosearch.evaluation.types import SPLITS
from evosearch.merging.registry import specs

RESULTS = ROOT / "benchmarks" / "methods" / "results.jsonl"
WORK = ROOT / "runs" / "methods"
SETTINGS = 9  # of a sweep, the defaults included
COMMAND = "python -m benchmarks.methods"
Key = tuple[str, str, int]  # problem, method, seed


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the cells; return the exit code."""
    options = parse_arguments(arguments)
    work = options.work.resolve()
    os.environ |= {"EVOSEARCH_DATA": str(work / "data"), "HF_HUB_OFFLINE": "1"}
    os.environ["EVOSEARCH_TASKS"] = os.pathsep.join([str(EVALS), str(work)])
    from benchmarks.methods.table import page

    failed = 0 if options.only_page else sum(_measure(options, work, name) for name in options.problem)
    if options.page is not None:
        options.page.write_text(page(list(read(options.results).values()), COMMAND), encoding="utf-8")
    return 1 if failed else 0


def _measure(options: argparse.Namespace, work: Path, name: str) -> int:
    """Measure the cells of a problem, seed by seed; return the number of failures."""
    from benchmarks.methods.measuring import digest, measure
    from benchmarks.methods.worlds import PROBLEMS, World

    problem, failed = PROBLEMS[name], 0
    documents = {**problem.documents, **options.documents}
    for seed in options.seeds or problem.seeds:
        world: World | None = None
        for method in options.methods:
            spec, label = specs()[method], f"{name}, {method}, seed {seed}"
            marked = digest(spec, documents, options.settings)
            if read(options.results).get((name, method, seed), {}).get("digest") == marked:
                print(f"{label}: already finished", file=sys.stderr)
                continue
            try:
                if world is None:
                    folder = work / f"{name}-{seed}"
                    world = World(problem.make(seed, folder), documents, seed, folder, options.threads)
                found = measure(spec, world, options.settings)
            except Exception as error:  # the other cells are measured nevertheless
                failed += 1
                text = str(error) if isinstance(error, EvosearchError) else traceback.format_exc()
                print(f"{label}: failed: {text}", file=sys.stderr)
                continue
            cell = {"problem": name, "method": method, "seed": seed, "digest": marked, "documents": documents}
            append(options.results, cell | found)
            print(f"{label}: {_told(found)}", file=sys.stderr)
    return failed


def _told(found: Json) -> str:
    if "refused" in found:
        return f"refused: {found['refused']}"
    own = found["default"]["test"]["score"][0] if found["default"] else float("nan")
    best, lead = found["best"]["test"]["score"][0], found["lead"]
    interval = f"{lead[0]:+.1f} [{lead[1]:+.1f}, {lead[2]:+.1f}]"
    return f"defaults {own:.1f}, best {best:.1f}, lead over the average {interval}, {found['seconds']:.0f} s"


def read(file: Path) -> dict[Key, Json]:
    """Return the last result of every cell.

    Raises:
        InputError: A line is not a result.
    """
    found: dict[Key, Json] = {}
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            result = json.loads(line)
            found[result["problem"], result["method"], result["seed"]] = result
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{file}: line {number}", "not a result of this program", next="Remove it") from None
    return found


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command-line options with their defaults filled in."""
    parser = argparse.ArgumentParser(COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("zoo", "sentences")
    known = sorted(specs())
    parser.add_argument("--problem", nargs="+", choices=names, default=list(names), help="default: both", metavar="P")
    parser.add_argument("--methods", nargs="+", choices=known, default=known, help=", ".join(known), metavar="M")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="default: five of the zoo, one of sentences")
    parser.add_argument("--settings", type=_positive, default=SETTINGS, metavar="N", help="of a sweep, %(default)s")
    parser.add_argument("--documents", type=_counts, default={}, metavar="SPLIT=N,...", help="documents per task")
    parser.add_argument("--threads", type=_positive, default=1, help="CPU threads, default %(default)s")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="default %(default)s")
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR", help="files of problems, %(default)s")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the table")
    parser.add_argument("--only-page", action="store_true", help="measure nothing")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got '{text}', expected a whole number from 1 on")
    return int(text)


def _counts(text: str) -> Mapping[str, int]:
    pairs = [entry.split("=") for entry in text.split(",")]
    if any(len(pair) != 2 or pair[0] not in SPLITS or not pair[1].isdigit() for pair in pairs):
        raise argparse.ArgumentTypeError(f"got '{text}', expected SPLIT=N with {', '.join(SPLITS)}")
    return {split: int(count) for split, count in pairs}


if __name__ == "__main__":
    sys.exit(main())
