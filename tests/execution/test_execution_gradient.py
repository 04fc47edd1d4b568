"""Gradient jobs: the gradient of the fitness that workers score, compared with central differences of scores."""

import copy
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from evosearch.evaluation.statistics.minibatches import taken
from evosearch.evaluation.types import GradientCard, ItemBatch
from evosearch.execution.worker import Worker
from evosearch.materialize.in_memory import ResidentModel
from evosearch.recipe.schema import Recipe
from evosearch.search.progress import Silent
from evosearch.search.protocols import Job
from evosearch.setup.executors import worker_config
from evosearch.setup.prepare import Prepared, prepare
from evosearch.spec.spec import load_spec

World = Callable[..., Path]
Start = Callable[..., tuple[Prepared, Worker]]

STEP = 5e-3
PLAIN: dict[str, Any] = {"low": 0.0, "high": 1.5}


def merge(method: str, *weights: Any, base: str | None = "./base", **shared: Any) -> dict[str, Any]:
    models = [{"model": f"./expert{i + 1}", "parameters": {"weight": hole}} for i, hole in enumerate(weights)]
    data = {"merge_method": method, "models": models, "parameters": shared}
    return data | ({"base_model": base} if base else {})


RECIPES: dict[str, dict[str, Any]] = {
    "task_arithmetic, filters": merge(
        "task_arithmetic",
        [{"filter": "self_attn", "value": PLAIN}, {"filter": "mlp", "value": PLAIN}, {"value": 0.4}],
        PLAIN,
        **{"lambda": {"low": 0.5, "high": 1.5}},
    ),
    "task_arithmetic, gradient, normalize": merge(
        "task_arithmetic", {**PLAIN, "per": "gradient", "points": 3}, PLAIN, normalize=True
    ),
    "ties, groups": merge("ties", {**PLAIN, "per": "group", "groups": 2}, PLAIN, sign_method="count"),
    "linear, a shared name": merge(
        "linear",
        [{"filter": "mlp", "value": {**PLAIN, "name": "both"}}, {"value": PLAIN}],
        {**PLAIN, "name": "both"},
        base=None,
    ),
    "slerp": {
        "merge_method": "slerp",
        "base_model": "./base",
        "models": [{"model": "./expert1"}],
        "parameters": {"t": {"low": 0.0, "high": 1.0, "per": "gradient", "points": 2}},
    },
}


@pytest.fixture
def start(world: World) -> Start:
    """Return a search and a worker for a recipe with holes and a kind of fitness."""

    def make(recipe: dict[str, Any], fitness: Any = "expected_score", search: int = 7) -> tuple[Prepared, Worker]:
        optimizer = {"name": "cma_es", "population": 6, "seed": 1, "start": "init"}
        path = world(recipe=copy.deepcopy(recipe), suite="fitness.yaml", optimizer=optimizer, baselines={"scales": []})
        suite = yaml.safe_load((path.parent / "suite.yaml").read_text())
        suite |= {"fitness": fitness, "documents": {"search": search, "validation": 8, "test": 8}}
        suite["tasks"][1]["weight"] = 2.5
        (path.parent / "fitness.yaml").write_text(yaml.safe_dump(suite))
        prepared = prepare(load_spec(path), Silent())
        config = worker_config(prepared.spec.config.workers, prepared.models, prepared.suite, "float32")
        return prepared, Worker(config)

    return make


def middle(prepared: Prepared) -> dict[str, Any]:
    """A genome with different values in all dimensions."""
    return {d.name: d.low + (d.high - d.low) * (0.3 + 0.07 * i) for i, d in enumerate(prepared.space.dimensions)}


def gradient_of(
    prepared: Prepared, worker: Worker, batch: ItemBatch, weights: Mapping[str, float] | None = None
) -> GradientCard:
    space = prepared.space
    job = Job("g", space.with_derivatives(middle(prepared)), batch, gradient=len(space.dimensions), weights=weights)
    outcome = worker.run(job)
    assert outcome.failure is None, outcome.failure
    assert outcome.gradient is not None
    assert outcome.card is None
    return outcome.gradient


def fitness_at(prepared: Prepared, worker: Worker, batch: ItemBatch, genome: Mapping[str, Any]) -> float:
    card = worker.run(Job("s", prepared.space.fill(genome), batch)).card
    assert card is not None
    return card.fitness.value


