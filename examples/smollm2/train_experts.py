#!/usr/bin/env python3
"""Train the three LoRA experts that `recipes/smollm2.yaml` merges: sentiment, subjectivity, question type.

    scripts/train_experts [--only TASK ...] [--data DIR] [--out models/smollm2/experts] [--base DIR] [--force] [--json]

The base is SmolLM2-135M-Instruct as `scripts/prepare_smollm2` makes it; it is made where it is not there. The sentences
come from the Hugging Face hub (SetFit/sst2, SetFit/subj, SetFit/TREC-QC) and are written to OUT/data; with `--data DIR`
they are read from DIR/TASK_train.jsonl instead, lines of {"text", "label"}, and nothing is looked up on a network.
Where there is a TASK_heldout.jsonl, base and expert are measured on its first 200 documents.
Each expert is a folder of OUT as peft saves it, written whole or not at all; one that is there is kept. About 25
minutes for the three on two free cores. Exit codes: 0 done, 1 failed, 2 the input is wrong, 130 interrupted.
"""

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    from examples.smollm2.adapters import attached, peft_warnings
    from examples.smollm2.base import NAME, SOURCES, check_wheel, load_base, make_base
    from examples.smollm2.command import add_common_arguments, run
    from examples.smollm2.documents import TASKS, Document, read_lines, write_documents
    from examples.smollm2.folders import MODELS, file_sha256, locked, make_folder, progress, sources_of
    from examples.smollm2.hub import fetch
    from examples.smollm2.training import Settings, accuracy, save, train
except ModuleNotFoundError as error:
    if error.name != "evosearch":
        raise
    print(
        f"{sys.executable} has no evosearch. Run ./scripts/setup gguf, then this with .venv/bin/python", file=sys.stderr
    )
    sys.exit(2)

from evosearch.errors import CheckpointError, SuiteError

MEASURED = 200  # held-out documents
ACCURACY = "accuracy.json"  # in an expert's folder: of base and expert on the held-out documents


@dataclass(frozen=True)
class TaskData:
    """What one expert is trained and measured on."""

    train: Sequence[Document]
    train_sha256: str
    heldout: Sequence[Document]  # empty where no file is there


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(TASKS), metavar="TASK", help=f"of {', '.join(TASKS)}")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the sentences, instead of the hub")
    parser.add_argument("--out", type=Path, default=MODELS / "experts", metavar="DIR", help="%(default)s")
    parser.add_argument("--base", type=Path, metavar="DIR", help=f"the base's folder; else {MODELS / 'base'}, or made")
    parser.add_argument("--steps", type=int, default=Settings.steps, metavar="N", help="of training, %(default)s")
    parser.add_argument("--force", action="store_true", help="train again what is there")
    add_common_arguments(parser)
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"argument --steps: {options.steps}: at least 1")
    if options.data is not None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # every folder is local
    names = [name for name in TASKS if name in (options.only or TASKS)]
    settings = Settings(steps=options.steps)
    work = functools.partial(
        train_experts, names, options.data, options.out, options.base, options.wheel, settings, options.force
    )
    return run("train_experts", work, options.json, f"Ready: {options.out}. Next: scripts/prepare_smollm2")


def train_experts(
    names: Sequence[str],
    data: Path | None,
    out: Path,
    base: Path | None,
    wheel: Path | None,
    settings: Settings,
    force: bool,
) -> dict[str, Any]:
    """All of it; what is given is checked before anything is downloaded, written or trained.

    Returns:
        `{out, data, base, experts: {NAME: MADE}, seconds}`, where MADE is `{path, bytes, seconds, kept, accuracy}` and
        accuracy `{n, base, expert}`, or None where nothing is held out.

    Raises:
        InputError: a folder or file is missing or damaged, or an expert is there that was trained otherwise.
        EvosearchError: a download failed.
    """
    began = time.monotonic()
    check_wheel(wheel)
    if base is not None and not (base / "config.json").is_file():
        raise CheckpointError(
            f"--base {base}", "no model's folder", "What scripts/prepare_smollm2 makes, models/…/base"
        )
    if data is not None and not data.is_dir():
        raise SuiteError(f"--data {data}", "no such folder", "A folder with TASK_train.jsonl")
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
            refuse_other(out / name, expert_sources(sources, given[name], settings), force)
        made = {name: expert(out / name, given[name], base, sources, settings, force) for name in names}
    seconds = round(time.monotonic() - began, 1)
    return {"out": str(out), "data": str(data), "base": str(base), "experts": made, "seconds": seconds}


