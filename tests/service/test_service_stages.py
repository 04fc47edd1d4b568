"""Multi-stage runs: later stages build on the winners of earlier ones, and each is a search of its own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.checkpoints.references import default_cache
from evosearch.errors import LedgerError
from evosearch.preflight.check import check
from evosearch.recipe import files
from evosearch.reporting.export import export
from evosearch.reporting.leaderboard import leaderboard
from evosearch.reporting.report import RunReport
from evosearch.reporting.status import statuses
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Progress, Silent
from evosearch.search.state import SearchState
from evosearch.service.run import run
from evosearch.setup.loading import read_search
from evosearch.spec.lookup import find
from evosearch.spec.run_dir import RunDir

World = Callable[..., Path]
WEIGHT = {"low": 0.0, "high": 1.2, "init": 0.4}
OPTIMIZER = {"name": "cma_es", "population": 4, "seed": 3}
FIRST = {
    "name": "parameters",
    "recipe": {
        "merge_method": "task_arithmetic",
        "base_model": "./base",
        "models": [
            {"model": "./expert1", "parameters": {"weight": WEIGHT}},
            {"model": "./expert2", "parameters": {"weight": WEIGHT}},
        ],
    },
    "optimizer": OPTIMIZER,
    "budget": {"candidates": 8},
}
SECOND = {
    "name": "again",
    "recipe": {
        "merge_method": "linear",
        "models": [
            {"model": "stage:parameters", "parameters": {"weight": {"low": 0.2, "high": 1.0}}},
            {"model": "./expert2", "parameters": {"weight": {"low": 0.0, "high": 1.0}}},
        ],
    },
    "optimizer": OPTIMIZER | {"name": "random", "start": "init"},
    "budget": {"candidates": 4},
}
KINDS = ("baseline", "asked", "scored", "told", "finalist", "winner", "test_opened", "gated", "failed")
MAY_DIFFER = ("seconds", "worker", "count", "recipe")  # as in the tests of resuming


class Notes(Silent):
    """Watcher that keeps notes and stages."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.stages: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)

    def update(self, progress: Progress) -> None:
        self.stages.append(progress.stage)


def staged(world: World, name: str = "hybrid", *stages: dict[str, Any], **changes: Any) -> Path:
    """The world's spec, with stages in place of its recipe."""
    path = world(name, **changes)
    data = yaml.safe_load(path.read_text())
    for key in ("recipe", "optimizer", "budget"):
        del data[key]
    path.write_text(yaml.safe_dump(data | {"stages": list(stages or (FIRST, SECOND))}, sort_keys=False))
    return path


def state_of(name: str) -> SearchState:
    run_dir = find(name)
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        return read_search(ledger, run_dir)[1]


def record(name: str) -> dict[str, dict[str, list[Any]]]:
    """Proposals, scores, reports and choices of every stage of a run, in order."""
    found: dict[str, dict[str, list[Any]]] = {}
    with Ledger.open(find(name).ledger, read_only=True) as ledger:
        for info in ledger.searches():
            events = [event for event in ledger.events(info.search_id) if event.type in KINDS]
            plain = [(e.type, {key: v for key, v in e.payload.items() if key not in MAY_DIFFER}) for e in events]
            scored = sorted((p["split"], p["candidate"], json.dumps(p)) for kind, p in plain if kind == "scored")
            own = {kind: [p for other, p in plain if other == kind] for kind in KINDS if kind != "scored"}
            found[info.name.rpartition(".")[2]] = own | {"scored": scored}
    return found


@pytest.fixture(scope="module")
def shared() -> dict[str, Any]:
    return {}


@pytest.fixture
def ran(world: World, shared: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Path, RunReport, Notes]:
    """One complete run, made by the first test that needs it."""
    if not shared:
        spec, watcher = staged(world), Notes()
        shared["ran"] = spec, run(spec, watcher), watcher
    spec, report, watcher = shared["ran"]
    monkeypatch.setenv("EVOSEARCH_RUNS", str(spec.parents[1] / "runs"))
    monkeypatch.setenv("EVOSEARCH_CACHE", str(spec.parents[1] / "cache"))
    return spec, report, watcher


