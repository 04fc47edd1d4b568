"""Train the three LoRA experts that `recipes/smollm2.yaml` merges: sentiment, subjectivity, question type.

    .venv/bin/python -m examples.smollm2.train_experts [--only TASK ...] [--data DIR] [--out DIR] [--base DIR]
                                                       [--steps N] [--wheel FILE] [--force] [--json]

The base is SmolLM2-135M-Instruct, written as by `python -m examples.smollm2.prepare` if it is missing. The sentences
are downloaded from the Hugging Face hub (SetFit/sst2, SetFit/subj, SetFit/TREC-QC) to OUT/data. With `--data DIR` they
are read from DIR/TASK_train.jsonl instead, lines of {"text", "label"}, without network access. If there is a
TASK_heldout.jsonl, the accuracy of base and expert is measured on its first 200 documents. Each expert is a folder in
OUT in peft's format, written atomically and reused if it exists. Training all three takes about 25 minutes on two idle
cores. Requires `./scripts/setup gguf`. Exit codes: 0 success, 1 failed, 2 invalid input, 130 interrupted.
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
from examples.smollm2.base import check_wheel, make_base
from examples.smollm2.command import add_common_arguments, run
from examples.smollm2.documents import TASKS, read_lines, write_documents
from examples.smollm2.experts import Lesson, base_sources, expert_sources, make_expert, refuse_replacement
from examples.smollm2.folders import MODELS, file_sha256, locked
from examples.smollm2.hub import fetch
from examples.smollm2.training import Settings, choice_accuracy

MEASURED = 200  # number of held-out documents for the accuracy


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(
        "python -m examples.smollm2.train_experts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=list(TASKS), metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the sentences; default: the hub")
    parser.add_argument("--out", type=Path, default=MODELS / "experts", metavar="DIR", help="default %(default)s")
    parser.add_argument("--base", type=Path, metavar="DIR", help=f"folder of the base, default {MODELS / 'base'}")
    parser.add_argument(
        "--steps", type=int, default=Settings.steps, metavar="N", help="training steps, default %(default)s"
    )
    parser.add_argument("--force", action="store_true", help="replace existing experts")
    add_common_arguments(parser)
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"argument --steps: {options.steps} is below 1")
    if options.data is not None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # every model is a local folder
    names = [name for name in TASKS if name in (options.only or TASKS)]
    settings = Settings(steps=options.steps)
    work = functools.partial(
        train_experts, names, options.data, options.out, options.base, options.wheel, settings, options.force
    )
    return run("train_experts", work, options.json, f"Ready: {options.out}. Next: python -m examples.smollm2.prepare")


def train_experts(
    names: Sequence[str],
    data: Path | None,
    out: Path,
    base: Path | None,
    wheel: Path | None,
    settings: Settings,
    force: bool,
) -> dict[str, Any]:
    """Train experts; arguments are checked before anything is downloaded, written or trained.

    Args:
        names: Names of the tasks.
        data: Folder of the sentences; None to download them.
        out: Folder of the experts.
        base: Folder of the base; None for the default folder, written if it is missing.
        wheel: Wheel with the base; None to download it.
        settings: Training settings.
        force: Whether to replace existing experts.

    Returns:
        `{out, data, base, experts: {NAME: EXPERT}, seconds}`, where EXPERT is `{path, bytes, seconds, kept, accuracy}`.
        `accuracy` is `{n, base, expert}`, or None without held-out documents.

    Raises:
        InputError: A folder or file is missing or damaged, or an existing expert was trained differently.
        EvosearchError: A download failed.
    """
    began = time.monotonic()
    check_wheel(wheel)
    if base is not None and not (base / "config.json").is_file():
        raise CheckpointError(f"--base {base}", "no config.json in this folder", "The folder of a model")
    if data is not None and not data.is_dir():
        raise SuiteError(f"--data {data}", "folder not found", "A folder with TASK_train.jsonl")
    if data is not None:
        given = {name: read_task(data, name, settings) for name in names}
    with locked(out):
        if data is None:
            data = out / "data"
            given = {name: fetch_task(data, name, settings) for name in names}
        if base is None:
            base = MODELS / "base"
            with locked(MODELS):
                make_base(MODELS, wheel)
        sources = base_sources(base)
        for name in names:
            refuse_replacement(out / name, expert_sources(sources, given[name], settings), force)
        made = {name: make_expert(out / name, given[name], base, sources, settings, force) for name in names}
    seconds = round(time.monotonic() - began, 1)
    return {"out": str(out), "data": str(data), "base": str(base), "experts": made, "seconds": seconds}


# ---- documents of an expert


def read_task(data: Path, name: str, settings: Settings) -> Lesson:
    """Read the documents of a task.

    Raises:
        SuiteError: A file is missing or damaged, or has fewer documents than a batch.
    """
    task, path, heldout = TASKS[name], data / f"{name}_train.jsonl", data / f"{name}_heldout.jsonl"
    documents = read_lines(path, name)
    if len(documents) < settings.batch:
        raise SuiteError(str(path), f"{len(documents)} documents", f"At least {settings.batch}, the batch size")
    measured = read_lines(heldout, name)[:MEASURED] if heldout.is_file() else []
    return Lesson(
        name,
        [task.pair(document) for document in documents],
        file_sha256(path),
        [task.pair(document) for document in measured],
        functools.partial(choice_accuracy, choices=task.labels),
    )


def fetch_task(data: Path, name: str, settings: Settings) -> Lesson:
    """Download the task's files unless they exist, and read them."""
    if not all((data / f"{name}_{kind}.jsonl").is_file() for kind in ("heldout", "fewshot", "train")):
        write_documents(fetch(name), data)
    return read_task(data, name, settings)


if __name__ == "__main__":
    sys.exit(main())
