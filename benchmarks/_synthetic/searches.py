"""Complete searches in this process, up to the selection on `validation`; the winner is then scored on `test`.

Specs are prepared and run by the same functions as in `evosearch run`, with a ledger in a temporary folder. No model is
promoted, and no test opening is counted. Scores are deterministic, so the outcomes of recipes that several searches
score, such as baselines, are cached.
"""

import json
import math
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from benchmarks._synthetic.contestants import Contestant
from benchmarks._synthetic.figures import shown, spread
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.types import ScoreCard
from evosearch.promotion.finalists import Standing, standings
from evosearch.promotion.honest import items_used
from evosearch.promotion.validate import Validation
from evosearch.recipe.schema import Recipe
from evosearch.search.budget import Budget
from evosearch.search.controller import Controller
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.optimizer_config import OptimizerConfig, create
from evosearch.search.progress import Silent
from evosearch.search.protocols import Executor, Job, Outcome
from evosearch.search.recorder import Recorder
from evosearch.search.records import is_candidate
from evosearch.setup.executors import make_executor
from evosearch.setup.optimizing import choose_optimizer
from evosearch.setup.prepare import Prepared, prepare
from evosearch.setup.resume_check import circumstances
from evosearch.setup.versions import versions
from evosearch.spec.config import BudgetConfig, WorkersConfig
from evosearch.spec.spec import SearchSpec, Winner
from evosearch.spec.stages import StagedSpec, load

HERE = WorkersConfig(executor="local", threads=1)
SWEEP, UNIFORM, PARENT = "best scale", "uniform", "best parent"


class CachingExecutor:
    """Executor that scores each recipe only once per batch and caches the outcome."""

    slots = 1

    def __init__(self, inner: Executor) -> None:
        self._inner = inner
        self._queue: deque[Job] = deque()
        self._known: dict[tuple[str, str], Outcome] = {}

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._queue.append(job)

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Outcome of the next job; empty if none is queued."""
        if not self._queue:
            return []
        job = self._queue.popleft()
        key = json.dumps(job.recipe.to_dict(), sort_keys=True), job.batch.digest
        if key not in self._known:
            self._inner.submit(job)
            (self._known[key],) = self._inner.wait(timeout_s)
        return [replace(self._known[key], job=job)]

    def close(self) -> None:
        """Drop queued jobs and close the inner executor."""
        self._queue.clear()
        self._inner.close()


@dataclass(frozen=True)
class Found:
    """One finished search."""

    prepared: Prepared
    recorder: Recorder
    validation: Validation
    executor: CachingExecutor
    stopped: str

    @property
    def finalist(self) -> Standing:
        """The finalist with the best score on validation."""
        name = self.validation.finalist()
        return next(entry for entry in self._standings() if entry.candidate == name)

    def row(self) -> dict[str, Any]:
        """The finalist's scores on every split, and the cost of the search."""
        chosen, state = self.finalist, self.recorder.state
        return {
            "candidate": chosen.candidate,
            "search": chosen.scores["search"],
            "validation": chosen.scores["validation"],
            "test": self.test(chosen.candidate).score,
            "proposed": state.proposed,
            "failed": sum(is_candidate(failure.candidate) for failure in state.failed),
            "item_evaluations": items_used(state),
            "stopped": self.stopped,
        }

    def baselines(self) -> dict[str, dict[str, Any]]:
        """Best parent, uniform average and best scale with their scores on every split; selected without `test`."""
        self.validation.finalist()
        entries = [entry for entry in self._standings() if entry.kind != "candidate"]
        chosen = {
            PARENT: max((e for e in entries if e.kind == "parent"), key=_on_validation, default=None),
            UNIFORM: next((e for e in entries if e.kind == "uniform"), None),
            SWEEP: max((e for e in entries if e.kind == "scale"), key=_on_validation, default=None),
        }
        return {
            name: {"baseline": entry.candidate, **entry.scores, "test": self.test(entry.candidate).score}
            for name, entry in chosen.items()
            if entry is not None
        }

    def test(self, candidate: str) -> ScoreCard:
        """Score a candidate or baseline on the test split without recording it."""
        recipe = Recipe.model_validate(self.recorder.state.recipe(candidate))
        self.executor.submit(Job(f"{candidate}@test", recipe, self.prepared.batches["test"]))
        (outcome,) = self.executor.wait(0.0)
        assert outcome.card is not None, outcome.failure
        return outcome.card

    def _standings(self) -> list[Standing]:
        return standings(self.recorder.state)