def test_the_second_stage_is_made_of_the_first_ones_winner(ran: tuple[Path, RunReport, Notes]) -> None:
    _, report, watcher = ran
    first, second = report.stages
    assert [row.name for row in report.stages] == ["parameters", "again"]
    assert report.name == "hybrid.again"
    winner = Path(first.exported["recipe"])
    assert winner == find("hybrid.parameters").winner_file
    assert winner.parent.name == "parameters"
    recipe = files.load(winner)
    chosen = state_of("hybrid.parameters").recipe(first.winner.candidate)
    assert recipe.to_dict() == chosen
    state = state_of("hybrid.again")
    assert state.inputs["stage:parameters"] == first.winner.recipe_id
    assert state.spec["builds_on"] == {"parameters": first.winner.recipe_id}
    assert state.recipes == {"stage:parameters": chosen}
    assert all("stage:parameters" in json.dumps(state.recipe(name)) for name in state.candidates)
    assert str(winner) not in json.dumps([state.recipe(name) for name in [*state.candidates, *state.baselines]])
    assert second.candidates.scored == 4
    assert {
        "parameters: baselines",
        "parameters: search",
        "parameters: validation",
        "again: search",
        "again: test",
    } <= set(watcher.stages)
    assert "parameters: test" not in watcher.stages


def test_the_winner_of_a_stage_is_the_best_on_validation_and_no_test_is_opened(
    ran: tuple[Path, RunReport, Notes],
) -> None:
    _, report, _ = ran
    state = state_of("hybrid.parameters")
    judged = {name: card.score for (name, split), card in state.cards.items() if split == "validation"}
    finalists = [finalist.candidate for finalist in state.finalists]
    baselines = [name for name in judged if name == "uniform" or name.startswith("scale:")]
    best = max(judged[name] for name in [*finalists, *baselines])
    found = report.stages[0].winner
    assert found.score == judged[found.candidate] == best
    if not found.candidate.isdigit():  # a baseline only where it is strictly better
        assert best > max(judged[name] for name in finalists)
    assert state.test_openings == []
    assert state.gated is None
    assert not any(split == "test" for _, split in state.cards)
    assert len(state_of("hybrid.again").test_openings) == 1


def test_the_last_stage_is_compared_with_the_models_of_the_first(ran: tuple[Path, RunReport, Notes]) -> None:
    spec, report, _ = ran
    state = state_of("hybrid.again")
    made = {name: [entry["model"] for entry in state.recipe(name)["models"]] for name in state.baselines}
    base, one, two = (str(spec.parent / name) for name in ("base", "expert1", "expert2"))
    assert made["base"] == [base]
    assert made["stage:parameters"] == ["stage:parameters"]
    parents = [models for name, models in made.items() if state.kind(name) == "parent"]
    assert sorted(parents) == [[one], [two]]
    assert made["uniform"] == made["scale:0.30"] == made["scale:0.60"] == [one, two]
    assert state.recipe("scale:0.30")["base_model"] == base
    opened = state.test_openings[0].candidates
    assert {"base", "stage:parameters", "uniform"} < set(opened)
    labels = {row.label.removesuffix(" (not promoted)").removesuffix(" (promoted)") for row in report.test}
    assert {"winner of stage parameters", "base", "parent expert1", "parent expert2"} < labels


def test_a_name_refers_to_the_latest_started_stage(ran: tuple[Path, RunReport, Notes], tmp_path: Path) -> None:
    spec, report, _ = ran
    assert find("hybrid").name == find(str(spec)).name == find("hybrid.again").name == "hybrid.again"
    assert find(str(find("hybrid").folder.parent)).name == "hybrid.again"
    assert find("hybrid.parameters").name == "hybrid.parameters"
    rows = {row.candidate: row.state for row in leaderboard(find("hybrid.parameters")).rows}
    assert rows[report.stages[0].winner.candidate] == "winner"
    assert {row.name for row in statuses()} == {"hybrid.parameters", "hybrid.again"}
    out = tmp_path / "out.yaml"
    result = export("hybrid.parameters", "recipe", out, None, False, Silent())
    assert result.candidate == report.stages[0].winner.candidate
    with pytest.raises(LedgerError, match=r"hybrid\.other: no such search"):
        find("hybrid.other")


