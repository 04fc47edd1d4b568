"""lm-eval's own program on the exported winner of a finished search, compared with the scores in the ledger.

    .venv/bin/python -m benchmarks.exported SPEC [--candidate NAME] [--split test] [--threads N]

The winner of the gate, or another candidate, is exported as a checkpoint to a temporary folder, and `lm_eval` scores it
in a process of its own, on exactly the documents of the split. Exit code 1 if a metric differs by more than TOLERANCE:
the two programs batch differently, so that a near tie between two answers may be decided differently. Suites with
prompt options and specs with stages are not supported.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import evosearch
from benchmarks._report import publish
from evosearch.errors import EvosearchError, InputError, SpecError, SuiteError
from evosearch.evaluation.suites.suite import Suite
from evosearch.evaluation.suites.suite_task import PromptOptions
from evosearch.search.ledger.ledger import Ledger
from evosearch.setup.loading import read_search
from evosearch.spec.spec import SearchSpec

TOLERANCE = 0.005  # of a metric in [0, 1]


def collect(spec: SearchSpec, candidate: str | None, split: str, threads: int) -> dict[str, Any]:
    """Figures of both programs.

    Args:
        spec: The search; of stages, the last.
        candidate: Its candidate; None for the winner.
        split: Split to score.
        threads: CPU threads of lm-eval's program.

    Raises:
        EvosearchError: There is no winner, the candidate has no scores on the split, or lm-eval failed.
    """
    with Ledger.open(spec.run_dir.ledger, read_only=True) as ledger:
        _, state = read_search(ledger, spec.run_dir)
        name = candidate or (state.gated.winner if state.gated else None)
        card = state.cards.get((name, split)) if name else None
        if name is None or card is None:
            raise EvosearchError(f"{spec.run_dir.name}: {name or 'no winner'} has no scores on {split}")
        sets = {task: ledger.item_set(card.sets[task]) for task in card.tasks}
    documents = {items.lm_eval_task: list(items.doc_ids) for items in sets.values()}
    with TemporaryDirectory(prefix="exported-") as scratch:
        checkpoint = Path(scratch) / "checkpoint"
        evosearch.export(spec.run_dir.name, checkpoint, format="checkpoint", candidate=name)
        theirs = lm_eval(checkpoint, spec.suite, documents, Path(scratch), threads)
    rows: list[dict[str, Any]] = [
        {"task": task, "metric": metric, "documents": len(items), "ledger": ours, "lm_eval": value}
        for task, items in sets.items()
        for metric, ours in card.reported[task].items()
        if (value := theirs[items.lm_eval_task].get(metric)) is not None and ours is not None
    ]
    largest = max(abs(float(row["ledger"]) - float(row["lm_eval"])) for row in rows)
    return {"search": spec.run_dir.name, "candidate": name, "split": split, "largest_difference": largest, "rows": rows}


def lm_eval(
    model: Path, suite: Suite, documents: dict[str, list[int]], folder: Path, threads: int
) -> dict[str, dict[str, float]]:
    """Task → metric → value, by lm-eval's program.

    Raises:
        SuiteError: The suite has more than one folder of tasks, or prompt options.
        EvosearchError: The program failed.
    """
    own = [
        one for one in (suite, *suite.tasks) if any(getattr(one, key) is not None for key in PromptOptions.model_fields)
    ]
    if own or len(suite.include) > 1:
        raise SuiteError(
            suite.source, "has prompt options or several folders of tasks", "one folder, no prompt options"
        )
    samples = folder / "samples.json"
    samples.write_text(json.dumps(documents), encoding="utf-8")
    program = Path(sys.executable).with_name("lm_eval")
    include = (Path(suite.source).parent / suite.include[0]).absolute()
    command = [str(program), "run", "--model", "hf", "--model_args", f"pretrained={model},dtype=float32"]
    command += ["--tasks", ",".join(documents), "--include_path", str(include), "--samples", str(samples)]
    command += ["--batch_size", "16", "--device", "cpu", "--output_path", str(folder / "results.json")]
    settings = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # In the folder of the tasks: lm-eval takes data files relative to the working directory
    done = subprocess.run(command, env=os.environ | settings, cwd=include, capture_output=True, text=True)
    found = list(folder.glob("results*.json"))
    if done.returncode or not found:
        raise EvosearchError(f"lm_eval failed: {done.stderr[-2000:]}")
    results = json.loads(found[0].read_text(encoding="utf-8"))["results"]
    return {
        task: {key.partition(",")[0]: value for key, value in entries.items() if "," in key and "_stderr" not in key}
        for task, entries in results.items()
    }


def show(found: dict[str, Any]) -> str:
    """Markdown table of both programs' figures."""
    lines = ["| task | metric | documents | ledger | lm_eval |", "|---|---|---:|---:|---:|"]
    for row in found["rows"]:
        figures = f"{row['documents']:,} | {row['ledger']:.4f} | {row['lm_eval']:.4f}"
        lines.append(f"| {row['task']} | {row['metric']} | {figures} |")
    return "\n".join(lines)


def main() -> int:
    """Print both programs' figures; return 1 if they differ, 2 for bad input."""
    parser = argparse.ArgumentParser("python -m benchmarks.exported", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("spec", type=Path, metavar="SPEC", help="spec file of a finished search")
    parser.add_argument("--candidate", help="default: the winner")
    parser.add_argument("--split", default="test", choices=["search", "validation", "test"], help="default %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, default %(default)s")
    options = parser.parse_args()
    try:
        spec = evosearch.load_spec(options.spec)
        if not isinstance(spec, SearchSpec):
            raise SpecError(f"{options.spec}: stages", "a search in stages is not supported", "a spec without stages")
        found = collect(spec, options.candidate, options.split, options.threads)
    except EvosearchError as exc:
        print(exc, file=sys.stderr)
        return 2 if isinstance(exc, InputError) else 1
    publish(found, show(found))
    return 0 if found["largest_difference"] <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
