"""Honest baselines end to end: fine-tuned and placebo, recorded, resumed, shown, and never promoted."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.errors import InputError, LedgerError
from evosearch.preflight.check import check
from evosearch.promotion import promote
from evosearch.promotion.gate import GateDecision
from evosearch.promotion.honest import items_used
from evosearch.reporting.export import export
from evosearch.reporting.leaderboard import leaderboard, shown_rows
from evosearch.reporting.report import RunReport
from evosearch.reporting.status import statuses
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Progress, Silent
from evosearch.search.protocols import Job
from evosearch.search.recorder import Recorder
from evosearch.search.state import SearchState
from evosearch.service.run import run
from evosearch.setup.loading import read_search
from evosearch.spec.lookup import find
from evosearch.tracking.changes import Changes, Plan
from evosearch.tracking.mirror import UP_TO_DATE
from evosearch.tracking.translator import Translator

pytestmark = pytest.mark.slow
World = Callable[..., Path]
HONEST = {"scales": [0.3, 0.6], "trained": True, "placebo": True}
SMALL: dict[str, Any] = {"budget": {"candidates": 6}, "baselines": HONEST}
ITEMS = 6 * 16  # of six candidates on 16 search documents


class Stages(Silent):
    """Watcher that keeps the stages, in order."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def update(self, progress: Progress) -> None:
        if self.names[-1:] != [progress.stage]:
            self.names.append(progress.stage)


def state_of(name: str) -> SearchState:
    run_dir = find(name)
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        return read_search(ledger, run_dir)[1]


def record(name: str) -> list[tuple[str, dict[str, Any]]]:
    """Events of a search without times and paths."""
    left_out = ("seconds", "worker", "count", "versions", "resumed", "inputs", "files", "recipe", "recipes", "suite")
    run_dir = find(name)
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        search_id, _ = read_search(ledger, run_dir)
        events = [event for event in ledger.events(search_id) if event.type not in ("started", "stopped", "retried")]
    return [(e.type, {key: value for key, value in e.payload.items() if key not in left_out}) for e in events]


def translated(name: str) -> Plan:
    """Changes of the MLflow runs of a recorded search."""
    run_dir, plan = find(name), Plan()
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        search_id, _ = read_search(ledger, run_dir)
        translator = Translator(search_id, name)
        for event in ledger.events(search_id):
            translator.translate(event, plan)
    return plan


def rendered(changes: Changes) -> str:
    """The recipe of a candidate's run."""
    assert changes.recipe is not None
    return changes.recipe()


@pytest.fixture(scope="module")
def shared() -> dict[str, Any]:
    return {}


@pytest.fixture
def ran(world: World, shared: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Path, RunReport, Stages]:
    """One complete run, made by the first test that needs it."""
    if not shared:
        spec, watcher = world(**SMALL), Stages()
        shared["ran"] = spec, run(spec, watcher), watcher
    spec, report, watcher = shared["ran"]
    monkeypatch.setenv("EVOSEARCH_RUNS", str(spec.parents[1] / "runs"))
    monkeypatch.setenv("EVOSEARCH_CACHE", str(spec.parents[1] / "cache"))
    return spec, report, watcher


def test_both_are_tested_beside_the_winner(ran: tuple[Path, RunReport, Stages]) -> None:
    _, report, watcher = ran
    state = state_of("world")
    placebo, trained = state.latest("placebo"), state.latest("trained")
    assert trained == f"trained:{ITEMS}"
    assert placebo is not None
    labels = {row.candidate: row.label for row in report.test}
    assert labels[placebo] == "placebo: random task vectors"
    assert labels[trained] == "fine-tuned best scale"
    assert all(row.lead is not None for row in report.test if row.candidate in (placebo, trained))
    assert state.test_openings[-1].candidates[-2:] == [placebo, trained]
    assert len(state.test_openings) == 1
    assert {split for name, split in state.cards if name == placebo} == {"validation", "test"}
    assert {split for name, split in state.cards if name == trained} == {"validation", "test"}
    assert [name.partition(": ")[0] for name in watcher.names if "placebo" in name][:1] == ["placebo"]
    assert watcher.names.index("validation") < watcher.names.index("placebo: search") < watcher.names.index("test")
    assert watcher.names[-1] == "training"
    gate = report.gate
    assert gate is not None
    assert {c.comparator for c in gate.comparisons if c.role == "placebo"} == {placebo}
    assert gate.trained is not None
    assert gate.trained.comparator == trained
    assert gate.trained.challenger == gate.winner
    assert gate.reasons[-1].startswith("Fine-tuning with the budget of the search would ")


