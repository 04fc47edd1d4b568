"""Training jobs: deterministic, within their budget, and without a trace in later jobs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from evosearch.evaluation.engine import trainable as trainables
from evosearch.evaluation.engine.trainable import trainable
from evosearch.evaluation.harness import fine_tuning
from evosearch.evaluation.harness.fine_tuning import minibatches, schedule
from evosearch.evaluation.statistics.minibatches import taken
from evosearch.evaluation.types import ItemBatch, ScoreCard, TrainingCard
from evosearch.execution.worker import Worker
from evosearch.recipe.schema import Recipe
from evosearch.search.progress import Silent
from evosearch.search.protocols import Job, Outcome, Training
from evosearch.setup.executors import worker_config
from evosearch.setup.prepare import Prepared, prepare
from evosearch.spec.spec import load_spec

World = Callable[..., Path]
ITEMS = 480  # ten steps on the world's 16 search documents


@pytest.fixture
def prepared(world: World) -> Prepared:
    return prepare(load_spec(world()), Silent())


@pytest.fixture
def worker(prepared: Prepared) -> Worker:
    workers = prepared.spec.config.workers
    return Worker(worker_config(workers, prepared.models, prepared.suite, "float32"), harness=prepared.harness)


def start(prepared: Prepared) -> Recipe:
    recipe = next(baseline.recipe for baseline in prepared.baselines if baseline.name == "scale:0.60")
    assert recipe is not None
    return recipe


def train(worker: Worker, prepared: Prepared, items: int = ITEMS, seed: int = 0) -> TrainingCard:
    scored = tuple(prepared.batches[split] for split in ("validation", "test"))
    job = Job("trained@search", start(prepared), prepared.batches["search"], training=Training(items, seed, scored))
    assert job.evaluations == items + sum(map(len, scored))
    found = worker.run(job)
    assert found.training is not None, found.failure
    assert found.card is None
    return found.training


def values(card: ScoreCard) -> dict[str, dict[str, list[float]]]:
    return {task: {name: column.tolist() for name, column in own.items()} for task, own in card.columns.items()}


def scored(worker: Worker, prepared: Prepared) -> dict[str, dict[str, list[float]]]:
    outcome: Outcome = worker.run(Job("again@test", start(prepared), prepared.batches["test"]))
    assert outcome.card is not None, outcome.failure
    return values(outcome.card)


@pytest.mark.parametrize("form", ["full", "lora"])
def test_training_fits_the_search_documents_and_leaves_no_trace(
    form: str, worker: Worker, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainables, "SMALL", 10**9 if form == "full" else 0)
    monkeypatch.setattr(fine_tuning, "CHECKPOINTS", (1.0,))
    before = scored(worker, prepared)
    found = train(worker, prepared)
    assert (found.form, found.steps, found.kept, found.items) == (form, 10, 10, ITEMS)
    assert found.rate == {"full": 3e-4, "lora": 2e-4}[form]
    assert found.objective[1] > found.objective[0]
    assert [card.split for card in found.cards] == ["validation", "test"]
    assert values(found.cards[1]) != before
    model = worker.resident.model
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert scored(worker, prepared) == before
    again = train(worker, prepared)
    assert [values(card) for card in again.cards] == [values(card) for card in found.cards]
    assert again.objective == found.objective
    other = train(worker, prepared, seed=1)
    assert values(other.cards[1]) != values(found.cards[1]) or form == "full"  # one minibatch: the order is the same
    total = sum(parameter.numel() for parameter in model.parameters())
    assert found.parameters == total if form == "full" else found.parameters < total


def test_the_best_checkpoint_by_validation_is_kept(
    worker: Worker, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fine_tuning, "RATES", {"full": 0.03, "lora": 0.03})  # so that the checkpoints differ
    cards: dict[float, TrainingCard] = {}
    for fraction in (0.5, 1.0):
        monkeypatch.setattr(fine_tuning, "CHECKPOINTS", (fraction,))
        cards[fraction] = train(worker, prepared)
    monkeypatch.setattr(fine_tuning, "CHECKPOINTS", (0.5, 1.0))
    kept = train(worker, prepared)
    best = max(cards.values(), key=lambda card: (card.cards[0].score or 0.0, -card.kept))
    assert kept.kept == best.kept
    assert [values(card) for card in kept.cards] == [values(card) for card in best.cards]


def test_bfloat16_weights_are_trained_in_float32(worker: Worker) -> None:
    model = worker.resident.model.to(torch.bfloat16)
    parameter = next(iter(model.parameters()))
    before = parameter.detach().clone()
    with trainable(model, 0) as found:
        assert {tensor.dtype for tensor in found.parameters} == {torch.float32}
        for _ in range(100):
            found.parameters[0].add_(1e-4)  # each step alone would be rounded away
        found.publish()
    assert float((parameter.float() - before.float()).mean()) == pytest.approx(0.01, abs=2e-3)


def test_minibatches_divide_the_documents_of_every_scored_task(
    worker: Worker, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = prepared.batches["test"]
    (one,) = minibatches(worker.scorer, batch, 0)
    assert {items.task: items.doc_ids for items in one.sets} == {items.task: items.doc_ids for items in batch.sets}
    monkeypatch.setattr(fine_tuning, "DOCUMENTS", 5)
    several = minibatches(worker.scorer, batch, 0)
    assert [[len(items) for items in one.sets] for one in several] == [[5, 5]] * 4
    for place, items in enumerate(batch.sets):
        assert sorted(doc for one in several for doc in one.sets[place].doc_ids) == sorted(items.doc_ids)
    assert several == minibatches(worker.scorer, batch, 0)
    assert several != minibatches(worker.scorer, batch, 1)


def test_a_small_task_is_in_every_minibatch_and_does_not_enlarge_them(
    worker: Worker, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fine_tuning, "DOCUMENTS", 5)
    large, small = prepared.batches["test"].sets
    several = minibatches(worker.scorer, ItemBatch("test", (large, taken(small, [3]))), 0)
    assert [[len(items) for items in one.sets] for one in several] == [[5, 1]] * 4
    assert sorted(doc for one in several for doc in one.sets[0].doc_ids) == sorted(large.doc_ids)


@pytest.mark.parametrize(("items", "steps"), [(0, 1), (89, 1), (179, 1), (180, 2), (900, 10)])
def test_steps_follow_the_budget_in_epochs(items: int, steps: int) -> None:
    order = list(schedule([90, 90, 90], items, seed=4))
    assert len(order) == steps
    for first in range(0, steps - 2, 3):
        assert sorted(order[first : first + 3]) == [0, 1, 2]
    assert order == list(schedule([90, 90, 90], items, seed=4))


def test_a_search_split_without_right_answers_is_a_failure(
    worker: Worker, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evosearch.evaluation.harness.item_fitness import ItemFitness

    def unknown(self: ItemFitness, lls: torch.Tensor, margins: torch.Tensor) -> dict[str, torch.Tensor]:
        return {task.spec.name: torch.full((task.count,), torch.nan, dtype=torch.float64) for task in self.tasks}

    monkeypatch.setattr(ItemFitness, "__call__", unknown)
    training = Training(ITEMS, 0, (prepared.batches["test"],))
    found = worker.run(Job("trained@search", start(prepared), prepared.batches["search"], training=training))
    assert found.failure is not None
    assert (found.failure.stage, found.failure.fault) == ("train", "candidate")
    assert "no document of the search split has a right answer" in found.failure.reason
