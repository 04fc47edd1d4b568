"""Workers of routes: scores equal those of the exported checkpoints, and baselines have a model of their own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.suites.suite import Suite, load_suite
from evosearch.execution.worker import Worker
from evosearch.execution.worker_config import WorkerConfig
from evosearch.materialize.in_memory import ResidentModel
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.materialize.routed import ResidentRoute
from evosearch.recipe.schema import Recipe
from evosearch.search.protocols import Job

World = Callable[..., Path]
HOPS = (("base", 0, 1.0), ("expert1", 1, 0.7), ("expert2", 1, 1.3), ("expert1", 1, 1.1), ("base", 2, 0.9))


@pytest.fixture
def folder(world: World) -> Path:
    return world().parent


@pytest.fixture
def suite(folder: Path) -> Suite:
    return load_suite(folder / "suite.yaml")


@pytest.fixture
def harness(suite: Suite) -> Harness:
    return Harness(suite)


def route(folder: Path, *hops: tuple[str, int, float]) -> Recipe:
    listed = [{"model": str(folder / name), "layer": layer, "scale": scale} for name, layer, scale in hops]
    return Recipe.model_validate({"routing": {"hops": listed}})


def alone(model: Path) -> Recipe:
    return Recipe.model_validate(
        {"merge_method": "linear", "models": [{"model": str(model), "parameters": {"weight": 1.0}}]}
    )


def make_worker(frame: Recipe, suite: Suite, harness: Harness, cache: Path, also: tuple[str, ...] = ()) -> Worker:
    written = suite.model_dump(mode="json")
    config = WorkerConfig(recipe=frame.to_dict(), suite=written, cache=cache, device="cpu", threads=1, also=also)
    return Worker(config, harness=harness)


def check_same(worker: Worker, recipe: Recipe, exported: Worker, folder: Path, harness: Harness) -> None:
    """Check equal log-likelihoods and answers, request by request."""
    batch = harness.batch("search")
    ours = worker.run(Job("ours@search", recipe, batch))
    theirs = exported.run(Job("theirs@search", alone(folder), batch))
    assert ours.card is not None, ours.failure
    assert theirs.card is not None, theirs.failure
    assert ours.card.columns.keys() == theirs.card.columns.keys()
    for task, columns in theirs.card.columns.items():
        for name, values in columns.items():
            assert (np.abs(ours.card.columns[task][name] - values) <= 1e-3 + 1e-6 * np.abs(values)).all()
    assert ours.card.score == theirs.card.score


def test_a_route_scores_like_its_export(folder, suite, harness, tmp_path):
    frame = route(folder, *((name, 0, 1.0) for name in ("base", "expert1", "expert2")))
    worker = make_worker(frame, suite, harness, tmp_path / "cache")
    for index, hops in enumerate((HOPS, HOPS[:2], (*HOPS, *HOPS[1:3]))):
        out = tmp_path / str(index)
        write_checkpoint(route(folder, *hops), worker.checkpoints, out, str(folder / "base"))
        exported = make_worker(alone(out), suite, harness, tmp_path / "cache")
        check_same(worker, route(folder, *hops), exported, out, harness)


def test_baselines_of_routes_use_a_second_resident_model(folder, suite, harness, tmp_path):
    """Baselines score as in a worker of their own, and routes can be scored afterwards."""
    also = (str(folder / "expert2"),)
    frame = route(folder, ("base", 0, 1.0), ("expert1", 0, 1.0))
    worker, batch = make_worker(frame, suite, harness, tmp_path, also), harness.batch("search")
    candidate = route(folder, *HOPS[:2])
    before = worker.run(Job("0@search", candidate, batch))
    assert isinstance(worker.resident, ResidentRoute)
    for name in ("expert1", "expert2"):
        baseline = worker.run(Job(f"{name}@search", alone(folder / name), batch))
        assert isinstance(worker._other, ResidentModel)
        own = make_worker(alone(folder / name), suite, harness, tmp_path)
        expected = own.run(Job(f"{name}@search", alone(folder / name), batch))
        assert baseline.card is not None
        assert expected.card is not None
        assert baseline.card.fitness == expected.card.fitness
    after = worker.run(Job("0@search", candidate, batch))
    assert worker._other is None
    assert before.card is not None
    assert after.card is not None
    assert before.card.fitness == after.card.fitness


def test_a_route_uses_the_embeddings_of_its_first_model(folder, suite, harness, tmp_path):
    worker = make_worker(route(folder, ("base", 0, 1.0), ("expert1", 0, 1.0)), suite, harness, tmp_path)
    begins = route(folder, ("expert1", 0, 1.0), ("base", 1, 0.8), ("expert1", 2, 1.0))
    write_checkpoint(begins, worker.checkpoints, tmp_path / "out", str(folder / "expert1"))
    exported = make_worker(alone(tmp_path / "out"), suite, harness, tmp_path)
    check_same(worker, begins, exported, tmp_path / "out", harness)


@pytest.mark.parametrize(
    ("hop", "where", "what"),
    [
        (("base", 7, 1.0), "recipe.routing.hops[1].layer: got 7", "has layers 0 to 2"),
        (("expert2", 1, 1.0), "recipe.routing.hops[1].model", "is not loaded"),
        (("base", 1, 9.0), "recipe.routing.hops[1].scale: got 9", "[0.125, 8]"),
    ],
)
def test_an_invalid_route_is_a_failed_outcome(hop, where, what, folder, suite, harness, tmp_path):
    worker = make_worker(route(folder, ("base", 0, 1.0), ("expert1", 0, 1.0)), suite, harness, tmp_path)
    outcome = worker.run(Job("bad@search", route(folder, ("base", 0, 1.0), hop), harness.batch("search")))
    assert outcome.failure is not None
    assert (outcome.failure.stage, outcome.failure.fault) == ("materialize", "candidate")
    assert where in outcome.failure.reason
    assert what in outcome.failure.reason
    assert worker.run(Job("good@search", route(folder, *HOPS[:2]), harness.batch("search"))).card is not None
