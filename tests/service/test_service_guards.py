"""Guards and an unlearning target through a complete search: reported, ranked, judged, shown, exact at resume."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from evosearch.evaluation.types import EXPECTED, GOLD
from evosearch.reporting.leaderboard import leaderboard
from evosearch.reporting.leaderboard_row import LeaderboardRow
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Silent
from evosearch.search.state import SearchState
from evosearch.service.run import RunReport, run
from evosearch.setup.prepare import prepare
from evosearch.spec.spec import load_spec

World = Callable[..., Path]
OPTIMIZER = {"name": "cma_es", "population": 4, "sigma": 0.3, "seed": 1, "start": "best_baseline"}
CHANGES: dict[str, Any] = {"optimizer": OPTIMIZER, "baselines": {"scales": [0.5]}, "promotion": {"finalists": 2}}
PARENTS = {  # a recipe without a base
    "merge_method": "linear",
    "models": [{"model": f"./expert{i}", "parameters": {"weight": {"low": 0.1, "high": 1.0}}} for i in (1, 2)],
}


def guarded_suite(folder: Path, chance: float = 0.33) -> str:
    """The world's suite with its choice task as unlearning target, and guards on a scored and on a reported task."""
    suite = yaml.safe_load((folder / "suite.yaml").read_text())
    choice, generate = suite["tasks"]
    del choice["chance"]
    kept = {"task": "w_choice", "name": "kept", "metric": "acc", "chance": chance, "report_only": True}
    suite["tasks"] = [choice | {"unlearn": True}, generate, kept]
    suite["guards"] = [{"task": "kept", "max_drop": 2.0}, {"task": "generate", "max_drop": 30.0}]
    (folder / "suite_guarded.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
    return "suite_guarded.yaml"


def write(world: World, name: str, **changes: Any) -> Path:
    spec = world(name=name)
    return world(name=name, suite=guarded_suite(spec.parent), **(CHANGES | changes))


def opened(spec: Path) -> tuple[Ledger, str, SearchState]:
    ledger = Ledger.open(load_spec(spec).run_dir.ledger, read_only=True)
    info = ledger.search_by_name(load_spec(spec).run_dir.name)
    assert info is not None
    return ledger, info.search_id, SearchState.from_events(ledger.events(info.search_id))


@pytest.fixture(scope="module")
def kept_run() -> dict[str, Any]:
    return {}


@pytest.fixture
def searched(world: World, kept_run: dict[str, Any]) -> tuple[Path, RunReport, SearchState, tuple[LeaderboardRow, ...]]:
    """One search on two minibatches, with guards."""
    if not kept_run:
        spec = write(world, "guarded", search_minibatches=2, budget={"candidates": 8})
        report = run(spec, Silent())
        ledger, search_id, state = opened(spec)
        names = [*state.baselines, *state.candidates]
        stored = {
            (name, split): ledger.columns(search_id, name, split, card.sets)
            for (name, split), card in state.cards.items()
            if name in names
        }
        for (name, part), card in state.samples.items():
            stored[name, f"search/{part}"] = ledger.columns(search_id, name, "search", card.sets)
        sets = {split: batch.sets for split, batch in prepare(load_spec(spec), Silent()).batches.items()}
        parts = prepare(load_spec(spec), Silent()).minibatches
        rows = leaderboard(load_spec(spec).run_dir).rows
        kept_run.update(spec=spec, report=report, state=state, rows=rows, stored=stored, sets=sets, parts=parts)
    return kept_run["spec"], kept_run["report"], kept_run["state"], kept_run["rows"]


def points(column: Any) -> float:
    return 100 * (float(np.mean(column)) - 0.33) / 0.67


def test_violations_are_relative_to_the_base_on_the_same_minibatch(searched: Any, kept_run: dict[str, Any]) -> None:
    _, _, state, _ = searched
    broken = 0
    for (name, part), card in state.samples.items():
        held = kept_run["parts"].batches[part].sets[2]
        rows = np.isin(kept_run["sets"]["search"][2].doc_ids, held.doc_ids)
        base = points(kept_run["stored"]["base", "search"]["kept"]["acc"][rows])
        own = points(kept_run["stored"][name, f"search/{part}"]["kept"]["acc"])
        assert card.guards["kept"] == pytest.approx(own)
        violations = state.reported[name].violations
        assert violations[0] == pytest.approx(max(0.0, base - own - 2.0))
        broken += violations[0] > 0
    assert 0 < broken < len(state.samples), "the constructed world has candidates of both kinds"


def test_the_unlearning_target_scores_by_wrong_answers_and_has_a_smooth_fitness(
    searched: Any, kept_run: dict[str, Any]
) -> None:
    _, _, state, _ = searched
    for name in state.baselines:
        card, columns = state.cards[name, "search"], kept_run["stored"][name, "search"]
        assert card.tasks["choice"].metric == "1-acc"
        assert (columns["choice"]["1-acc"] == 1 - columns["choice"]["acc"]).all()
        wrong = float(columns["choice"]["1-acc"].mean())
        right = float(columns["generate"]["exact_match"].mean())
        assert card.score == pytest.approx(50 * wrong + 50 * right)
        assert columns["choice"][f"1-{EXPECTED}"] == pytest.approx(1 - np.exp(columns["choice"][GOLD]))
        unlikely, likely = columns["choice"][f"1-{EXPECTED}"].mean(), columns["generate"][EXPECTED].mean()
        assert card.fitness.value == pytest.approx(50 * unlikely + 50 * likely)


def test_finalists_and_leaderboard_rank_candidates_without_violations_first(searched: Any) -> None:
    _, report, state, rows = searched
    whole = [row for row in rows if row.sample is None]
    amounts = [sum(row.violations.values()) for row in rows]
    assert amounts == sorted(amounts)
    assert 0.0 in amounts
    assert amounts[-1] > 0
    for row in whole:
        assert row.violations == {t: v for t, v in state.violations(row.candidate).items() if v > 0}
    candidates = {row.candidate: sum(row.violations.values()) for row in whole if row.kind == "candidate"}
    chosen = [finalist.candidate for finalist in state.finalists]
    assert max(candidates[name] for name in chosen) <= min(
        (amount for name, amount in candidates.items() if name not in chosen), default=np.inf
    )
    assert report.best.candidate == next(row.candidate for row in rows if row.kind == "candidate")


def test_the_gate_checks_each_guard_of_the_winner(searched: Any, kept_run: dict[str, Any]) -> None:
    _, report, state, _ = searched
    winner = report.gate.winner
    checks = {check.task: check for check in report.gate.guards}
    assert [(check.reference, check.challenger) for check in checks.values()] == [("base", winner)] * 2
    own, base = (kept_run["stored"][name, "test"] for name in (winner, "base"))
    difference = points(own["kept"]["acc"]) - points(base["kept"]["acc"])
    assert checks["kept"].difference == pytest.approx(difference)
    assert checks["kept"].holds == (checks["kept"].lower >= -2.0)
    assert checks["generate"].n == 20
    said = f"{state.title(winner)} does not pass the guard on kept: "
    assert any(reason.startswith(said) for reason in report.gate.reasons)
    assert report.gate.promoted is None
    assert state.gated is not None


def test_a_search_with_violations_is_replayed_and_continues(world: World) -> None:
    run(write(world, "cut", budget={"candidates": 4}), Silent())
    spec = write(world, "cut", budget={"candidates": 8})
    run(spec, Silent())  # replays reports with violations: a deviating ask would stop it
    straight = write(world, "straight", budget={"candidates": 8})
    run(straight, Silent())
    states = [opened(path)[2] for path in (spec, straight)]
    assert all(reported.violations for reported in states[0].reported.values() if reported.fitness)
    # The answer of the first session has a number, so later candidates have other numbers than in one session
    one, other = ([replace(found, candidate="") for found in state.reported.values()] for state in states)
    assert one == other
    one_asked, other_asked = ([state.proposal(name).genome for name in state.reported] for state in states)
    assert one_asked == other_asked


def test_without_a_base_the_parent_best_at_the_task_is_the_reference(world: World) -> None:
    spec = write(world, "parents", recipe=PARENTS, budget={"candidates": 4})
    report = run(spec, Silent())
    _, _, state = opened(spec)
    for task, reference in state.references().items():
        best = max(state.cards[f"parent:{index}", "search"].guards[task] for index in (0, 1))
        assert state.cards[reference, "search"].guards[task] == best
    assert report.gate is not None
    assert [check.reference for check in report.gate.guards] == list(state.references().values())


def test_the_unlearning_recipe_matches_its_comments() -> None:
    spec = load_spec(Path(__file__).parents[2] / "recipes/unlearn.yaml")
    assert [task.name for task in spec.suite.scoring if task.unlearn] == ["sort"]
    assert [guard.task for guard in spec.suite.guards] == ["reverse", "deal", "median"]
    assert spec.template["models"][0]["parameters"]["weight"]["high"] <= 0
