"""Searches by gradient through `run`, on real models: exact at resume, for any executor, refused with reasons."""

import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from evosearch.cli.check_report import show_check
from evosearch.errors import EvosearchError
from evosearch.evaluation.statistics import gradient_steps
from evosearch.execution.worker import Worker
from evosearch.preflight.check import check
from evosearch.reporting.leaderboard import leaderboard
from evosearch.search.ledger.events import Event
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.optimizer_config import create
from evosearch.search.progress import Silent
from evosearch.search.protocols import Job, Outcome
from evosearch.search.state import SearchState
from evosearch.service import phases
from evosearch.service.run import run
from evosearch.spec.run_dir import default_run_dir
from evosearch.spec.spec import load_spec

World = Callable[..., Path]
OPTIMIZER = {"name": "gradient", "population": 2, "batch": 6, "rate": 0.1}
TENSORS = {"low": 0.0, "high": 1.5, "per": "tensor"}


def changes(**more: Any) -> dict[str, Any]:
    models = [{"model": f"./expert{index}", "parameters": {"weight": TENSORS}} for index in (1, 2)]
    recipe = {"merge_method": "task_arithmetic", "base_model": "./base", "models": models}
    return {"recipe": recipe, "optimizer": OPTIMIZER, "budget": {"candidates": 16}} | more


def events_of(spec: Path) -> list[Event]:
    run_dir = load_spec(spec).run_dir
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        info = ledger.search_by_name(run_dir.name)
        assert info is not None
        return list(ledger.events(info.search_id))


def asked(events: list[Event]) -> list[dict[str, Any]]:
    return [event.payload for event in events if event.type == "asked"]


def test_a_search_by_gradient_ends_at_the_gate(world: World) -> None:
    spec = world("steps", **changes())
    report = run(spec, Silent())
    assert (report.stopped, report.candidates.proposed, report.candidates.failed) == ("candidates", 16, 0)
    state = SearchState.from_events(events_of(spec))
    assert len(state.gradients) == 16, "8 documents a task are too few to hold some back"
    dimensions = len(state.proposal("0").genome)
    assert dimensions > 20
    told = [state.gradient(state.candidates[name]) for name in ("0", "1", "15")]
    assert all(one is not None and len(one.gradient) == dimensions for one in told)
    assert all(any(one.gradient) for one in told if one)
    assert len(state.answers) == 3
    assert {finalist.candidate for finalist in state.finalists} == set(state.answers.values())
    first, last = (sum(state.gradients[name, index].fitness.value for name, index in pair) for pair in (
        (("0", 0), ("1", 1)), (("12", 0), ("13", 1)),
    ))  # fmt: skip
    assert last > first, "the same minibatch, after six steps"
    assert state.gated is not None
    rows = {row.candidate: row.state for row in leaderboard(load_spec(spec).run_dir).rows if row.kind == "candidate"}
    assert set(rows) == set(state.answers.values()), "steps are no rows"
    assert set(rows.values()) <= {"answer", "promoted"}