def differences(prepared: Prepared, worker: Worker, batch: ItemBatch) -> list[float]:
    """Central differences of the scored fitness, with an error of order STEP⁴ (Richardson)."""
    genome = middle(prepared)

    def slope(name: str, size: float) -> float:
        high, low = (
            fitness_at(prepared, worker, batch, genome | {name: genome[name] + shift}) for shift in (size, -size)
        )
        return (high - low) / (2 * size)

    return [(4 * slope(name, STEP) - slope(name, 2 * STEP)) / 3 for name in genome]


@pytest.mark.parametrize("name", RECIPES)
def test_the_gradient_is_that_of_the_scored_fitness(name: str, start: Start) -> None:
    prepared, worker = start(RECIPES[name])
    batch = prepared.batches["search"]
    card, expected = gradient_of(prepared, worker, batch), differences(prepared, worker, batch)
    assert len(expected) > 1
    assert min(map(abs, expected)) > 0.01, "points per unit of a dimension"
    assert card.gradient == pytest.approx(expected, rel=5e-3, abs=2e-3 * max(map(abs, expected)))
    assert card.fitness.value == pytest.approx(fitness_at(prepared, worker, batch, middle(prepared)), abs=1e-4)


@pytest.mark.parametrize("fitness", ["gold_logprob", "margin"])
def test_other_kinds_of_fitness(fitness: str, start: Start) -> None:
    prepared, worker = start(RECIPES["task_arithmetic, filters"], fitness)
    batch = prepared.batches["search"]
    card, expected = gradient_of(prepared, worker, batch), differences(prepared, worker, batch)
    assert card.gradient == pytest.approx(expected, rel=5e-3, abs=3e-3 * max(map(abs, expected)))


def test_a_card_has_the_estimates_of_a_score_card(start: Start) -> None:
    prepared, worker = start(RECIPES["ties, groups"])
    batch = prepared.batches["search"]
    card, scored = (
        gradient_of(prepared, worker, batch),
        worker.run(Job("s", prepared.space.fill(middle(prepared)), batch)).card,
    )
    assert scored is not None
    assert (card.split, card.batch_digest) == ("search", batch.digest)
    assert card.fitness.stderr == pytest.approx(scored.fitness.stderr, rel=1e-5)
    assert card.fitness.n == scored.fitness.n == len(batch)
    assert card.tasks.keys() == scored.task_fitness.keys()
    for task, estimate in card.tasks.items():
        assert vars(estimate) == pytest.approx(vars(scored.task_fitness[task]), rel=1e-5)
    assert card.modes == {"loglikelihood": "tree"}
    assert set(card.seconds) == {"materialize", "score"}
    assert 0 < card.tokens.forwarded < scored.tokens.forwarded, "generates nothing"


def test_shards_of_any_sizes_add_up_to_the_whole(start: Start) -> None:
    prepared, worker = start(RECIPES["task_arithmetic, filters"])
    batch = prepared.batches["search"]
    choice, generate = batch.sets
    shards = [
        ItemBatch("search", (taken(choice, [0, 3]),)),
        ItemBatch("search", (taken(choice, [1]), taken(generate, [0, 1, 2, 5]))),
        ItemBatch("search", (taken(choice, [2, 4, 5, 6]), taken(generate, [3, 4, 6]))),
        ItemBatch("search", ()),
    ]
    weights = {"choice": 1 / 3.5 / 7, "generate": 2.5 / 3.5 / 7}
    whole = gradient_of(prepared, worker, batch)
    parts = [gradient_of(prepared, worker, shard, weights) for shard in shards]
    assert sum(part.fitness.value for part in parts) == pytest.approx(whole.fitness.value, rel=1e-6)
    total = np.sum([part.gradient for part in parts], axis=0)
    np.testing.assert_allclose(total, whole.gradient, rtol=1e-4, atol=1e-5)
    assert parts[-1].gradient == (0.0,) * len(whole.gradient)


def test_a_job_is_repeatable_and_recipes_with_derivatives_travel(start: Start) -> None:
    prepared, worker = start(RECIPES["ties, groups"])
    batch = prepared.batches["search"]
    first = gradient_of(prepared, worker, batch)
    fitness_at(prepared, worker, batch, prepared.space.initial())
    assert gradient_of(prepared, worker, batch).gradient == first.gradient
    recipe = pickle.loads(pickle.dumps(prepared.space.with_derivatives(middle(prepared))))
    again = worker.run(Job("again", recipe, batch, gradient=len(first.gradient))).gradient
    assert again is not None
    assert again.gradient == first.gradient


