"""`evosearch score`: score a checkpoint or a recipe on one split of a suite."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evosearch.errors import EvosearchError, SuiteError
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.suites.suite import load_suite
from evosearch.evaluation.types import (
    IN_LANGUAGE,
    LOGLIKELIHOODS,
    REQUESTS,
    SPLITS,
    Estimate,
    ItemBatch,
    ScoreCard,
    TaskScore,
    Tokens,
)
from evosearch.evaluation.types import Column as ItemValues
from evosearch.execution.worker import Worker
from evosearch.merging.registry import specs
from evosearch.promotion.disclosure import disclosures
from evosearch.recipe import checks, files
from evosearch.recipe.schema import Recipe
from evosearch.reporting.columns import Column, number
from evosearch.reporting.notebook import html_paragraph, html_table
from evosearch.reporting.openings import record_reread
from evosearch.search.baselines import single
from evosearch.search.progress import Watcher
from evosearch.search.protocols import Job
from evosearch.setup.executors import worker_config
from evosearch.setup.models import open_models
from evosearch.spec.config import WorkersConfig


@dataclass(frozen=True, kw_only=True)
class ScoreReport:
    """Scores of a model on one split, as `evosearch score --json` prints them.

    Attributes:
        suite: Name of the suite.
        split: The split.
        model: The model, as it was given.
        recipe_id: Id of the recipe with its models' weights.
        tasks: Task → the suite's metric.
        score: Weighted mean over tasks, in points: 0 at chance level, 100 at best.
        fitness: What a search would maximize; the score, for a suite with teachers.
        reported: Task → metric → figure that lm-eval reports; None if it is not finite.
        tokens: Numbers of tokens that were run.
        modes: `loglikelihood`, `generation` → execution mode.
        seconds: Phase → duration.
        device: The device.
        test_openings: Openings of this test set by all searches, up to now; None on other splits.
        contamination_acknowledged: The suite acknowledges contamination; None on other splits.
    """

    suite: str
    split: str
    model: str
    recipe_id: str
    tasks: Mapping[str, TaskScore]
    score: float
    fitness: Estimate
    reported: Mapping[str, Mapping[str, float | None]]
    tokens: Tokens
    modes: Mapping[str, str]
    seconds: Mapping[str, float]
    device: str
    test_openings: int | None = None
    contamination_acknowledged: bool | None = None

    @property
    def title(self) -> str:
        """Suite, split and score."""
        return f"{self.suite}, {self.split}: score {self.score:.2f}"

    def _repr_html_(self) -> str:
        texts = disclosures(self.test_openings, self.contamination_acknowledged)
        table = html_table(self.title, score_columns(self), list(self.tasks.items()))
        return html_paragraph(self.model) + table + "".join(map(html_paragraph, texts))


def score_columns(report: ScoreReport) -> list[Column[tuple[str, TaskScore]]]:
    """Return the columns of a score: each task's metric and, with a required language, the share of answers in it."""
    spoken = {task: metrics[IN_LANGUAGE] for task, metrics in report.reported.items() if IN_LANGUAGE in metrics}
    columns: list[Column[tuple[str, TaskScore]]] = [
        Column("task", lambda row: row[0], left=True),
        Column("metric", lambda row: row[1].metric, left=True),
        Column("value", lambda row: number(row[1].value, 4)),
        Column("stderr", lambda row: number(row[1].stderr, 4)),
        Column("items", lambda row: str(row[1].n)),
    ]
    if any(task in spoken for task in report.tasks):
        columns.append(Column("in language", lambda row: number(spoken.get(row[0]), 4)))
    return columns


def score(
    model: str, suite_path: Path, split: str, items: Path | None, watcher: Watcher, allow_pickle: bool = False
) -> ScoreReport:
    """Score a model or a recipe in this process.

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
    suite = load_suite(suite_path).without_teachers()
    recipe = _recipe(model, watcher)
    harness = Harness(suite)
    batch = harness.batch(split)
    models = open_models(recipe, model, watcher, allow_pickle)
    worker = Worker(worker_config(WorkersConfig(), models, suite, recipe.output_dtype), harness=harness)
    worker.scorer.prepare(batch)  # before the test split opens: may find problems of the suite
    openings = None
    if split == "test":
        openings = record_reread(batch, f"score {model}")
        watcher.note(f"test split: this evaluation is recorded (openings of this test set so far: {openings})")
    outcome = worker.run(Job(f"score@{split}", recipe, batch))
    if outcome.card is None:
        assert outcome.failure is not None
        raise EvosearchError(f"{model}: {outcome.failure.stage}: {outcome.failure.reason}")
    card = outcome.card
    assert card.score is not None, "every right answer was read"
    if items is not None:
        _write_items(items, batch, card)
    return ScoreReport(
        suite=suite.name,
        split=split,
        model=model,
        recipe_id=models.identify(recipe),
        tasks=card.tasks,
        score=card.score,
        fitness=card.fitness,
        reported=card.summary()["reported"],
        tokens=card.tokens,
        modes=card.modes,
        seconds={"load": worker.load_seconds, **card.seconds},
        device=str(worker.device),
        test_openings=openings,
        contamination_acknowledged=None if openings is None else suite.acknowledge_contamination,
    )


def _recipe(model: str, watcher: Watcher) -> Recipe:
    """The recipe in a file, or one that is just a model."""
    if not model.endswith((".yaml", ".yml")):
        return single(model)
    recipe = files.load(Path(model))
    for text in checks.check(recipe, specs(), f"{model}: "):
        watcher.note(text)
    return recipe


def _metrics(columns: Mapping[str, ItemValues], index: int) -> dict[str, Any]:
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