def test_a_finished_run_is_only_read_and_an_earlier_stage_is_not_opened_again(
    ran: tuple[Path, RunReport, Notes],
) -> None:
    spec, report, _ = ran
    before = record("hybrid")
    find("hybrid.parameters").winner_file.unlink()
    text = spec.read_text()
    spec.write_text(text.replace("candidates: 8", "candidates: 12"))
    watcher = Notes()
    again = run(spec, watcher)
    spec.write_text(text)
    assert record("hybrid") == before
    assert again.gate == report.gate
    assert [row.winner for row in again.stages] == [row.winner for row in report.stages]
    (said,) = [note for note in watcher.texts if "budget" in note]
    assert "stages[0].budget: its budget changed, but the stage is not resumed: 'hybrid.again' builds on" in said


def test_a_changed_stage_stops_and_is_named(ran: tuple[Path, RunReport, Notes]) -> None:
    spec, _, _ = ran
    text = spec.read_text()
    for old, new, where in (
        (
            "seed: 3\n  budget:\n    candidates: 8",
            "seed: 4\n  budget:\n    candidates: 8",
            r"stages\[0\]\.optimizer\.seed",
        ),
        ("high: 1.0\n    - model: ./expert2", "high: 0.9\n    - model: ./expert2", r"stages\[1\]\.recipe\.models\[0\]"),
    ):
        assert old in text
        spec.write_text(text.replace(old, new))
        with pytest.raises(LedgerError, match=rf"{where}.*: this is another search"):
            run(spec, Silent())
    spec.write_text(text)


def test_check_looks_at_every_stage_and_adds_up(world: World) -> None:
    spec = staged(world)
    result = check(spec, True, Silent())
    assert result.problems == ()
    forecast = result.forecast
    assert list(forecast["stages"]) == ["parameters", "again"]
    hours = [stage["total_hours"] for stage in forecast["stages"].values()]
    assert forecast["total_hours"] == pytest.approx(sum(hours))
    assert not find_or_none("hybrid")


def test_check_removes_placeholders(world: World) -> None:
    class Doing(Notes):
        def preparing(self, what: str, fraction: float) -> None:
            self.stages.append(what)

    spec, watcher = staged(world), Doing()
    assert check(spec, False, watcher).problems == ()
    assert watcher.stages == ["merging the start of stage:parameters"] * 2
    assert list(default_cache().rglob("*.safetensors")) == []
    assert list(default_cache().glob(".check.*")) == []


def test_a_later_stage_warm_starts_from_an_earlier_one_with_any_ledger(world: World, tmp_path: Path) -> None:
    first = FIRST | {"optimizer": OPTIMIZER | {"name": "random"}, "budget": {"candidates": 2}}
    second = json.loads(json.dumps(SECOND))
    for entry, name in zip(second["recipe"]["models"], ("warm1", "warm2"), strict=True):
        entry["parameters"]["weight"] = WEIGHT | {"name": name}
    first = json.loads(json.dumps(first))
    for entry, name in zip(first["recipe"]["models"], ("warm1", "warm2"), strict=True):
        entry["parameters"]["weight"]["name"] = name
    second |= {"optimizer": {"name": "random", "warm_start": "hybrid.parameters"}, "budget": {"candidates": 1}}
    ledger = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    spec = staged(world, "hybrid", first, second, ledger=ledger)
    assert check(spec, False, Silent()).problems == ()
    watcher = Notes()
    run(spec, watcher)
    assert any("warm start from 'hybrid.parameters': 2 of 2 values" in text for text in watcher.texts)
    assert check(spec, False, Silent()).problems == ()


def test_check_names_the_stage_of_a_problem(world: World) -> None:
    wrong = json.loads(json.dumps(SECOND))
    wrong["recipe"]["models"][1]["model"] = "./nowhere"
    (problem,) = check(staged(world, "hybrid", FIRST, wrong), True, Silent()).problems
    assert problem.where.endswith("hybrid.yaml: stages[1].recipe.models[1].model")
    assert "nowhere: no such folder" in problem.what
    wrong = json.loads(json.dumps(SECOND))
    wrong["recipe"]["models"][0]["parameters"]["denisty"] = 1.0
    (problem,) = check(staged(world, "hybrid", FIRST, wrong), True, Silent()).problems
    assert problem.where.endswith("hybrid.yaml: stages[1].recipe.models[0].parameters.denisty")


def find_or_none(name: str) -> RunDir | None:
    try:
        return find(name)
    except LedgerError:
        return None
