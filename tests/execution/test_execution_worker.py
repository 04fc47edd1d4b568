"""The worker: setup is done once, and errors of candidates are outcomes."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evosearch.execution.local import LocalExecutor
from evosearch.execution.worker import Worker
from evosearch.recipe.schema import Recipe
from evosearch.search.progress import Silent
from evosearch.search.protocols import Job
from evosearch.setup.executors import worker_config
from evosearch.setup.prepare import Prepared, prepare
from evosearch.spec.spec import load_spec

World = Callable[..., Path]

_counting: list[Counter[str]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _counting and event == "open":
        _counting[-1][f"open {arguments[0]}"] += 1


sys.addaudithook(
    _audit
)  # sees every file that Python opens; cannot be removed, so it counts only while a counter is active


@pytest.fixture
def prepared(world: World) -> Prepared:
    return prepare(load_spec(world()), Silent())


def make_worker(prepared: Prepared) -> Worker:
    config = prepared.spec.config
    return Worker(worker_config(config.workers, prepared.models, prepared.suite, "float32"))


def filled(prepared: Prepared, *weights: float) -> Recipe:
    return prepared.space.fill(prepared.space.with_weight(weights))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts opened files, built modules, tokenized texts, lm-eval tasks and requests while active."""
    import torch
    from lm_eval.api.task import ConfigurableTask, Task
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    counter: Counter[str] = Counter()

    def counting(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if _counting:
                counter[f"{owner.__name__}.{name}"] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapper)

    for owner in (PreTrainedModel, torch.nn.Linear, torch.nn.Embedding):  # (a forward pass slices a list of layers)
        counting(owner, "__init__")
    for name in ("_encode_plus", "__call__", "encode", "tokenize"):
        if hasattr(PreTrainedTokenizerFast, name):
            counting(PreTrainedTokenizerFast, name)
    for owner, names in (
        (TaskManager, ("__init__",)),
        (ConfigurableTask, ("__init__", "download", "construct_requests", "doc_to_text")),
        (Task, ("build_all_requests", "fewshot_context")),
    ):
        for name in names:
            if name in vars(owner):
                counting(owner, name)
    yield counter
    _counting.clear()


def test_a_candidate_builds_opens_tokenizes_and_rebuilds_nothing(prepared: Prepared, counted: Counter[str]) -> None:
    batch = prepared.batches["search"]
    # Building a worker does all of these, so the counters work
    _counting.append(counted)
    worker = make_worker(prepared)
    first = worker.run(Job("0@search", filled(prepared, 0.3, 0.4), batch))
    _counting.clear()
    assert counted["PreTrainedModel.__init__"] > 0
    assert counted["Linear.__init__"] > 10
    assert counted["TaskManager.__init__"] == 1
    assert any("Tokenizer" in what for what in counted)
    assert any(what.startswith("open ") for what in counted)
    counted.clear()
    _counting.append(counted)
    outcomes = [worker.run(Job(f"{i}@search", filled(prepared, 0.1 * i, 0.5), batch)) for i in range(1, 4)]
    _counting.clear()
    assert dict(counted) == {}
    scores = [outcome.card.fitness.value for outcome in outcomes if outcome.card]
    assert first.card is not None
    assert len({first.card.fitness.value, *scores}) == 4, "different recipes give different scores"


def route(prepared: Prepared, *hops: tuple[int, int, float]) -> Recipe:
    """Return a route from (model index, layer, scale) triples."""
    names = list(prepared.models.checkpoints)
    listed = [{"model": names[index], "layer": layer, "scale": scale} for index, layer, scale in hops]
    return Recipe.model_validate({"routing": {"hops": listed}})


