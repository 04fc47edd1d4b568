"""Searches told by teachers, as a user runs them: without right answers on search, or without any at all."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.search.ledger.ledger import Ledger
from evosearch.search.state import SearchState

Command = Callable[..., tuple[int, str, str]]
World = Callable[..., Path]
EXPERTS = {"choice": "./expert1", "generate": "./expert2"}
QUICK = {"optimizer": {"name": "cma_es", "population": 4, "seed": 1}, "budget": {"candidates": 8}}


@pytest.fixture
def suite(world: World) -> Callable[..., Path]:
    """`suite(tasks=…, fitness=…)` replaces the world's suite by one with these keys."""

    def write(**changes: Any) -> Path:
        path = world("any").with_name("suite.yaml")
        data = yaml.safe_load(path.read_text())
        path.unlink()
        path.write_text(yaml.safe_dump(data | changes, sort_keys=False))
        return path

    return write


def state_of(tmp_path: Path, name: str) -> SearchState:
    with Ledger.open(f"sqlite:///{tmp_path}/runs/{name}/ledger.db", read_only=True) as ledger:
        (search,) = ledger.searches()
        return SearchState.from_events(ledger.events(search.search_id))


def lessons(tmp_path: Path) -> dict[str, int]:
    """Files of lessons with the times at which they were written."""
    return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "teachers").iterdir()}


def test_a_search_told_by_teachers_reads_no_right_answers_on_search(
    world: World, suite: Callable[..., Path], evosearch: Command, tmp_path: Path
) -> None:
    suite(fitness={"teachers": EXPERTS})
    code, out, err = evosearch("run", world("taught", **QUICK), "--json")
    assert code in (0, 3), err
    report = json.loads(out)
    assert report["candidates"]["scored"] == 8
    assert [row["splits"]["search"]["score"] for row in report["leaderboard"]] == [None] * len(report["leaderboard"])
    fitness = [row["fitness"] for row in report["leaderboard"]]
    assert fitness == sorted(fitness, reverse=True)
    assert max(fitness) < 0
    assert all(one["scores"].keys() == {"validation"} or "test" in one["scores"] for one in report["finalists"])
    assert report["gate"]["comparisons"]
    assert report["answers"] == [
        {"task": task, "in_fitness": False, "splits": ["validation", "test"], "teacher": f"{tmp_path}/specs/{name[2:]}"}
        for task, name in EXPERTS.items()
    ]
    state = state_of(tmp_path, "taught")
    assert state.teachers == {task: f"{tmp_path}/specs/{name[2:]}" for task, name in EXPERTS.items()}
    assert all(not card.tasks and card.score is None for (_, split), card in state.cards.items() if split == "search")
    assert all(
        card.tasks and card.score is not None for (_, split), card in state.cards.items() if split == "validation"
    )
    code, out, err = evosearch("leaderboard", "taught")
    assert code == 0, err
    assert "The fitness followed teachers" in out.replace("\n", " ")


def test_lessons_are_shared_by_searches_and_resumes(
    world: World, suite: Callable[..., Path], evosearch: Command, tmp_path: Path
) -> None:
    suite(fitness={"teachers": EXPERTS})
    assert evosearch("run", world("first", **QUICK))[0] in (0, 3)
    kept = lessons(tmp_path)
    assert len(kept) == 2 * 3  # tasks, and splits
    assert evosearch("run", world("second", **QUICK | {"budget": {"candidates": 12}}))[0] in (0, 3)
    assert evosearch("run", world("first", **QUICK | {"budget": {"candidates": 12}}))[0] in (0, 3)
    assert lessons(tmp_path) == kept


