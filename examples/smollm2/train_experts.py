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
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evosearch.errors import CheckpointError, SuiteError
from examples.smollm2.adapters import attach_adapter, peft_warnings
from examples.smollm2.base import NAME, SOURCES, check_wheel, load_base, make_base
from examples.smollm2.command import add_common_arguments, run
from examples.smollm2.documents import TASKS, Document, read_lines, write_documents
from examples.smollm2.folders import MODELS, file_sha256, locked, make_folder, progress, sources_of
from examples.smollm2.hub import fetch
from examples.smollm2.training import Settings, accuracy, save, train

MEASURED = 200  # number of held-out documents for the accuracy
ACCURACY = "accuracy.json"  # in an expert's folder: accuracy of base and expert


@dataclass(frozen=True)
class TaskData:
    """Training and held-out documents of one expert."""

    train: Sequence[Document]
    train_sha256: str
    heldout: Sequence[Document]  # empty if there is no TASK_heldout.jsonl


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


def make_expert(
    target: Path, data: TaskData, base: Path, sources: dict[str, str], settings: Settings, force: bool
) -> dict[str, Any]:
    """Train one expert unless its folder is complete; return `make_folder`'s summary with its accuracy."""
    write = functools.partial(write_expert, target.name, data, base, sources, settings)
    made = make_folder(target, expert_sources(sources, data, settings), write, force)
    made["accuracy"] = measure(target, data, base)
    if found := made["accuracy"]:
        what = f"base {found['base']:.3f}, expert {found['expert']:.3f}"
        progress(f"{target.name}: accuracy on {found['n']} held-out documents: {what}")
    return made


def write_expert(
    name: str, data: TaskData, base: Path, sources: dict[str, str], settings: Settings, folder: Path
) -> None:
    """Train an expert and write it into a folder."""
    model, tokenizer = load_base(base)
    with peft_warnings():
        adapted = train(model, tokenizer, TASKS[name], data.train, settings, name, progress)
        save(adapted, folder, NAME if sources == SOURCES else str(base))


def measure(target: Path, data: TaskData, base: Path) -> dict[str, Any] | None:
    """Measure the accuracy of base and expert, `{n, base, expert}`; None without held-out documents.

    Cached in the expert's folder. Measured after that folder is complete, so that a failure here does not lose it.
    """
    path, documents = target / ACCURACY, data.heldout[:MEASURED]
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    if not documents:
        return None
    model, tokenizer = load_base(base)
    before = accuracy(model, tokenizer, TASKS[target.name], documents)
    after = accuracy(attach_adapter(model, target), tokenizer, TASKS[target.name], documents)
    found = {"n": len(documents), "base": before, "expert": after}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found), encoding="utf-8")
    partial.replace(path)
    return found


# ---- identity of an expert


def base_sources(base: Path) -> dict[str, str]:
    """Identity of the base: the sha256 of its GGUF file, or of its weights if it was not made from one."""
    if sources_of(base) == SOURCES:
        return SOURCES
    weights = base / "model.safetensors"
    if not weights.is_file():
        raise CheckpointError(str(weights), "file not found", "A checkpoint in a single file")
    return {"base_sha256": file_sha256(weights)}


def expert_sources(base: dict[str, str], data: TaskData, settings: Settings) -> dict[str, str | int | float]:
    """Identity of an expert: base, training documents and settings."""
    return base | {"train_sha256": data.train_sha256} | vars(settings)


def refuse_replacement(target: Path, sources: dict[str, str | int | float], force: bool) -> None:
    """Refuse to replace an expert that was trained with another base, other sentences or other settings.

    Raises:
        CheckpointError: The target is such an expert, and `force` is not set.
    """
    found = sources_of(target)
    if force or found is None or found == sources:
        return
    odd = next(key for key in sources | found if found.get(key) != sources.get(key))
    what = f"was trained with {odd} {found.get(odd)!r}, not {sources.get(odd)!r}"
    raise CheckpointError(str(target), what, next="Replace it with --force, or give another --out")


# ---- documents of an expert


def read_task(data: Path, name: str, settings: Settings) -> TaskData:
    """Read the documents of a task.

    Raises:
        SuiteError: A file is missing or damaged, or has fewer documents than a batch.
    """
    path, heldout = data / f"{name}_train.jsonl", data / f"{name}_heldout.jsonl"
    documents = read_lines(path, name)
    if len(documents) < settings.batch:
        raise SuiteError(str(path), f"{len(documents)} documents", f"At least {settings.batch}, the batch size")
    return TaskData(documents, file_sha256(path), read_lines(heldout, name) if heldout.is_file() else [])


def fetch_task(data: Path, name: str, settings: Settings) -> TaskData:
    """Download the task's files unless they exist, and read them."""
    if not all((data / f"{name}_{kind}.jsonl").is_file() for kind in ("heldout", "fewshot", "train")):
        write_documents(fetch(name), data)
    return read_task(data, name, settings)


if __name__ == "__main__":
    sys.exit(main())
