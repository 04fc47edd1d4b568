"""Charts and inputs of the search's own run."""

import json
import math
from collections.abc import Callable
from statistics import pstdev
from typing import Any

import pytest

from evosearch.search.ledger.events import Event
from evosearch.tracking.changes import SEARCH, Plan
from evosearch.tracking.client import connect, find_runs
from evosearch.tracking.generations import FEWEST
from evosearch.tracking.mlflow import MlflowMirror
from evosearch.tracking.translator import Translator

NewStore = Callable[[str], str]
Story = Any  # conftest.Story
Entry = tuple[float, str, dict[str, Any]]  # seconds, type, payload
LONG_S = 400.0


def points(*entries: Entry) -> dict[str, list[tuple[int, float]]]:
    plan: Plan = {}
    translator = Translator("id", "s")
    for seq, (at, kind, payload) in enumerate(entries, start=1):
        translator.translate(Event(seq, at, kind, payload), plan)
    found: dict[str, list[tuple[int, float]]] = {}
    for point in plan[SEARCH].points:
        found.setdefault(point.name, []).append((point.step, point.value))
    return found


def asked(at: float, name: str, group: int, weight: float, **more: Any) -> Entry:
    genome = {"weight": weight, "method": "ties"}
    return at, "asked", {"candidate": name, "group": group, "genome": genome, "recipe": {}, "recipe_id": name, **more}


def scored(at: float, name: str, score: float, worker: str, seconds: float) -> Entry:
    card = {"split": "search", "batch": "b", "score": score, "fitness": {"value": score / 100, "stderr": 0.1, "n": 8}}
    return at, "scored", {"candidate": name, **card, "tasks": {}, "worker": worker, "seconds": {"score": seconds}}


def told(at: float, group: int, **values: float | None) -> Entry:
    state = {name: "failed" if value is None else "scored" for name, value in values.items()}
    one = [
        {"candidate": name[1:], "value": value, "stderr": 0.1, "n": 8, "state": state[name]}
        for name, value in values.items()
    ]
    return at, "told", {"group": group, "observations": one}


def test_every_generation_is_a_point() -> None:
    started = (0.0, "started", {"name": "s", "spec": {}, "inputs": {}})
    lost = {"candidate": "2", "split": "search", "stage": "score", "reason": "lost"}
    found = points(
        started,
        *(asked(10.0, name, 0, weight) for name, weight in (("0", 0.0), ("1", 1.0), ("2", 2.0))),
        scored(15.0, "0", 40.0, "w0", 5.0),
        scored(20.0, "1", 50.0, "w1", 10.0),
        (20.0, "failed", lost),
        told(20.0, 0, c0=0.4, c1=0.5, c2=None),
        asked(20.0, "3", 1, 0.5),
        asked(20.0, "4", 1, 0.7),
        scored(30.0, "3", 60.0, "w0", 10.0),
        scored(30.0, "4", 70.0, "w1", 10.0),
        told(30.0, 1, c3=0.6, c4=0.7),
    )
    assert found["generation/best_fitness"] == [(0, 0.5), (1, 0.7)]
    assert found["generation/mean_score"] == [(0, 45.0), (1, 65.0)]
    assert found["generation/spread_score"] == [(0, 5.0), (1, 5.0)]
    assert found["generation/genome_spread"] == [(0, pytest.approx(pstdev([0, 1, 2]), abs=1e-4)), (1, 0.1)]
    assert found["progress/failures"] == [(0, 1.0), (1, 1.0)]
    assert found["progress/candidates_per_hour"] == [(0, 1080.0), (1, 720.0)]  # 3 in 10 s, 2 in 10 s
    assert found["progress/utilization"] == [(0, 0.38), (1, 1.0)]  # 15 of 40 s, 20 of 20 s
    assert found["cost/items"] == [(0, 16.0), (1, 32.0)]
    assert found["cost/worker_hours"] == [
        (0, pytest.approx(15 / 3600, abs=1e-4)),
        (1, pytest.approx(35 / 3600, abs=1e-4)),
    ]


def test_the_norm_of_a_gradient_is_that_of_the_sum_of_its_shards() -> None:
    about = {"split": "search", "minibatch": 0, "fitness": {"value": 0.1, "stderr": 0.0, "n": 4}, "seconds": {}}
    one = {"value": 0.1, "stderr": 0.0, "n": 4, "state": "scored", "gradient": True}
    found = points(
        *(asked(1.0, name, 0, 0.5, gradient=True) for name in "01"),
        (2.0, "differentiated", {"candidate": "0", "gradient": [1.0, -1.0], **about}),
        (2.0, "differentiated", {"candidate": "1", "gradient": [2.0, 5.0], **about}),
        (2.0, "told", {"group": 0, "observations": [{"candidate": name, **one} for name in "01"]}),
    )
    assert found["gradient/norm"] == [(0, math.hypot(3.0, 4.0))]
    assert found["cost/items"] == [(0, 24.0)], "a gradient counts as three evaluations"
    assert "generation/mean_fitness" not in found


def test_an_asynchronous_search_has_a_point_for_several_candidates() -> None:
    entries = [
        entry
        for index in range(2 * FEWEST + 3)
        for entry in (
            asked(float(index), str(index), index, 0.1),
            scored(index + 0.5, str(index), float(index), "w", 0.5),
            told(index + 0.5, index, **{f"c{index}": float(index)}),
        )
    ]
    found = points(*entries)
    assert found["generation/mean_score"] == [(FEWEST - 1, 4.5), (2 * FEWEST - 1, 14.5)]
    assert len(found["progress/failures"]) == 2


def test_items_and_models_are_inputs(story: Story, new_store: NewStore) -> None:
    story.begin()
    uri = new_store("store")
    MlflowMirror(uri, "nights", story.url, story.search_id, "night").close(LONG_S)
    story.add("started", name="night", spec={}, inputs={"zoo:tiny/base": "ab"}, versions={})  # a resume
    story.first_group()
    story.second_group()
    story.finish()
    MlflowMirror(uri, "nights", story.url, story.search_id, "night").close(LONG_S)
    client = connect(uri)
    experiment = client.get_experiment_by_name("nights").experiment_id
    (own,) = find_runs(client, [experiment], "tags.kind = 'search'")
    found = {one.tags[0].value: one.dataset for one in own.inputs.dataset_inputs}
    assert len(own.inputs.dataset_inputs) == len(found) == 4, "each once, also after a resume"
    assert (found["model"].name, found["model"].digest) == ("zoo:tiny/base", "ab")
    cards = {event.payload["split"]: event.payload for event in story.ledger.events(story.search_id, types=["scored"])}
    for split in ("search", "validation", "test"):
        assert found[split].digest == cards[split]["batch"][:36]
        assert json.loads(found[split].source)["digest"] == cards[split]["batch"]
        assert json.loads(found[split].profile) == {"num_rows": 2}
    assert own.data.tags["mlflow.source.name"] == "evosearch"
    assert own.data.tags["mlflow.user"]