def test_a_candidate_route_builds_opens_tokenizes_and_rebuilds_nothing(
    prepared: Prepared, counted: Counter[str]
) -> None:
    batch = prepared.batches["search"]
    config = worker_config(prepared.spec.config.workers, prepared.models, prepared.suite, "float32")
    frame = route(prepared, (0, 0, 1.0), (1, 0, 1.0), (2, 0, 1.0))
    _counting.append(counted)
    worker = Worker(replace(config, recipe=frame.to_dict()))
    first = worker.run(Job("0@search", route(prepared, (0, 0, 1.0), (1, 1, 0.8), (0, 2, 1.2)), batch))
    _counting.clear()
    assert counted["PreTrainedModel.__init__"] > 0
    assert counted["Linear.__init__"] > 10
    assert any(what.startswith("open ") for what in counted)
    counted.clear()
    routes = [
        route(prepared, (0, 0, 1.0), (0, 1, 0.9), (1, 1, 1.1), (2, 1, 1.1), (0, 2, 1.0)),
        route(prepared, (0, 0, 0.7), (0, 0, 1.3)),
        route(prepared, *((index % 3, index % 2, 1.05) for index in range(9))),
    ]
    _counting.append(counted)
    outcomes = [worker.run(Job(f"{index}@search", each, batch)) for index, each in enumerate(routes, start=1)]
    _counting.clear()
    assert dict(counted) == {}
    assert [outcome.failure for outcome in outcomes] == [None] * 3
    scores = [outcome.card.fitness.value for outcome in outcomes if outcome.card]
    assert first.card is not None
    assert len({first.card.fitness.value, *scores}) == 4, "different routes give different scores"


def test_the_same_recipe_has_the_same_card_after_other_jobs(prepared: Prepared) -> None:
    worker, batch = make_worker(prepared), prepared.batches["search"]
    recipe, other = filled(prepared, 0.3, 0.4), filled(prepared, 1.1, 0.0)
    cards = [worker.run(Job("x@search", each, batch)).card for each in (recipe, other, recipe)]
    assert cards[0] is not None
    assert cards[2] is not None
    assert cards[0].score == cards[2].score
    assert cards[0].fitness == cards[2].fitness


def test_a_candidate_that_cannot_be_merged_is_an_outcome(prepared: Prepared) -> None:
    worker, batch = make_worker(prepared), prepared.batches["search"]
    first, second = (entry.model for entry in prepared.example.models)
    weights = [{"model": first, "parameters": {"weight": 1.0}}, {"model": second, "parameters": {"weight": -1.0}}]
    bad = Recipe.model_validate({"merge_method": "linear", "models": weights})
    outcome = worker.run(Job("bad@search", bad, batch))
    assert outcome.card is None
    assert outcome.failure is not None
    assert outcome.failure.stage == "materialize"
    assert outcome.seconds["materialize"] > 0.0
    assert outcome.failure.fault == "candidate"
    assert "weight" in outcome.failure.reason
    assert "Traceback" in outcome.failure.traceback
    assert worker.run(Job("good@search", filled(prepared, 0.2, 0.2), batch)).card is not None


def test_non_finite_weights_are_a_failure(world: World) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    spec = world()
    link = spec.parent / "expert2"
    source = link.resolve()
    link.unlink()
    shutil.copytree(source, link)
    tensors = load_file(link / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = 3e38  # finite, but not 1.5 times
    save_file(tensors, link / "model.safetensors", metadata={"format": "pt"})
    prepared = prepare(load_spec(spec), Silent())
    outcome = make_worker(prepared).run(Job("huge@search", filled(prepared, 0.5, 1.5), prepared.batches["search"]))
    assert outcome.card is None
    assert outcome.failure is not None
    assert outcome.failure.stage == "materialize"
    assert "model.layers.1.mlp.up_proj.weight" in outcome.failure.reason


def test_local_executor_scores_in_order(prepared: Prepared) -> None:
    config = worker_config(prepared.spec.config.workers, prepared.models, prepared.suite, "float32")
    executor = LocalExecutor(config)
    assert executor.wait(0.0) == []
    for index in range(3):
        executor.submit(Job(f"{index}@search", filled(prepared, 0.1 * index, 0.2), prepared.batches["search"]))
    done = [outcome.job.id for _ in range(3) for outcome in executor.wait(1.0)]
    assert done == ["0@search", "1@search", "2@search"]
    executor.close()