def test_shards_of_one_iterate_are_merged_once(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    from evosearch.materialize import in_memory

    prepared, worker = start(RECIPES["ties, groups"])
    batch, merged = prepared.batches["search"], []
    merge = in_memory.merge
    monkeypatch.setattr(in_memory, "merge", lambda op, *args: (merged.append(op.tensor), merge(op, *args))[1])
    first = gradient_of(prepared, worker, batch)
    count = len(merged)
    assert count == len(set(merged)) > 0
    assert gradient_of(prepared, worker, batch).gradient == first.gradient
    fitness_at(prepared, worker, batch, middle(prepared))
    assert len(merged) == count
    fitness_at(prepared, worker, batch, prepared.space.initial())
    assert len(merged) == 2 * count


def test_scores_after_a_gradient_are_bitwise_the_same(start: Start) -> None:
    prepared, worker = start(RECIPES["task_arithmetic, filters"])
    batch = prepared.batches["search"]
    before = fitness_at(prepared, worker, batch, middle(prepared))
    gradient_of(prepared, worker, batch)
    worker.run(Job("other", prepared.space.fill(prepared.space.initial()), batch))
    assert fitness_at(prepared, worker, batch, middle(prepared)) == before
    assert isinstance(worker.resident, ResidentModel)
    assert not any(parameter.requires_grad for parameter in worker.resident.model.parameters())


@contextmanager
def at_most(worker: Worker, tokens: int) -> Iterator[list[int]]:
    """Make differentiable passes run out of memory above a number of tokens; yield the sizes of the others."""
    ran: list[int] = []

    def refuse(module: Any, args: Any, kwargs: Any) -> None:
        size = kwargs["input_ids"].numel()
        if torch.is_grad_enabled() and size > tokens:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} MiB.")
        ran.append(size)

    hook = worker.resident.model.base_model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield ran
    finally:
        hook.remove()


def test_passes_become_smaller_when_memory_runs_out(start: Start) -> None:
    prepared, worker = start(RECIPES["task_arithmetic, filters"], search=40)
    batch, untroubled = prepared.batches["search"], start(RECIPES["task_arithmetic, filters"], search=40)[1]
    expected = gradient_of(prepared, untroubled, batch)
    job = Job("g", prepared.space.with_derivatives(middle(prepared)), batch, gradient=len(expected.gradient))
    with at_most(worker, 260) as ran:
        outcome = worker.run(job)
    assert outcome.failure is None
    assert outcome.gradient is not None
    assert 48 < max(ran) <= 260
    first = outcome.retries[0]
    assert (first.stage, first.fault) == ("score", "worker")
    assert first.reason.endswith("1024 from now on, activations of at most 1 GiB instead of 2")
    assert outcome.gradient.gradient == pytest.approx(expected.gradient, rel=1e-4, abs=1e-4)
    with at_most(worker, 1):
        lost = worker.run(job).failure
    assert lost is not None
    assert lost.fault == "worker"
    assert "out of memory" in lost.reason


def test_routes_have_no_gradient(world: World) -> None:
    hops = [{"model": "./base", "layer": 0, "scale": 1.0}, {"model": "./expert1", "layer": 1, "scale": 1.0}]
    prepared = prepare(load_spec(world()), Silent())
    config = worker_config(prepared.spec.config.workers, prepared.models, prepared.suite, "float32")
    worker = Worker(config)
    names = list(prepared.models.checkpoints)
    named = [{**hop, "model": names[index]} for index, hop in enumerate(hops)]
    route = Recipe.model_validate({"routing": {"hops": named}})
    failure = worker.run(Job("r", route, prepared.batches["search"], gradient=1)).failure
    assert failure is not None
    assert (failure.stage, failure.fault) == ("materialize", "candidate")
    assert "routes have no gradient" in failure.reason


def test_a_fitness_without_gradient_is_refused(start: Start) -> None:
    prepared, worker = start(RECIPES["ties, groups"], "score")
    recipe = prepared.space.with_derivatives(middle(prepared))
    count = len(prepared.space.dimensions)
    failure = worker.run(Job("g", recipe, prepared.batches["search"], gradient=count)).failure
    assert failure is not None
    assert failure.fault == "candidate"
    assert "fitness" in failure.reason
    assert "score has no gradient" in failure.reason