def expert(
    target: Path, data: TaskData, base: Path, sources: dict[str, str], settings: Settings, force: bool
) -> dict[str, Any]:
    """One expert in its folder, trained and measured, or kept."""
    write = functools.partial(write_expert, target.name, data, base, sources, settings)
    made = make_folder(target, expert_sources(sources, data, settings), write, force)
    made["accuracy"] = measured(target, data, base)
    if found := made["accuracy"]:
        what = f"base {found['base']:.3f}, expert {found['expert']:.3f}"
        progress(f"{target.name}: accuracy on {found['n']} held-out documents: {what}")
    return made


def write_expert(
    name: str, data: TaskData, base: Path, sources: dict[str, str], settings: Settings, folder: Path
) -> None:
    """Train and write."""
    model, tokenizer = load_base(base)
    with peft_warnings():
        adapted = train(model, tokenizer, TASKS[name], data.train, settings, name, progress)
        save(adapted, folder, NAME if sources == SOURCES else str(base))


def measured(target: Path, data: TaskData, base: Path) -> dict[str, Any] | None:
    """Accuracy of base and expert, `{n, base, expert}`, kept beside the expert; None where nothing is held out.

    Measured once the expert is in its place: whatever goes wrong here does not cost a training.
    """
    path, documents = target / ACCURACY, data.heldout[:MEASURED]
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    if not documents:
        return None
    model, tokenizer = load_base(base)
    before = accuracy(model, tokenizer, TASKS[target.name], documents)
    after = accuracy(attached(model, target), tokenizer, TASKS[target.name], documents)
    found = {"n": len(documents), "base": before, "expert": after}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found), encoding="utf-8")
    partial.replace(path)
    return found


# ---- what an expert follows from


def base_sources(base: Path) -> dict[str, str]:
    """What identifies the base: the file it was made from where our script made it, else its weights' sha256."""
    if sources_of(base) == SOURCES:
        return SOURCES
    weights = base / "model.safetensors"
    if not weights.is_file():
        raise CheckpointError(str(weights), "missing", "A checkpoint in one file, as scripts/prepare_smollm2 makes it")
    return {"base_sha256": file_sha256(weights)}


def expert_sources(base: dict[str, str], data: TaskData, settings: Settings) -> dict[str, str | int | float]:
    return base | {"train_sha256": data.train_sha256} | vars(settings)


def refuse_other(target: Path, sources: dict[str, str | int | float], force: bool) -> None:
    """Raises:
    CheckpointError: a complete expert is there that was trained on other sentences, base or settings.
    """
    found = sources_of(target)
    if force or found is None or found == sources:
        return
    odd = next(key for key in sources | found if found.get(key) != sources.get(key))
    what = f"was trained with {odd} {found.get(odd)!r}, not {sources.get(odd)!r}"
    raise CheckpointError(str(target), what, next="Train it again with --force, or give another --out")


# ---- its sentences


def read_task(data: Path, name: str, settings: Settings) -> TaskData:
    """Raises:
    SuiteError: a file is missing or damaged, or holds less than one batch.
    """
    path, heldout = data / f"{name}_train.jsonl", data / f"{name}_heldout.jsonl"
    documents = read_lines(path, name)
    if len(documents) < settings.batch:
        raise SuiteError(str(path), f"{len(documents)} documents", f"At least {settings.batch}, the batch of a step")
    return TaskData(documents, file_sha256(path), read_lines(heldout, name) if heldout.is_file() else [])


def fetch_task(data: Path, name: str, settings: Settings) -> TaskData:
    """The task's files from the hub, unless all of them were written before."""
    if not all((data / f"{name}_{part}.jsonl").is_file() for part in ("heldout", "fewshot", "train")):
        write_documents(fetch(name), data)
    return read_task(data, name, settings)


if __name__ == "__main__":
    sys.exit(main())
