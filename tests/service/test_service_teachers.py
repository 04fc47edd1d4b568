"""Searches told by teachers, as a user runs them: without right answers on search, or without any at all."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.search.ledger.ledger import Ledger
from evosearch.search.state import SearchState

Command = Callable[..., tuple[int, str, str]]
World = Callable[..., Path]
ROOT = Path(__file__).parents[2]
LONG_S = 1800.0  # for a search on a busy machine
EXPERTS = {"choice": "./expert1", "generate": "./expert2"}
QUICK = {"optimizer": {"name": "cma_es", "population": 4, "seed": 1}, "budget": {"candidates": 8}}


ROUTE = {"search": True, "models": ["./expert1", "./expert2"], "repeats": 1, "max_hops": 5, "encoding": "threshold"}


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
    assert "The fitness follows teachers" in out.replace("\n", " ")


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
    assert "The fitness follows teachers" in header
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
    assert any("The fitness follows teachers" in text or "teachers" in text for text in found["notes"])
    assert found["forecast"]["tokens"]["search"]["requested"] > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"search_minibatches": 2},
        {"optimizer": {"name": "gradient", "seed": 1}, "budget": {"items": 150}},
        {"objectives": ["choice", "generate"], "optimizer": {"name": "nsga2", "population": 4, "seed": 1}},
        {
            "recipe": {"routing": ROUTE},
            "optimizer": {"name": "random", "seed": 1},
            "baselines": {"base_model": "./base"},
        },
    ],
    ids=["minibatches", "gradient", "objectives", "routes"],
)
def test_every_kind_of_search_can_be_told_by_teachers(
    world: World, suite: Callable[..., Path], evosearch: Command, tmp_path: Path, changes: dict[str, Any]
) -> None:
    suite(fitness={"teachers": EXPERTS})
    code, out, err = evosearch("run", world("kinds", **QUICK | changes), "--json")
    assert code in (0, 3), err
    report = json.loads(out)
    assert report["candidates"]["failed"] == 0
    best = max(row["fitness"] for row in report["leaderboard"] if row["kind"] == "candidate" and row["fitness"])
    worst = min(row["fitness"] for row in report["leaderboard"] if row["kind"] == "base")
    assert worst < best < 0
    assert report["gate"]["comparisons"]


def test_prompts_weigh_in_the_fitness_and_guarded_answers_are_read(
    world: World, suite: Callable[..., Path], evosearch: Command, tmp_path: Path
) -> None:
    path = suite(
        tasks=[
            {"task": "w_choice", "name": "choice", "metric": "acc", "chance": 0.33},
            {"task": "w_generate", "name": "generate", "metric": "exact_match", "chance": 0.0},
            {"prompts": "chat.txt", "weight": 2.0, "generation_kwargs": {"max_gen_toks": 3}},
        ],
        guards=[{"task": "choice", "max_drop": 100}],
        fitness={"teachers": EXPERTS | {"chat": "./expert1"}},
    )
    path.with_name("chat.txt").write_text("\n".join(f"{a}{b}j=" for a in "abcdef" for b in "efghi"))
    code, out, err = evosearch("run", world("mixed", **QUICK), "--json")
    assert code in (0, 3), err
    report = json.loads(out)
    assert [(row["task"], row["splits"]) for row in report["answers"]] == [
        ("choice", ["search", "validation", "test"]),
        ("generate", ["validation", "test"]),
        ("chat", []),
    ]
    state = state_of(tmp_path, "mixed")
    for (_, split), card in state.cards.items():
        own = {name: estimate.value for name, estimate in card.task_fitness.items()}
        expected = {"choice", "generate", "chat"} - ({"chat"} if split == "test" else set())
        assert set(own) == expected
        weights = {"choice": 1.0, "generate": 1.0, "chat": 2.0 if "chat" in own else 0.0}
        mean = sum(weights[name] * value for name, value in own.items()) / sum(weights.values())
        assert card.fitness.value == pytest.approx(mean, abs=1e-12)
        assert set(card.guards) == {"choice"}
        assert (card.score is None) == (split == "search")
        assert set(card.tasks) == (set() if split == "search" else {"choice", "generate"})


@pytest.mark.ray
@pytest.mark.slow
def test_experts_teach_the_tiny_models_without_right_answers(zoo_cache: Path, tmp_path: Path) -> None:
    """The quickstart's models and suite, told by the experts alone: far above the best scale, by two workers."""
    hole = {"low": -0.5, "high": 2.0, "per": "tensor"}
    experts = ("reverse", "sort", "deal", "median")
    data = yaml.safe_load((ROOT / "evals" / "quickstart.yaml").read_text())
    suite = data | {"include": [str(ROOT / "evals" / "tiny")], "fitness": {"teachers": "auto"}}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    spec = {
        "name": "taught",
        "recipe": {
            "merge_method": "task_arithmetic",
            "base_model": "zoo:tiny/base",
            "models": [{"model": f"zoo:tiny/{name}", "parameters": {"weight": hole}} for name in experts],
        },
        "optimizer": {"name": "gradient", "seed": 0},
        "suite": "suite.yaml",
        "budget": {"items": 1500},
        "workers": {"count": 2, "threads": 1},
        "tracking": {"uri": "jsonl:events.jsonl"},
        "baselines": {"scales": [0.5, 0.6, 0.7]},
        "promotion": {"finalists": 2},
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    command = [sys.executable, "-m", "evosearch.cli.main", "run", str(tmp_path / "spec.yaml"), "--json"]
    environment = os.environ | {"EVOSEARCH_RUNS": str(tmp_path / "runs")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LONG_S, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(done.stdout)
    assert {row["task"]: row["teacher"] for row in report["answers"]} == {name: f"zoo:tiny/{name}" for name in experts}
    (lead,) = (one for one in report["gate"]["comparisons"] if one["role"] == "baseline")
    assert lead["difference"] > 8.0
    assert report["rank_correlation"]["value"] > 0.5