class Bench:
    """Runner of searches, which loads each suite once and builds one worker for searches of the same models."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._folder = Path(self._open.enter_context(TemporaryDirectory(prefix="evosearch-bench-")))
        self._harnesses: dict[str, Harness] = {}
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def prepare(self, spec: SearchSpec) -> Prepared:
        """Prepare a search with the cached harness of its suite."""
        digest = spec.suite.digest()
        if digest not in self._harnesses:
            self._harnesses[digest] = Harness(spec.suite)
        return prepare(spec, Silent(), harness=self._harnesses[digest])

    def search(self, prepared: Prepared, executor: CachingExecutor, name: str) -> Found:
        """Run one search to the end of its budget.

        Args:
            name: File name of its ledger.
        """
        config = prepared.spec.config
        ledger = self._open.enter_context(Ledger.open(f"sqlite:///{self._folder / name}.db"))
        recorder = Recorder(ledger, prepared.search_id)
        ranked = prepared.ranked
        for batch in (*ranked.values(), *(prepared.minibatches.batches if prepared.minibatches else ())):
            ledger.put_item_sets(batch)
        started = {"name": prepared.spec.name, "spec": prepared.spec.identity(), "versions": versions()}
        optimizer, steps = prepared.optimizer, prepared.steps
        recorder.record([("started", started | circumstances(prepared).to_payload())])
        stopped = Controller(
            recorder=recorder,
            executor=executor,
            space=prepared.space,
            batch=ranked["search"],
            baselines=prepared.baselines,
            identify=prepared.models.identify,
            make_optimizer=lambda start: create(
                optimizer,
                prepared.space.dimensions,
                start,
                minibatches=steps.count if steps else 1,
                held_back=steps is not None and steps.held_back is not None,
            ),
            minibatches=prepared.minibatches,
            start=optimizer.start,
            budget=Budget(**config.budget.model_dump()),
            asynchronous=optimizer.asynchronous,
        ).run()
        finalists = config.promotion.finalists
        validation = Validation(recorder=recorder, executor=executor, batches=ranked, finalists=finalists)
        return Found(prepared, recorder, validation, executor, stopped)

    def compare_optimizers(
        self, file: Path, chosen: Sequence[Contestant], seeds: Iterable[int], candidates: int, finalists: int
    ) -> dict[str, Any]:
        """Search one space with several optimizers, each with the item evaluations of `candidates` candidates."""
        spec = load(file)
        assert isinstance(spec, SearchSpec), "not a multi-stage spec"
        prepared = self.prepare(spec)
        items = candidates * len(prepared.batches["search"])
        rows, baselines = list[dict[str, Any]](), dict[str, dict[str, Any]]()
        with working(prepared) as executor:
            for seed in seeds:
                for one in chosen:
                    own = with_config(prepared, one.config(seed), items, finalists)
                    found = self.search(own, executor, f"{one.name}-{len(rows)}")
                    rows.append({"label": one.label, "seed": seed, **found.row()})
                    baselines = baselines or found.baselines()
                    self._say(rows[-1])
        return results(items, rows, baselines)

    def compare_spaces(
        self, files: Mapping[str, Path], seeds: Sequence[int], candidates: int, finalists: int
    ) -> dict[str, Any]:
        """Run several specs, some of them multi-stage, with the same total number of item evaluations.

        Each seed replaces the seed in the spec. Stages share the item evaluations evenly, and each ends with its winner
        on validation.
        """
        rows, baselines, items = list[dict[str, Any]](), dict[str, dict[str, Any]](), 0
        for label, file in files.items():
            spec = load(file)
            first = self.prepare(spec.stage(0, {}) if isinstance(spec, StagedSpec) else spec)
            items = items or candidates * len(first.batches["search"])
            with working(first) as executor:
                for seed in seeds:
                    found = self._staged(spec, first, executor, f"{label}-{seed}", seed, items, finalists)
                    rows.append({"label": label, "seed": seed, **total([one.row() for one in found])})
                    baselines = baselines or found[-1].baselines()  # of the first spec
                    for one in found[1:]:
                        one.executor.close()
                    self._say(rows[-1])
        return results(items, rows, baselines)

    def _staged(
        self,
        spec: SearchSpec | StagedSpec,
        first: Prepared,
        executor: CachingExecutor,
        name: str,
        seed: int,
        items: int,
        finalists: int,
    ) -> list[Found]:
        """Run all stages in order, each with the winners of the earlier ones; a plain spec counts as one stage."""
        share = items // (spec.count if isinstance(spec, StagedSpec) else 1)
        found = [self.search(with_config(first, seeded(first, seed), share, finalists), executor, f"{name}-0")]
        winners: dict[str, Winner] = {}
        while isinstance(spec, StagedSpec) and len(found) < spec.count:
            index, last = len(found), found[-1]
            winner, state = last.validation.winner(), last.recorder.state
            recipe = state.recipe(winner.candidate)
            winners[spec.config.stages[index - 1].name] = Winner(recipe, winner.recipe_id, state.recipes)
            prepared = self.prepare(spec.stage(index, winners))
            prepared = with_config(prepared, seeded(prepared, seed), share, finalists)
            own = CachingExecutor(make_executor(HERE, prepared, Silent()))
            found.append(self.search(prepared, own, f"{name}-{index}"))
        return found

    def _say(self, row: Mapping[str, Any]) -> None:
        figures = ", ".join(f"{split} {row[split]:.1f}" for split in ("search", "validation", "test"))
        took = f"{time.monotonic() - self._began:5.0f} s"
        print(f"{took}  {row['label']}, seed {row['seed']}: {figures}; {row['proposed']} proposed", file=sys.stderr)


@contextmanager
def working(prepared: Prepared) -> Iterator[CachingExecutor]:
    """Executor with one worker, shared by searches of the same models."""
    executor = CachingExecutor(make_executor(HERE, prepared, Silent()))
    try:
        yield executor
    finally:
        executor.close()


def seeded(prepared: Prepared, seed: int) -> OptimizerConfig:
    """The optimizer section of the spec with another seed."""
    return prepared.spec.config.optimizer.model_copy(update={"seed": seed})


def with_config(prepared: Prepared, optimizer: OptimizerConfig, items: int, finalists: int) -> Prepared:
    """The same search with another optimizer and a budget in item evaluations."""
    config = prepared.spec.config
    promotion = config.promotion.model_copy(update={"finalists": finalists})
    changed = {"optimizer": optimizer, "budget": BudgetConfig(items=items), "promotion": promotion}
    spec = replace(prepared.spec, config=config.model_copy(update=changed))
    choice = choose_optimizer(spec, prepared.space)
    return replace(prepared, spec=spec, search_id=spec.search_id(), choice=choice)


def total(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row of the last stage, with the total cost of all stages, and the rows of the earlier stages."""
    *earlier, last = rows
    added = {key: sum(row[key] for row in rows) for key in ("proposed", "failed", "item_evaluations")}
    return last | added | ({"earlier_stages": earlier} if earlier else {})


