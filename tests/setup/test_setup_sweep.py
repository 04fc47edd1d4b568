"""The default sweep of scales fits the budget, a search keeps the one that it started with, and the share is said."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.evaluation.harness.harness import Harness
from evosearch.search.baselines import SCALES
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Silent
from evosearch.search.state import SearchState
from evosearch.service.run import run
from evosearch.setup.prepare import Prepared, prepare
from evosearch.setup.sweep import SWEEPS
from evosearch.spec.spec import load_spec

World = Callable[..., Path]


def plain(world: World, budget: dict[str, Any], **changes: Any) -> Path:
    """A spec without `baselines`, and without `optimizer` unless one is given."""
    path = world(budget=budget, **changes)
    data = yaml.safe_load(path.read_text())
    for key in {"baselines", "optimizer"} - changes.keys():
        del data[key]
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def kept() -> dict[str, Harness]:
    return {}


@pytest.fixture
def prepared(world: World, kept: dict[str, Harness]) -> Callable[..., Prepared]:
    def make(budget: dict[str, Any], **changes: Any) -> Prepared:
        spec = load_spec(plain(world, budget, **changes))
        kept.setdefault("harness", Harness(spec.suite))
        return prepare(spec, Silent(), harness=kept["harness"])

    return make


def scales(prepared: Prepared) -> int:
    return sum(baseline.kind == "scale" for baseline in prepared.baselines)


RANDOM = {"name": "random"}


@pytest.mark.parametrize(
    ("budget", "changes", "count"),
    [
        ({"candidates": 30}, {"optimizer": RANDOM}, 10),  # 16 documents each: 10 · 16 of 30 · 16
        ({"candidates": 29}, {"optimizer": RANDOM}, 5),
        ({"candidates": 14}, {"optimizer": RANDOM}, 3),
        ({"candidates": 2}, {"optimizer": RANDOM}, 3),
        ({"candidates": 30}, {"optimizer": RANDOM, "search_minibatches": 2}, 5),  # candidates take half as much
        ({"items": 480}, {"optimizer": RANDOM}, 10),
        ({"items": 479, "candidates": 400}, {"optimizer": RANDOM}, 5),
        ({"hours": 1}, {"optimizer": RANDOM}, 10),
        ({"candidates": 2}, {"optimizer": RANDOM, "baselines": {"scales": list(SCALES)}}, 10),  # asked for
        ({"candidates": 2}, {"optimizer": RANDOM, "baselines": {"scales": []}}, 0),
    ],
)
def test_default_scales_take_at_most_a_third_of_the_candidates_items(
    budget: dict[str, Any], changes: dict[str, Any], count: int, prepared: Callable[..., Prepared]
) -> None:
    assert scales(prepared(budget, **changes)) == count


def test_shorter_sweeps_are_parts_of_the_longest() -> None:
    assert all(set(shorter) < set(SWEEPS[0]) for shorter in SWEEPS[1:])
    assert [len(one) for one in SWEEPS] == [10, 5, 3]


def test_the_share_is_said(prepared: Callable[..., Prepared]) -> None:
    found = prepared({"candidates": 18}, optimizer=RANDOM)
    assert found.share_of_baselines == (
        "9 baselines come first: 144 item evaluations, 33% of all with the candidates' 288; "
        "5 of 10 default scales, to fit the budget (baselines.scales sets others)"
    )
    assert prepared({"hours": 1}, optimizer=RANDOM).share_of_baselines == (
        "14 baselines come first: 224 item evaluations"
    )


def test_a_gradient_is_compared_with_its_steps_and_its_held_back_part(prepared: Callable[..., Prepared]) -> None:
    found = prepared({"candidates": 30})
    assert found.steps is not None
    parts = found.steps.batches
    budget = 30 * 3 * sum(map(len, parts)) / len(parts)
    most = max(count for count in (10, 5, 3) if count == 3 or count * len(found.ranked["search"]) <= budget / 3)
    assert scales(found) == most


def test_a_spec_without_an_optimizer_has_a_real_one_and_keeps_its_baselines_when_it_resumes(world: World) -> None:
    heard: list[str] = []

    class Listener(Silent):
        def note(self, text: str) -> None:
            heard.append(text)

    run(plain(world, {"candidates": 4}), Listener())
    assert any(text.startswith("optimizer: gradient, because every searched number has a derivative") for text in heard)
    assert any(text.startswith("7 baselines come first: ") for text in heard)
    spec = plain(world, {"candidates": 60})
    heard.clear()
    report = run(spec, Listener())
    assert report.candidates.resumed == 4
    assert any(text == "continuing: 4 candidates recorded" for text in heard)
    assert not any("baselines come first" in text for text in heard)
    with Ledger.open(load_spec(spec).run_dir.ledger, read_only=True) as ledger:
        state = SearchState.from_events(ledger.events(report.search_id))
    assert sum(one.kind == "scale" for one in state.baselines.values()) == 3