def test_training_starts_from_the_best_scale_with_the_items_of_the_search(
    ran: tuple[Path, RunReport, Stages],
) -> None:
    state = state_of("world")
    scales = {
        name: state.score(name, "validation") or 0.0 for name, one in state.baselines.items() if one.kind == "scale"
    }
    best = max(scales, key=lambda name: scales[name])
    name = state.latest("trained")
    assert name is not None
    assert state.recipe(name) == state.recipe(best)
    assert state.recipe_ids[name] != state.recipe_ids[best]
    training = state.trained[name]
    assert (training.form, training.rate, training.items) == ("full", 3e-4, ITEMS)
    assert training.steps == ITEMS // (3 * 16)


def test_the_placebo_is_a_search_of_its_own_over_random_task_vectors(ran: tuple[Path, RunReport, Stages]) -> None:
    real, placebo = state_of("world"), state_of("world.placebo")
    assert placebo.spec["placebo"] is True
    assert "placebo" not in placebo.spec.get("baselines", {})
    assert placebo.proposed == real.proposed == 6
    assert {name for name, one in placebo.baselines.items()} == {
        *("base", "parent:0", "parent:1", "uniform", "scale:0.30", "scale:0.60")
    }
    parents = [reference for reference in placebo.inputs if reference.startswith("placebo:")]
    assert len(parents) == 2
    assert all(reference.endswith("/base&seed=1") and "?base=" in reference for reference in parents)
    assert placebo.inputs.keys() - set(parents) == {one for one in real.inputs if one.endswith("/base")}
    assert not placebo.test_openings
    assert placebo.winner is not None
    name = real.latest("placebo")
    assert name == f"placebo:{placebo.winner.candidate}"
    assert (real.recipe(name), real.recipe_ids[name]) == (placebo.winner.recipe, placebo.winner.recipe_id)
    assert real.score(name, "validation") == pytest.approx(placebo.winner.score)
    kinds = {row.name: row.winner for row in statuses()}
    assert kinds == {"world": None, "world.placebo": placebo.winner.candidate}
    assert find("world").name == "world", "the placebo started later, and is found by its full name only"


def test_both_are_on_the_leaderboard_and_neither_is_exported(
    ran: tuple[Path, RunReport, Stages], tmp_path: Path
) -> None:
    board = leaderboard(find("world"))
    rows = {row.kind: row for row in board.rows}
    assert {"trained", "placebo"} <= rows.keys()
    for kind in ("trained", "placebo"):
        assert (rows[kind].score, rows[kind].state) == (None, "scored")
        assert rows[kind].splits.keys() == {"validation", "test"}
        assert rows[kind] in shown_rows(board.rows, 2)
        with pytest.raises(LedgerError, match=r"fine-tuned model is no recipe|random task vectors"):
            export("world", "recipe", tmp_path / "out.yaml", rows[kind].candidate, False, Silent())
    assert len(shown_rows(board.rows, 2)) == 4


def test_mlflow_has_a_run_for_each(ran: tuple[Path, RunReport, Stages]) -> None:
    state, plan = state_of("world"), translated("world")
    placebo, trained = state.latest("placebo"), state.latest("trained")
    assert placebo is not None
    assert trained is not None
    assert [plan[name].tags["kind"] for name in (placebo, trained)] == ["placebo", "trained"]
    assert {"score/validation", "score/test"} <= {point.name for point in plan[placebo].points}
    assert {"score/validation", "score/test"} <= {point.name for point in plan[trained].points}
    assert plan[trained].params["training/form"] == "full"
    assert json.loads(plan[trained].files["training.json"])["items"] == ITEMS
    assert "placebo:/" in rendered(plan[placebo])
    assert json.loads(plan[""].files["gate.json"])["trained"]["comparator"] == trained