def test_models_are_compared_on_the_held_back_part_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A larger search split costs nothing: no model is scored on the documents of the steps; fine-tuning sees all."""
    monkeypatch.setattr(gradient_steps, "LEAST_HELD_BACK", 2)
    trained = {"trained": True}
    spec = world("held", **changes(optimizer=OPTIMIZER | {"hold_back": 0.25, "check_every": 2}, baselines=trained))
    score = Worker.run
    jobs: list[Job] = []

    def noted(self: Worker, job: Job) -> Outcome:
        jobs.append(job)
        return score(self, job)

    monkeypatch.setattr(Worker, "run", noted)
    assert run(spec, Silent()).candidates.failed == 0
    state = SearchState.from_events(events_of(spec))
    cards = {name: card for (name, split), card in state.cards.items() if split == "search"}
    assert {card.items for card in cards.values()} == {2 * 2}, "two documents of both tasks"
    answers = {state.original(name) for name in state.answers.values()}
    averages = {name for name, one in state.candidates.items() if not one.gradient and one.duplicate_of is None}
    assert set(cards) == set(state.baselines) - set(state.trained) | averages | answers
    sizes = {(job.training is not None, len(job.batch)) for job in jobs if job.batch.split == "search"}
    assert sizes == {(False, 4), (False, 3), (True, 16)}, "models, shards of three documents of both tasks, training"


class Killed(BaseException):
    """Simulates SIGKILL: the program does not catch it."""


@pytest.mark.parametrize("after", [3, 8, 17])
def test_a_search_killed_between_shards_goes_on_bit_for_bit(
    after: int, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = world("whole", **changes())
    run(whole, Silent())
    spec, left, score = world("killed", **changes()), iter(range(after)), Worker.run

    def mortal(self: Worker, job: Job) -> Outcome:
        if next(left, None) is None:
            raise Killed
        return score(self, job)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "run", mortal)
        with pytest.raises(Killed):
            run(spec, Silent())
    run(spec, Silent())
    one, other = events_of(whole), events_of(spec)
    assert asked(other) == asked(one)
    told = [[event.payload for event in events if event.type == "told"] for events in (one, other)]
    assert told[0] == told[1]


def test_a_search_that_cannot_be_replayed_continues_from_its_latest_step(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a held-back part, no candidate is ranked."""
    spec, left, score = world("drift", **changes()), iter(range(17)), Worker.run

    def mortal(self: Worker, job: Job) -> Outcome:
        if next(left, None) is None:
            raise Killed
        return score(self, job)

    def drifting(config: Any, *args: Any, **kwargs: Any) -> Any:
        """Simulates another build of the package, which takes other steps."""
        return create(config.named("gradient", config.options | {"rate": 0.2}), *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "run", mortal)
        with pytest.raises(Killed):
            run(spec, Silent())
    before = SearchState.from_events(events_of(spec))
    assert not before.answers
    monkeypatch.setattr(phases, "create", drifting)
    run(spec, Silent(), continue_from_best=True)
    state = SearchState.from_events(events_of(spec))
    assert state.restarted is not None
    latest = list(before.candidates)[-1]
    assert state.restarted.start == before.proposal(latest).genome != before.proposal("0").genome


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_give_the_candidates_of_one(world: World) -> None:
    one = world("one", **changes())
    run(one, Silent())
    two = world("two", **changes(workers={"count": 2, "threads": 1}))
    program = "from evosearch.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", program, "run", str(two)], capture_output=True, text=True, timeout=600)
    assert done.returncode in (0, 3), done.stderr
    assert asked(events_of(two)) == asked(events_of(one))


def test_auto_takes_the_gradient_where_there_is_one(world: World) -> None:
    spec = world("auto", **changes(optimizer={"population": 2, "seed": 3}, budget={"items": 100}))
    run(spec, Silent())
    state = SearchState.from_events(events_of(spec))
    assert state.optimizer is not None
    assert (state.optimizer.name, state.optimizer.options["batch"]) == ("gradient", 48)
    assert "every searched number has a derivative" in state.optimizer.why
    assert state.proposed == 4, "two steps of 16 items, each of which counts three times"


