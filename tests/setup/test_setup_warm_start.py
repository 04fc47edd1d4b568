"""Warm starts: read once, recorded, and independent of the other search afterwards."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.errors import SpecError
from evosearch.preflight.check import check
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.optimizer_config import create
from evosearch.search.progress import Silent
from evosearch.search.state import SearchState
from evosearch.service import phases
from evosearch.service.run import run
from evosearch.setup.loading import read_search
from evosearch.setup.prepare import prepare
from evosearch.setup.warm_start import look_up
from evosearch.spec.lookup import find
from evosearch.spec.run_dir import runs_folder
from evosearch.spec.spec import load_spec

World = Callable[..., Path]
OPTIMIZER: dict[str, Any] = {"name": "random", "population": 3, "seed": 1, "start": "init"}
QUICK: dict[str, Any] = {"budget": {"candidates": 3}, "baselines": {"scales": [0.5]}, "promotion": {"finalists": 1}}


class Notes(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def recipe(high: float = 1.5, **more: Any) -> dict[str, Any]:
    """A recipe with two searched weights."""
    hole = {"low": 0.0, "high": high}
    models = [{"model": f"./expert{index}", "parameters": {"weight": hole}} for index in (1, 2)]
    return {"merge_method": "task_arithmetic", "base_model": "./base", "models": models} | more


def state_of(name: str) -> SearchState:
    run_dir = find(name)
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        return read_search(ledger, run_dir)[1]


def warm(named: str, **more: Any) -> dict[str, Any]:
    return {"name": "random", "population": 3, "seed": 7, "warm_start": named} | more


def looked_up(spec: Path) -> tuple[int, str]:
    """Number of known candidates of a new search, and the note about them."""
    watcher = Notes()
    found = look_up(prepare(load_spec(spec), Silent()), watcher)
    assert found is not None
    return len(found.known), watcher.texts[-1]


@pytest.fixture(scope="module")
def shared() -> dict[str, Path]:
    return {}


@pytest.fixture
def old(world: World, shared: dict[str, Path]) -> Path:
    """A search that was run: three candidates of two weights."""
    spec = world("old", recipe=recipe(), optimizer=OPTIMIZER, **QUICK)
    if not shared:
        run(spec, Silent())
        shared["runs"] = runs_folder() / "old"
        shutil.copytree(shared["runs"], shared["runs"].parents[1] / "kept")
    else:
        shutil.copytree(shared["runs"].parents[1] / "kept", runs_folder() / "old")
    return spec


def best_of(state: SearchState) -> dict[str, Any]:
    values = {name: reported.fitness.value for name, reported in state.reported.items() if reported.fitness}
    return state.proposal(max(values, key=lambda name: values[name])).genome


def test_it_starts_from_the_best_and_records_the_known_candidates(
    world: World, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    def watching(*args: Any, **kwargs: Any) -> Any:
        told.append(kwargs["known"])
        return create(*args, **kwargs)

    monkeypatch.setattr(phases, "create", watching)
    before, watcher = state_of("old"), Notes()
    spec = world("new", recipe=recipe(), optimizer=warm("old"), **QUICK)
    run(spec, watcher)
    state = state_of("new")
    assert state.warm_start is not None
    assert state.warm_start.search == "old"
    assert state.warm_start.start == best_of(before) == state.proposal("0").genome
    assert [note for note in watcher.texts if "warm start" in note] == [
        f"warm start from 'old': 2 of 2 values from its candidate {state.warm_start.known[0].reported.candidate}; "
        "3 known candidates"
    ]
    values = [observation.value for observation in told[0]]
    assert values == sorted((one.fitness.value for one in before.reported.values() if one.fitness), reverse=True)
    assert told[0][0].genome == best_of(before)
    assert told[0][0].objectives[0] in [one.fitness for one in before.reported.values()]
    # The other search is gone, and what it found is not
    shutil.rmtree(runs_folder() / "old")
    longer = QUICK | {"budget": {"candidates": 5}}
    report = run(world("new", recipe=recipe(), optimizer=warm("old"), **longer), Silent())
    assert report.candidates.proposed == 5
    assert state_of("new").warm_start == state.warm_start
    assert told[-1] == told[0]


def test_it_is_found_by_spec_or_folder_and_values_are_clipped(world: World, old: Path) -> None:
    best = best_of(state_of("old"))
    top = min(best.values()) / 2 or 0.1
    for index, named in enumerate(("old.yaml", "../runs/old")):
        spec = world(f"new{index}", recipe=recipe(high=top), optimizer=warm(named), **QUICK)
        watcher = Notes()
        run(spec, watcher)
        state = state_of(f"new{index}")
        assert state.warm_start is not None
        assert list(state.warm_start.start.values()) == [top, top]
        assert all(v <= top for entry in state.warm_start.known for v in entry.genome.values())
        assert any("its recipes differ" in note for note in watcher.texts)


def test_fitness_is_transferred_only_for_equal_recipes_and_questions(world: World, old: Path) -> None:
    # The same numbers under another method are other models
    ties = recipe(merge_method="ties", parameters={"density": 0.5})
    watcher = Notes()
    run(world("method", recipe=ties, optimizer=warm("old"), **QUICK), watcher)
    found = state_of("method").warm_start
    assert found is not None
    assert found.start == best_of(state_of("old"))
    assert found.known == ()
    # A value that the other search had fixed at this one's start is no difference
    fixed = recipe()
    fixed["models"][1]["parameters"]["weight"] = 0.75
    run(world("fixed", recipe=fixed, optimizer=OPTIMIZER, **QUICK), Silent())
    watcher = Notes()
    run(world("wider", recipe=recipe(), optimizer=warm("fixed"), **QUICK), watcher)
    found = state_of("wider").warm_start
    assert found is not None
    assert {entry.genome["models[1].weight"] for entry in found.known} == {0.75}
    assert len(found.known) == 3
    assert any("2 of 2 values from its candidate" in note for note in watcher.texts), watcher.texts
    # Other questions
    suite = old.parent / "suite.yaml"
    text = suite.read_text()
    suite.unlink()
    suite.write_text(text.replace("search: 8", "search: 6"))
    watcher = Notes()
    run(world("questions", recipe=recipe(), optimizer=warm("old"), **QUICK), watcher)
    found = state_of("questions").warm_start
    assert found is not None
    assert found.known == ()
    assert any("it was scored on other questions" in note for note in watcher.texts)


def test_estimates_on_minibatches_are_transferred_only_between_equal_minibatches(world: World, old: Path) -> None:
    parted = QUICK | {"search_minibatches": 2}
    run(world("parted", recipe=recipe(), optimizer=OPTIMIZER, **parted), Silent())
    # From minibatches to the full split, from the full split to minibatches, and between minibatches of other seeds
    for named, changes, seed in (("parted", QUICK, 1), ("old", parted, 1), ("parted", parted, 7)):
        count, said = looked_up(world("new", recipe=recipe(), optimizer=warm(named, seed=seed), **changes))
        assert count == 0
        assert said.endswith("its search_minibatches differ, so fitness is not transferred")
    count, said = looked_up(world("new", recipe=recipe(), optimizer=warm("parted", seed=1), **parted))
    assert count == 3
    assert said.endswith("3 known candidates")


def test_fixed_parameters_with_other_values_are_noted(world: World) -> None:
    run(world("old", recipe=recipe(), optimizer=OPTIMIZER, **QUICK), Silent())
    other = recipe(parameters={"lambda": 0.5})
    _, said = looked_up(world("new", recipe=other, optimizer=warm("old"), **QUICK))
    assert said.startswith("warm start from 'old': 2 of 2 values from its candidate")
    assert "which has another lambda;" in said
    _, said = looked_up(world("new", recipe=recipe(), optimizer=warm("old"), **QUICK))
    assert "another" not in said


def test_fitness_on_a_held_back_part_is_not_transferred(world: World) -> None:
    suite = world("steps").parent / "suite.yaml"
    larger = yaml.safe_load(suite.read_text()) | {"documents": {"search": 20, "validation": 10, "test": 20}}
    (suite.parent / "larger.yaml").write_text(yaml.safe_dump(larger))
    steps = {"name": "gradient", "batch": 10, "hold_back": 0.5, "check_every": 1, "start": "init"}
    more = QUICK | {"suite": "larger.yaml", "recipe": recipe()}
    run(world("steps", optimizer=steps, **more), Silent())
    cards = state_of("steps").cards
    assert {card.items for (_, split), card in cards.items() if split == "search"} == {20}, "half of both tasks"
    count, said = looked_up(world("new", optimizer=warm("steps", name="tpe"), **more))
    assert count == 0
    assert said.startswith("warm start from 'steps': 2 of 2 values from its candidate")
    assert said.endswith("it was scored on other questions, so fitness is not transferred")


def test_an_invalid_warm_start_is_refused_before_anything_is_written(world: World, old: Path) -> None:
    named = recipe()
    for model in named["models"]:
        model["parameters"]["weight"] = {"low": 0.0, "high": 1.0, "name": f"own{model['model'][-1]}"}
    cases = [
        ("nowhere", recipe(), r"got 'nowhere': no such search\. Searches in .*: old"),
        ("./nowhere.yaml", recipe(), r"got '\./nowhere\.yaml': No such file"),
        ("new", recipe(), r"got 'new', which is this search itself"),
        ("new.yaml", recipe(), r"got 'new\.yaml', which is this search itself"),
        ("old", named, r"got 'old', which has no dimension in common with this search\. .*own1, own2"),
    ]
    for wanted, template, said in cases:
        spec = world("new", recipe=template, optimizer=warm(wanted), **QUICK)
        with pytest.raises(SpecError, match=rf"new\.yaml: optimizer\.warm_start: {said}"):
            run(spec, Silent())
        (problem,) = check(spec, False, Silent()).problems
        assert problem.where.endswith("new.yaml: optimizer.warm_start")
        assert {row.name for row in runs_folder().iterdir()} == {"old"}


def test_a_search_without_scores_cannot_be_a_warm_start(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    append = Ledger.append

    def dying(self: Ledger, search_id: str, entries: Any, scores: Any = ()) -> Any:
        if any(kind == "asked" for kind, _ in entries):
            raise KeyboardInterrupt
        return append(self, search_id, entries, scores)

    monkeypatch.setattr(Ledger, "append", dying)
    with pytest.raises(KeyboardInterrupt):
        run(world("old", recipe=recipe(), optimizer=OPTIMIZER, **QUICK), Silent())
    monkeypatch.setattr(Ledger, "append", append)
    with pytest.raises(SpecError, match=r"got 'old', which has not scored a candidate yet\. Run it first"):
        run(world("new", recipe=recipe(), optimizer=warm("old"), **QUICK), Silent())