def test_a_second_run_repeats_nothing(ran: tuple[Path, RunReport, Stages]) -> None:
    spec, report, _ = ran
    before, of_placebo = record("world"), record("world.placebo")
    again = run(spec, Silent())
    assert again.gate == report.gate
    assert record("world") == before
    assert record("world.placebo") == of_placebo


def test_more_budget_extends_the_placebo_and_the_training(world: World) -> None:
    first = run(world(**SMALL), Silent())
    assert first.gate is not None
    second = run(world(**SMALL | {"budget": {"candidates": 12}}), Silent())
    assert second.gate is not None
    state = state_of("world")
    assert state.latest("trained") == f"trained:{2 * ITEMS}"
    assert state_of("world.placebo").proposed == 12
    assert len(state.test_openings) == 2
    assert second.gate.trained is not None
    assert second.gate.trained.comparator == f"trained:{2 * ITEMS}"


class Killed(BaseException):
    """Ends a run at once."""


@pytest.mark.parametrize("point", ["placebo search", "test opened", "placebo scored", "training"])
def test_a_killed_run_resumes_to_the_same_record(
    point: str, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = run(world("whole", **SMALL), Silent())
    whole, of_placebo = record("whole"), record("whole.placebo")
    original = Recorder.run

    def killed(self: Recorder, executor: Any, jobs: list[Job], progress: Any) -> None:
        ids = [job.id for job in jobs]
        at = {
            "placebo search": ids[:1] == ["0@search"] and bool(self.state.spec.get("placebo")),
            "test opened": bool(self.state.test_openings),
            "placebo scored": any(one.startswith("base@test") for one in ids),
            "training": any(job.training is not None for job in jobs),
        }
        if at[point]:
            raise Killed
        original(self, executor, jobs, progress)

    spec = world("part", **SMALL)
    monkeypatch.setattr(Recorder, "run", killed)
    with pytest.raises(Killed):
        run(spec, Silent())
    stages = {row.name: row.stage for row in statuses()}
    assert stages["part"] == {"placebo search": "validation", "test opened": "validation"}.get(point, stages["part"])
    assert (stages["part"] == "training") == (point == "training")
    monkeypatch.setattr(Recorder, "run", original)
    found = run(spec, Silent())
    assert {row.name: row.stage for row in statuses()}["part"] == "test"
    assert found.gate == expected.gate
    assert record("part") == whole
    assert record("part.placebo") == of_placebo


def test_a_failed_training_is_noted_and_blocks_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from evosearch.execution import worker

    def broken(*arguments: Any) -> None:
        raise ValueError("no such luck")

    monkeypatch.setattr(worker, "fine_tune", broken)
    report = run(world(**SMALL | {"baselines": {"scales": [0.3], "trained": True}}), Silent())
    assert report.gate is not None
    assert report.gate.trained is None
    assert report.gate.notes == ("fine-tuning failed: ValueError: no such luck",)
    (failed,) = [row for row in report.leaderboard if row.kind == "trained"]
    assert failed.state == "failed"
    again = run(find("world").folder.parents[1] / "specs" / "world.yaml", Silent())
    assert again.gate == report.gate


def test_a_winner_that_does_not_beat_its_placebo_is_not_promoted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    decided: list[Any] = []
    decide = promote.decide

    def recorded(*arguments: Any) -> Any:
        decided.append(arguments)
        return decide(*arguments)

    monkeypatch.setattr(promote, "decide", recorded)
    report = run(world(**SMALL), Silent())
    _, comparators, *_ = decided[0]
    assert [one.role for one in comparators].count("placebo") == 1
    assert report.gate is not None
    against = [c for c in report.gate.comparisons if c.role == "placebo" and c.challenger == report.gate.winner]
    assert len(against) == 1
    if not against[0].beats:
        assert report.gate.promoted is None


def staged(world: World, **last: Any) -> Path:
    weight = {"low": 0.0, "high": 1.2, "init": 0.4}
    optimizer = {"name": "cma_es", "population": 4, "seed": 3}
    experts = [{"model": f"./expert{index}", "parameters": {"weight": weight}} for index in (1, 2)]
    first = {"merge_method": "task_arithmetic", "base_model": "./base", "models": experts}
    second = {
        "merge_method": "linear",
        "models": [
            {"model": "stage:one", "parameters": {"weight": {"low": 0.2, "high": 1.0}}},
            {"model": "./expert2", "parameters": {"weight": {"low": 0.0, "high": 1.0}}},
        ],
    }
    stages = [
        {"name": "one", "recipe": first, "optimizer": optimizer, "budget": {"candidates": 4}},
        {"name": "two", "recipe": second, "optimizer": optimizer, "budget": {"candidates": 4}} | last,
    ]
    path = world(baselines=HONEST)
    data = yaml.safe_load(path.read_text())
    for key in ("recipe", "optimizer", "budget"):
        del data[key]
    path.write_text(yaml.safe_dump(data | {"stages": stages}, sort_keys=False))
    return path


def test_the_placebo_of_stages_repeats_all_stages(world: World) -> None:
    report = run(staged(world), Silent())
    last, placebo = state_of("world.two"), state_of("world.two-placebo")
    assert placebo.spec["builds_on"].keys() == {"one-placebo"}
    assert state_of("world.one-placebo").winner is not None
    texts = json.dumps([placebo.recipe(name) for name in placebo.candidates])
    assert "stage:one-placebo" in texts
    assert '"stage:one"' not in texts
    assert "placebo:/" in texts
    assert last.latest("trained") == f"trained:{2 * 4 * 16}", "with the items of both stages"
    name = last.latest("placebo")
    assert name is not None
    assert "stage:one-placebo" in last.baselines[name].recipes
    assert report.gate is not None
    assert any(c.role == "placebo" for c in report.gate.comparisons)
    assert report.tracking == UP_TO_DATE
    plan = translated("world.two")
    assert "stage:one-placebo" not in rendered(plan[name]), "the recipes it is made of are included"
    assert "one-placebo" in rendered(plan[name])
    assert run(staged(world), Silent()).gate == report.gate


def test_the_placebo_of_a_stage_starts_from_the_placebo_of_its_start(world: World) -> None:
    data = yaml.safe_load(staged(world).read_text())
    first = data["stages"][0]
    optimizer = {"name": "cma_es", "population": 4, "sigma": 0.05, "seed": 3, "warm_start": "stage:one"}
    run(staged(world, recipe=first["recipe"], optimizer=optimizer), Silent())
    real, placebo = state_of("world.two").warm_start, state_of("world.two-placebo").warm_start
    assert real is not None
    assert placebo is not None
    assert (real.search, placebo.search) == ("world.one", "world.one-placebo")
    winner = state_of("world.one-placebo").winner
    assert winner is not None
    if winner.candidate.isdigit():
        assert placebo.start == pytest.approx(state_of("world.one-placebo").proposal(winner.candidate).genome)


def test_searches_by_gradient_have_both(world: World) -> None:
    weight = {"low": 0.0, "high": 1.5, "per": "tensor"}
    models = [{"model": f"./expert{index}", "parameters": {"weight": weight}} for index in (1, 2)]
    recipe = {"merge_method": "task_arithmetic", "base_model": "./base", "models": models}
    optimizer = {"name": "gradient", "population": 2, "batch": 6, "rate": 0.1}
    report = run(world(recipe=recipe, optimizer=optimizer, budget={"candidates": 8}, baselines=HONEST), Silent())
    assert report.gate is not None
    assert report.gate.trained is not None
    state, placebo = state_of("world"), state_of("world.placebo")
    assert len(placebo.gradients) == len(state.gradients) > 0
    assert items_used(state) >= 3 * sum(found.fitness.n for found in state.gradients.values()) > 0
    assert state.latest("trained") == f"trained:{items_used(state)}"
    first = [one.candidates[name].recipe_id for one in (state, placebo) for name in ("0",)]
    assert first[0] != first[1], "the same coefficients of other models"


@pytest.mark.parametrize(
    ("changes", "wanted", "match"),
    [
        ({"recipe": {"routing": {"search": True, "models": ["./base", "./expert1"]}}}, "placebo", "no task vectors"),
        ({"recipe": {"merge_method": "linear"}}, "placebo", "no base_model, so there are no task vectors"),
        ({"scales": []}, "trained", r"best single scale, and there is none: baselines\.scales is empty"),
        ({"recipe": {"merge_method": "linear"}}, "trained", "task arithmetic needs a base_model"),
    ],
)
def test_what_cannot_be_made_is_refused_by_name(changes: dict[str, Any], wanted: str, match: str, world: World) -> None:
    recipe = changes.get("recipe", {})
    path = world(baselines={"scales": changes.get("scales", [0.3]), wanted: True})
    data = yaml.safe_load(path.read_text())
    if recipe:
        plain = {key: value for key, value in data["recipe"].items() if key != "base_model"} | recipe
        data["recipe"] = recipe if "routing" in recipe else plain
        data["optimizer"] = {"name": "random", "start": "init"}
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    with pytest.raises(InputError, match=match) as found:
        run(path, Silent())
    assert f"baselines.{wanted}" in str(found.value)


def test_a_document_without_a_right_answer_is_found_before_the_search(world: World) -> None:
    """With `fitness: score` nothing else needs it; training would, after the test split was opened."""
    folder = world().parent
    task = yaml.safe_load((folder / "tasks" / "w_generate.yaml").read_text())
    task |= {"task": "w_open", "doc_to_target": "{{answer if answer != 'a' else ''}}"}
    task["dataset_kwargs"]["data_files"] = {"test": str((folder / "tasks" / "w_generate.jsonl").resolve())}
    (folder / "open").mkdir()
    (folder / "open" / "w_open.yaml").write_text(yaml.safe_dump(task))
    suite = yaml.safe_load((folder / "suite.yaml").read_text()) | {"include": ["tasks", "open"], "fitness": "score"}
    suite["documents"] = {"search": 40, "validation": 5, "test": 5}
    suite["tasks"][1]["task"] = "w_open"
    (folder / "open.yaml").write_text(yaml.safe_dump(suite))
    found = check(world("plain", suite="open.yaml", budget={"candidates": 6}), False, Silent())
    assert found.ok, found.problems
    found = check(world("both", suite="open.yaml", **SMALL), False, Silent())
    (problem,) = found.problems
    assert problem.where.endswith("both.yaml: baselines.trained")
    assert "document" in problem.what
    assert problem.what.endswith("has no right answer")


def test_check_counts_both(world: World) -> None:
    plain = check(world("plain", budget={"candidates": 6}), False, Silent()).forecast["cost"]
    both = check(world("both", **SMALL), False, Silent()).forecast["cost"]
    own, honest = plain["evaluations"], both["evaluations"]
    assert (own["placebo"], own["training"]) == (0, 0)
    assert (honest["candidates"], honest["placebo"], honest["training"]) == (6, 6, 6)
    assert honest["search"] == 2 * own["search"]
    assert honest["validation"] == 2 * own["validation"] + 1 + 3
    assert honest["test"] == own["test"] + 2
    assert both["flops"] > 2.0 * plain["flops"]


@pytest.mark.ray
def test_workers_of_a_cluster_make_both(world: World) -> None:
    here = run(world("here", **SMALL), Silent())
    spec = world("there", **SMALL | {"workers": {"count": 2, "threads": 1}})
    program = "from evosearch.cli.main import main; main()"
    command = [sys.executable, "-c", program, "run", str(spec)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode in (0, 3), done.stderr
    state = state_of("there")
    assert here.gate is not None
    assert state.gated is not None
    assert GateDecision.from_dict(state.gated.decision) == here.gate
    assert {row.candidate: row.score for row in here.test} == {
        name: state.score(name, "test") for name in state.test_openings[-1].candidates
    }