def test_cma_es_refines_the_winner_of_a_search_by_gradient(world: World) -> None:
    """The second stage has a space of its own; it starts at the winner of the first, which is then a baseline."""
    recipe, group = changes()["recipe"], {"low": 0.0, "high": 1.5, "per": "tensor"}
    models = [
        {"model": "./expert1", "parameters": {"weight": group}},
        {"model": "./expert2", "parameters": {"weight": 0.5}},
    ]
    stages = [
        {"name": "slopes", "recipe": recipe, "optimizer": OPTIMIZER, "budget": {"candidates": 16}},
        {
            "name": "polish",
            "recipe": recipe | {"models": models},
            "optimizer": {"name": "cma_es", "population": 4, "sigma": 0.01, "warm_start": "stage:slopes"},
            "budget": {"candidates": 8},
        },
    ]
    spec = world("both", stages=stages)
    data = yaml.safe_load(spec.read_text())
    for key in ("recipe", "optimizer", "budget"):
        del data[key]
    spec.write_text(yaml.safe_dump(data, sort_keys=False))
    report = run(spec, Silent())
    assert [row.name for row in report.stages] == ["slopes", "polish"]
    with Ledger.open(default_run_dir("both").ledger, read_only=True) as ledger:
        first, second = (
            SearchState.from_events(ledger.events(info.search_id))
            for info in sorted(ledger.searches(), key=lambda info: info.name, reverse=True)
        )
    assert first.winner is not None
    assert second.warm_start is not None
    assert second.warm_start.search == "both.slopes"
    assert second.recipe_ids["stage:slopes"] == first.winner.recipe_id
    assert second.baselines["stage:slopes"].kind == "stage"
    if first.winner.candidate in first.candidates:
        found = first.proposal(first.winner.candidate).genome
        started = second.warm_start.start
        assert {name: found[name] for name in started} == started
    assert len(second.answers) == 1
    said = refused(world("none", **changes(optimizer=OPTIMIZER | {"warm_start": "stage:slopes"})))
    assert "none.yaml: optimizer.warm_start: got 'stage:slopes', and this spec has no stages" in said


def test_check_forecasts_gradients_and_notes_what_they_leave_unused(world: World) -> None:
    spec = world("checked", **changes())
    found = check(spec, dry_run=True, watcher=Silent())
    assert found.problems == ()
    cost, evaluations = found.forecast["cost"], found.forecast["cost"]["evaluations"]
    assert (evaluations["candidates"], evaluations["gradients"], evaluations["search"]) == (16, 16, 6 + 3)
    assert cost["device_gib"]["activations"] > 0
    assert found.forecast["seconds_per_candidate"] > 0
    assert found.forecast["items"] == 3, "half of three documents of two tasks"
    out = StringIO()
    show_check(Console(file=out, width=200), found)
    assert "16 of 16 candidates are shards of gradient steps, forward and backward" in out.getvalue()
    idle = check(world("idle", **changes(workers={"count": 3, "threads": 1})), dry_run=False, watcher=Silent())
    assert any("3 workers share the 2 shards of a step: set optimizer.population to 3" in one for one in idle.notes)
    short = check(world("short", **changes(optimizer=OPTIMIZER | {"hold_back": 0.2})), dry_run=False, watcher=Silent())
    assert any("optimizer.hold_back: has no effect, because nothing is held back" in one for one in short.notes)


def refused(spec: Path) -> str:
    with pytest.raises(EvosearchError) as error:
        run(spec, Silent())
    return str(error.value)


def test_what_has_no_derivative_is_named(world: World) -> None:
    hole = {"low": 0.1, "high": 1.0}
    models = [{"model": f"./expert{index}", "parameters": {"weight": 0.5, "density": hole}} for index in (1, 2)]
    recipe = {"merge_method": "ties", "base_model": "./base", "models": models}
    said = refused(world("ties", **changes(recipe=recipe)))
    assert "ties.yaml: recipe: 'models[0].density': ties has derivatives in" in said
    assert "not in density, and optimizer gradient needs a gradient" in said
    assert "Use optimizer auto or cma_es" in said


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"search_minibatches": 2}, "search_minibatches: gradient divides the search split by its own options, batch"),
        ({"budget": {"items": 10}}, "budget.items: got 10, and one gradient step takes 18: 3 for each of its items"),
        (
            {"budget": {"candidates": 1}},
            "budget.candidates: got 1, and one gradient step takes 2: one for each of its shards",
        ),
        ({"objectives": ["choice", "generate"]}, "optimizer.name: gradient takes one objective, but the spec has 2"),
        (
            {"optimizer": {"name": "gradient", "asynchronous": True}},
            "optimizer.asynchronous: gradient is generational: it does not support asynchronous mode",
        ),
        ({"optimizer": {"name": "gradient", "batch": 0}}, "optimizer.batch: "),
    ],
)
def test_what_does_not_go_with_gradients_is_refused(more: dict[str, Any], said: str, world: World) -> None:
    assert said in refused(world("refused", **changes(**more)))