def results(items: int, rows: list[dict[str, Any]], baselines: dict[str, Any]) -> dict[str, Any]:
    """Rows of all searches with their medians by label.

    Args:
        items: Budget of each search in item evaluations.
    """
    labels = dict.fromkeys(row["label"] for row in rows)
    best = baselines.get(SWEEP)
    summary: dict[str, dict[str, Any]] = {}
    for label in labels:
        own = [row for row in rows if row["label"] == label]
        summary[label] = {key: spread([row[key] for row in own]) for key in ("search", "validation", "test")}
        summary[label] |= {"searches": len(own), "item_evaluations": spread([row["item_evaluations"] for row in own])}
        summary[label]["proposed"] = spread([row["proposed"] for row in own])
        if best is not None:
            summary[label]["ahead"] = spread([row["test"] - best["test"] for row in own])
            summary[label]["ahead_in"] = sum(row["test"] > best["test"] for row in own)
    return {"items": items, "summary": summary, "baselines": baselines, "runs": rows}


def search_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Rows of the baselines, then of the searches: scores as median [quartiles] over seeds."""
    best = found["baselines"].get(SWEEP)
    rows = []
    for name, baseline in found["baselines"].items():
        ahead = "" if best is None or name == SWEEP else f"{baseline['test'] - best['test']:+.1f}"
        validation = f"{baseline['validation']:.1f}" if "validation" in baseline else "–"
        rows.append([name, f"{baseline['test']:.1f}", ahead, validation, f"{baseline['search']:.1f}", "", ""])
    for label, entry in found["summary"].items():
        count = entry["searches"]
        ahead = f"{shown(entry['ahead'])} ({entry['ahead_in']} of {count})" if best is not None else "–"
        cells = [shown(entry["test"]), ahead, shown(entry["validation"]), shown(entry["search"])]
        rows.append([label, *cells, f"{entry['item_evaluations']['median']:,.0f}", str(count)])
    return rows


def _on_validation(entry: Standing) -> float:
    return entry.scores.get("validation", -math.inf)  # only the best three scales are scored there