def test_auto_chooses_the_best_parent_on_validation(
    world: World, suite: Callable[..., Path], evosearch: Command, tmp_path: Path
) -> None:
    suite(fitness={"teachers": "auto"})
    code, _, err = evosearch("run", world("auto", **QUICK))
    assert code in (0, 3), err
    state = state_of(tmp_path, "auto")
    parents = {name: state.recipe(name)["models"][0]["model"] for name in ("parent:0", "parent:1")}
    for task in ("choice", "generate"):
        scores = {parents[name]: state.cards[name, "validation"].tasks[task].value for name in parents}
        assert state.teachers[task] == max(scores, key=lambda reference: scores[reference])
    with Ledger.open(f"sqlite:///{tmp_path}/runs/auto/ledger.db", read_only=True) as ledger:
        (search,) = ledger.searches()
        (event,) = ledger.events(search.search_id, types=("teachers",))
        assert set(event.payload["scores"]) == {"choice", "generate"}
    assert evosearch("run", world("auto", **QUICK | {"budget": {"candidates": 12}}))[0] in (0, 3)
    assert state_of(tmp_path, "auto").teachers == state.teachers


@pytest.fixture
def prompts(suite: Callable[..., Path], tmp_path: Path) -> Path:
    """A suite of prompts alone."""
    path = suite(
        include=[],
        tasks=[{"prompts": "chat.txt", "generation_kwargs": {"until": ["\n"], "max_gen_toks": 3}}],
        documents={"search": 8, "validation": 10},
        near_duplicates=False,
        fitness={"teachers": {"chat": "./expert1"}},
    )
    letters = [f"{a}{b}{c}j" for a in "abcd" for b in "efg" for c in "hi"]
    path.with_name("chat.txt").write_text("\n".join(f"{word}=" for word in letters))
    return path


def test_without_right_answers_nothing_is_promoted_unless_unverified(
    world: World, prompts: Path, evosearch: Command, tmp_path: Path
) -> None:
    spec = world("prompts", **QUICK)
    code, out, err = evosearch("run", spec, "--json")
    assert code == 3, err
    report = json.loads(out)
    assert report["gate"]["promoted"] is None
    assert report["gate"]["unverified"] is True
    assert report["exported"] == {}
    assert report["test"] == []
    assert "Run again with --unverified" in report["gate"]["reasons"][-1]
    code, out, err = evosearch("run", spec, "--json", "--unverified")
    assert code == 0, err
    report = json.loads(out)
    winner = report["gate"]["promoted"]
    fitness = {
        row["candidate"]: row["splits"]["validation"]["fitness"]
        for row in report["leaderboard"]
        if "validation" in row["splits"]
    }
    judged = {name: value for name, value in fitness.items() if name.isdigit() or name.startswith(("scale", "uniform"))}
    assert fitness[winner] == max(judged.values())
    header = Path(report["exported"]["recipe"]).read_text()
    assert "Unverified: the suite has no right answers" in header
    assert "The fitness followed teachers" in header
    state = state_of(tmp_path, "prompts")
    assert state.gated is not None
    assert state.gated.decision["unverified"] is True
    assert not state.test_openings
    code, out, _ = evosearch("run", spec, "--unverified")
    assert code == 0
    assert "Unverified" in out


def test_unverified_is_refused_where_the_gate_decides(world: World, evosearch: Command) -> None:
    code, _, err = evosearch("run", world("plain", **QUICK), "--unverified")
    assert code == 2
    assert "--unverified: given, and" in err


def test_teachers_are_models_of_the_search(world: World, suite: Callable[..., Path], evosearch: Command) -> None:
    path = suite(fitness={"teachers": {"choice": "./expert3", "generate": "auto"}})
    code, _, err = evosearch("run", world("other", **QUICK))
    assert code == 2
    assert f"{path}: fitness.teachers.choice: " in err
    assert "is not a model of this search" in err
    suite(fitness="score", tasks=[{"prompts": "chat.txt"}])
    path.with_name("chat.txt").write_text("a\n")
    code, _, err = evosearch("check", path)
    assert code == 2
    assert "prompts have no right answers" in err + _


def test_check_says_what_the_fitness_reads(world: World, suite: Callable[..., Path], evosearch: Command) -> None:
    suite(fitness={"teachers": EXPERTS})
    code, out, err = evosearch("check", world("checked", **QUICK), "--json")
    assert code == 0, err
    found = json.loads(out)
    assert any("The fitness followed teachers" in text or "teachers" in text for text in found["notes"])
    assert found["forecast"]["tokens"]["search"]["requested"] > 0
