"""Run the board, and write its page.

    .venv/bin/python -m benchmarks.board [--problems P ...] [--methods M ...] [--optimizers O ...] [--seeds 0 1 2]
                                         [--items N] [--part 1/2] [--plan] [--page FILE]

Each cell, a problem, method, optimizer and seed, is one `evosearch run` with the gate open: the spec is generated, and
the search's candidate that is best on `validation` is judged on `test` by paired intervals. All cells of a problem have
the same number of item evaluations, where a gradient counts three per item. Finished cells are one JSON line each in
RESULTS and are not run again unless their settings have changed; an interrupted search is resumed. `--part 1/2` runs
every second cell, so that two processes with one thread each can share a machine. `--plan` only prints the cells and
their estimated duration; `--page` writes the page from all results, also without running anything new.

`zoo-N` are trained on first use (two minutes each); `sentences` and `eight` need
`python -m examples.smollm2.prepare` and `python -m examples.eight_experts.prepare`. Exit code 1 if a cell failed.
"""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from benchmarks._paths import EVALS, ROOT
from benchmarks.board import results
from benchmarks.board.cells import Cell
from benchmarks.board.entries import Given, Json, methods, optimizers, problems
from benchmarks.board.page import page

RESULTS = ROOT / "benchmarks" / "board" / "results.jsonl"
WORK = ROOT / "runs" / "board"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cells; return the exit code."""
    options = parse_arguments(arguments)
    work = options.work.resolve()
    os.environ |= {"EVOSEARCH_RUNS": str(work / "runs"), "EVOSEARCH_DATA": str(work / "data"), "HF_HUB_OFFLINE": "1"}
    os.environ["EVOSEARCH_TASKS"] = os.pathsep.join([str(EVALS), str(work)])
    from evosearch.errors import EvosearchError

    known = problems()
    givens: dict[str, Given] = {}
    failed = 0
    for cell in chosen(options):
        name = cell.problem.name
        try:
            given = givens[name] if name in givens else givens.setdefault(name, cell.problem.make(work / name))
            if results.finished(results.read(options.results), cell.key, cell.digest(given)):
                print(f"{cell.label}: already finished", file=sys.stderr)
            elif options.plan:
                print(f"{cell.label}: about {minutes(cell, given, options.results):.0f} minutes", file=sys.stderr)
            else:
                run_cell(cell, given, work, options.threads, options.results)
        except Exception as error:  # the other cells are run nevertheless
            failed += 1
            text = str(error) if isinstance(error, EvosearchError) else traceback.format_exc()
            print(f"{cell.label}: failed: {text}", file=sys.stderr)
    if options.page is not None:
        options.page.write_text(page(results.read(options.results), known, methods(), optimizers()), encoding="utf-8")
    return 1 if failed else 0


def run_cell(cell: Cell, given: Given, work: Path, threads: int, file: Path) -> None:
    """Run one cell, or resume it, and append its result; a combination that the product refuses is a result, too.

    Raises:
        EvosearchError: The search failed, or something but its spec was refused.
    """
    import torch

    import evosearch
    from benchmarks.board.judging import best_scale, judged
    from evosearch.errors import InputError, RecipeError, SpecError

    torch.set_num_threads(threads)
    spec = cell.write(given, work / "specs" / cell.name(given), threads)
    print(f"{cell.label}: started", file=sys.stderr)
    began = time.monotonic()
    found = about(cell, given)
    try:
        report = evosearch.run(spec)
    except InputError as error:
        if not all(isinstance(problem, RecipeError | SpecError) for problem in error.problems):
            raise  # the machine's fault, such as a ledger of another version: the cell can be run again
        results.append(file, found | {"refused": str(error)})
        print(f"{cell.label}: refused: {error}", file=sys.stderr)
        return
    told = report.rank_correlation
    found |= judged(report) | {"stopped": report.stopped, "candidates": report.candidates.proposed}
    found |= {"rank_correlation": None if told is None or told.value is None else round(told.value, 3)}
    found["seconds"] = round(time.monotonic() - began, 1)
    results.append(file, found)
    scale = best_scale(found)
    lead = found["leads"][scale]["score"] if scale else None
    text = f"lead {lead[0]:+.1f} [{lead[1]:+.1f}, {lead[2]:+.1f}], " if lead else ""
    print(f"{cell.label}: {text}promoted {found['promoted']}, {found['seconds']:.0f} s", file=sys.stderr)


def about(cell: Cell, given: Given) -> Json:
    """The part of a result that is known before the search."""
    problem, method, optimizer, seed, items = cell.key
    found: Json = {"problem": problem, "method": method, "optimizer": optimizer, "seed": seed, "items": items}
    found |= {"digest": cell.digest(given), "evaluations": cell.evaluations(given)}
    return found | {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}


def minutes(cell: Cell, given: Given, file: Path) -> float:
    """Estimated duration: the median rate of the problem's finished cells, or the problem's own figure."""
    own = [one for one in results.read(file) if one["problem"] == cell.problem.name and "seconds" in one]
    rate = median(one["seconds"] / one["evaluations"] for one in own) if own else cell.problem.item_seconds
    return cell.evaluations(given) * rate / 60


def chosen(options: argparse.Namespace) -> list[Cell]:
    """Cells of the chosen problems, methods, optimizers and seeds: seeds outermost, so that all rows grow together."""
    known = problems(), methods(), optimizers()
    cells = [
        Cell(
            problem=known[0][problem],
            method_name=method,
            method=known[1][method],
            optimizer_name=optimizer,
            optimizer=known[2][optimizer],
            seed=seed,
            items=options.items or known[0][problem].items,
            documents=options.documents,
        )
        for seed in options.seeds
        for problem in options.problems
        for method in options.methods
        for optimizer in options.optimizers
    ]
    part, parts = options.part
    return cells[part - 1 :: parts]


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command-line options with their defaults filled in."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.board", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for kind, entries in (("problems", problems()), ("methods", methods()), ("optimizers", optimizers())):
        names = ", ".join(entries)
        parser.add_argument(
            f"--{kind}", nargs="+", choices=list(entries), default=list(entries), help=names, metavar="X"
        )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="default 0 1 2")
    parser.add_argument("--items", type=int, help="item evaluations of a search; default: the problem's")
    parser.add_argument("--documents", type=_counts, default={}, metavar="SPLIT=N,...", help="documents per task")
    parser.add_argument("--part", type=_part, default=(1, 1), metavar="I/N", help="run every Nth cell, from the Ith on")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, default %(default)s")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="default %(default)s")
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR", help="searches; default %(default)s")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the page, as docs/board.md")
    parser.add_argument("--plan", action="store_true", help="only print the cells and their estimated duration")
    return parser.parse_args(arguments)


def _part(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    found = int(part), int(parts)
    if not 1 <= found[0] <= found[1]:
        raise argparse.ArgumentTypeError(f"got '{text}', expected I/N with I from 1 to N")
    return found


def _counts(text: str) -> dict[str, int]:
    pairs = [entry.split("=") for entry in text.split(",")]
    if any(len(pair) != 2 or pair[0] not in ("search", "validation", "test") for pair in pairs):
        raise argparse.ArgumentTypeError(f"got '{text}', expected SPLIT=N with search, validation or test")
    return {split: int(count) for split, count in pairs}


if __name__ == "__main__":
    sys.exit(main())
