"""`evosearch score`: score a checkpoint or a recipe on one split of a suite."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evosearch.errors import EvosearchError, SuiteError
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.suites.suite import load_suite
from evosearch.evaluation.types import LOGLIKELIHOODS, REQUESTS, SPLITS, Column, ItemBatch, ScoreCard
from evosearch.execution.worker import Worker
from evosearch.merging.registry import specs
from evosearch.recipe import checks, files
from evosearch.recipe.schema import Recipe
from evosearch.reporting.openings import record_reread
from evosearch.search.baselines import single
from evosearch.search.progress import Watcher
from evosearch.search.protocols import Job
from evosearch.setup.executors import worker_config
from evosearch.setup.models import open_models
from evosearch.spec.config import WorkersConfig


def score(
    model: str, suite_path: Path, split: str, items: Path | None, watcher: Watcher, allow_pickle: bool = False
) -> dict[str, Any]:
    """Score in this process; the result is what `evosearch score --json` prints.

    Args:
        model: Reference of a model, or path of a recipe.
        suite_path: The suite file.
        split: `search`, `validation` or `test`; scoring `test` is recorded.
        items: File to write one JSON line per item to.
        watcher: Shows progress and notes.
        allow_pickle: Read pickled weights of models without safetensors.

    Raises:
        InputError: The model, recipe, suite or split is wrong.
        EvosearchError: The model cannot be scored.
    """
    if split not in SPLITS:
        raise SuiteError("--split", f"got '{split}'", f"One of {', '.join(SPLITS)}")
    if items is not None and not items.parent.is_dir():
        raise SuiteError("--items", f"no folder {items.parent}")
    suite = load_suite(suite_path)
    recipe = _recipe(model, watcher)
    harness = Harness(suite)
    batch = harness.batch(split)
    models = open_models(recipe, model, watcher, allow_pickle)
    worker = Worker(worker_config(WorkersConfig(), models, suite, recipe.output_dtype), harness=harness)
    worker.scorer.prepare(batch)  # before the test split opens: may find problems of the suite
    disclosed: dict[str, Any] = {}
    if split == "test":
        count = record_reread(batch, f"score {model}")
        watcher.note(f"test split: this evaluation is recorded (openings of this test set so far: {count})")
        disclosed = {"test_openings": count, "contamination_acknowledged": suite.acknowledge_contamination}
    outcome = worker.run(Job(f"score@{split}", recipe, batch))
    if outcome.card is None:
        assert outcome.failure is not None
        raise EvosearchError(f"{model}: {outcome.failure.stage}: {outcome.failure.reason}")
    card = outcome.card
    if items is not None:
        _write_items(items, batch, card)
    summary = card.summary()
    return {
        "suite": suite.name,
        "split": split,
        "model": model,
        "recipe_id": models.identify(recipe),
        "tasks": summary["tasks"],
        "score": summary["score"],
        "fitness": summary["fitness"],
        "reported": summary["reported"],
        "tokens": summary["tokens"],
        "modes": summary["modes"],
        "seconds": {"load": worker.load_seconds, **summary["seconds"]},
        "device": str(worker.device),
    } | disclosed


def _recipe(model: str, watcher: Watcher) -> Recipe:
    """The recipe in a file, or one that is just a model."""
    if not model.endswith((".yaml", ".yml")):
        return single(model)
    recipe = files.load(Path(model))
    for text in checks.check(recipe, specs(), f"{model}: "):
        watcher.note(text)
    return recipe


def _metrics(columns: Mapping[str, Column], index: int) -> dict[str, Any]:
    """One item's metrics: numbers, null for none, lists where lm-eval aggregates tuples."""
    found: dict[str, Any] = {}
    for column, values in columns.items():
        value = float(values[index]) if np.isfinite(values[index]) else None
        metric, brackets, _ = column.partition("[")
        if brackets:  # `word_perplexity[1]`; these columns are in order
            found.setdefault(metric, []).append(value)
        else:
            found[column] = value
    return found


def _write_items(path: Path, batch: ItemBatch, card: ScoreCard) -> None:
    """Write one JSON line per item, atomically: task, document, log-likelihoods, metrics."""
    lines = []
    for items in batch.sets:
        columns = dict(card.columns[items.task])
        values = columns.pop(LOGLIKELIHOODS, None)
        counts = columns.pop(REQUESTS, None)
        start = 0
        for index, (doc_id, doc_hash) in enumerate(zip(items.doc_ids, items.doc_hashes, strict=True)):
            row: dict[str, Any] = {"task": items.task, "doc_id": doc_id, "doc_hash": doc_hash}
            if items.documents:  # the documents that `doc_id` indexes, if not those that lm-eval evaluates
                row["documents"] = items.documents
            if values is not None and counts is not None:
                stop = start + int(counts[index])
                row["loglikelihoods"] = [float(value) for value in values[start:stop]]
                start = stop
            row["metrics"] = _metrics(columns, index)
            lines.append(json.dumps(row))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    temporary.replace(path)
