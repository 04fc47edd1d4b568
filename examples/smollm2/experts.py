"""One LoRA expert: its folder, what it was trained on, and its accuracy."""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evosearch.errors import CheckpointError
from examples.smollm2.adapters import attach_adapter, peft_warnings
from examples.smollm2.base import NAME, SOURCES, load_base
from examples.smollm2.folders import file_sha256, make_folder, progress, sources_of
from examples.smollm2.training import Pair, Settings, save, train

ACCURACY = "accuracy.json"  # in an expert's folder: accuracy of base and expert
Accuracy = Callable[[Any, Any, Sequence[Pair]], float]  # takes model, tokenizer and documents


@dataclass(frozen=True)
class Lesson:
    """What an expert is trained and measured on."""

    name: str
    train: Sequence[Pair]
    train_sha256: str
    heldout: Sequence[Pair]  # may be empty: the accuracy is not measured
    accuracy: Accuracy = field(compare=False)


def make_expert(
    target: Path, lesson: Lesson, base: Path, sources: dict[str, str], settings: Settings, force: bool
) -> dict[str, Any]:
    """Train one expert unless its folder is complete; return `make_folder`'s summary with its accuracy."""
    write = functools.partial(write_expert, lesson, base, sources, settings)
    made = make_folder(target, expert_sources(sources, lesson, settings), write, force)
    made["accuracy"] = measure(target, lesson, base)
    if found := made["accuracy"]:
        what = f"base {found['base']:.3f}, expert {found['expert']:.3f}"
        progress(f"{target.name}: accuracy on {found['n']} held-out documents: {what}")
    return made


def write_expert(lesson: Lesson, base: Path, sources: dict[str, str], settings: Settings, folder: Path) -> None:
    """Train an expert and write it into a folder."""
    model, tokenizer = load_base(base)
    with peft_warnings():
        adapted = train(model, tokenizer, lesson.train, settings, lesson.name, progress)
        save(adapted, folder, NAME if sources == SOURCES else str(base))


def measure(target: Path, lesson: Lesson, base: Path) -> dict[str, Any] | None:
    """Measure the accuracy of base and expert, `{n, base, expert}`; None without held-out documents.

    Cached in the expert's folder. Measured after that folder is complete, so that a failure here does not lose it.
    """
    path = target / ACCURACY
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    if not lesson.heldout:
        return None
    model, tokenizer = load_base(base)
    before = lesson.accuracy(model, tokenizer, lesson.heldout)
    after = lesson.accuracy(attach_adapter(model, target), tokenizer, lesson.heldout)
    found = {"n": len(lesson.heldout), "base": before, "expert": after}
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


def expert_sources(base: dict[str, str], lesson: Lesson, settings: Settings) -> dict[str, str | int | float]:
    """Identity of an expert: base, training documents and settings."""
    return base | {"train_sha256": lesson.train_sha256} | vars(settings)


def refuse_replacement(target: Path, sources: dict[str, str | int | float], force: bool) -> None:
    """Refuse to replace an expert that was trained with another base, other documents or other settings.

    Raises:
        CheckpointError: The target is such an expert, and `force` is not set.
    """
    found = sources_of(target)
    if force or found is None or found == sources:
        return
    odd = next(key for key in sources | found if found.get(key) != sources.get(key))
    what = f"was trained with {odd} {found.get(odd)!r}, not {sources.get(odd)!r}"
    raise CheckpointError(str(target), what, next="Replace it with --force, or give another --out")
