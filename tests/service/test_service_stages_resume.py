"""A multi-stage run that is killed resumes at the right stage, as if it had not been killed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Silent
from evosearch.service.run import run
from evosearch.spec.lookup import find

World = Callable[..., Path]
WEIGHT = {"low": 0.0, "high": 1.2, "init": 0.4}
STAGES: list[dict[str, Any]] = [
    {
        "name": "one",
        "recipe": {
            "merge_method": "task_arithmetic",
            "base_model": "./base",
            "models": [{"model": f"./expert{index}", "parameters": {"weight": WEIGHT}} for index in (1, 2)],
        },
        "optimizer": {"name": "cma_es", "population": 4, "seed": 3},
        "budget": {"candidates": 4},
    },
    {
        "name": "two",
        "recipe": {
            "merge_method": "linear",
            "models": [
                {"model": "stage:one", "parameters": {"weight": {"low": 0.2, "high": 1.0}}},
                {"model": "./expert2", "parameters": {"weight": {"low": 0.0, "high": 1.0}}},
            ],
        },
        "optimizer": {"name": "random", "population": 2, "seed": 1},
        "budget": {"candidates": 2},
    },
]
KINDS = ("baseline", "asked", "told", "finalist", "winner", "test_opened", "gated", "failed")
MAY_DIFFER = ("seconds", "worker", "count", "recipe")


class Killed(BaseException):
    """Simulates SIGKILL: the program does not catch it."""


def staged(world: World, name: str) -> Path:
    path = world(name, baselines={"scales": [0.5]}, promotion={"finalists": 1})
    data = yaml.safe_load(path.read_text())
    for key in ("recipe", "optimizer", "budget"):
        del data[key]
    path.write_text(yaml.safe_dump(data | {"stages": STAGES}, sort_keys=False))
    return path


def record(name: str) -> dict[str, list[tuple[str, Any]]]:
    """Proposals, reports, choices and scores of every stage in order, without times, workers and folders."""
    found = {}
    with Ledger.open(find(name).ledger, read_only=True) as ledger:
        for info in ledger.searches():
            events = ledger.events(info.search_id)
            kept = [(e.type, {k: v for k, v in e.payload.items() if k not in MAY_DIFFER}) for e in events]
            scored = sorted((p["candidate"], p["split"], p["score"]) for kind, p in kept if kind == "scored")
            own = [(kind, payload) for kind, payload in kept if kind in KINDS]
            found[info.name.rpartition(".")[2]] = [*own, ("scored", scored)]
    return found


def winners(name: str) -> list[str]:
    """recipe_id of the first stage's winner, in its own ledger and in the second stage's record."""
    with Ledger.open(find(name).ledger, read_only=True) as ledger:
        ids = {info.name.rpartition(".")[2]: info.search_id for info in ledger.searches()}
        (chosen,) = ledger.events(ids["one"], types=("winner",))
        begun = ledger.events(ids["two"], types=("started",))
    return [chosen.payload["recipe_id"], *(event.payload["spec"]["builds_on"]["one"] for event in begun)]


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, Any]:
    return {}


def commits(monkeypatch: pytest.MonkeyPatch, die: Callable[[int, Any], bool]) -> list[list[str]]:
    """Kill the program after the first commit for which `die(number, entries)` is true; return the commits so far."""
    append, seen = Ledger.append, list[list[str]]()

    def dying(self: Ledger, search_id: str, entries: Any, scores: Any = ()) -> Any:
        events = append(self, search_id, entries, scores)
        seen.append([kind for kind, _ in entries])
        if die(len(seen), entries):
            monkeypatch.setattr(Ledger, "append", append)
            raise Killed
        return events

    monkeypatch.setattr(Ledger, "append", dying)
    return seen


@pytest.mark.parametrize(
    ("kind", "nth"),
    [("told", 1), ("winner", 1), ("started", 2), ("asked", 2), ("gated", 1)],
)
def test_killed_anywhere_it_resumes_at_the_right_stage(
    world: World, uninterrupted: dict[str, Any], kind: str, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not uninterrupted:
        run(staged(world, "whole"), Silent())
        uninterrupted.update(record("whole"))
    spec, met = staged(world, "killed"), 0

    def die(_: int, entries: Any) -> bool:
        nonlocal met
        met += any(found == kind for found, _ in entries)
        return met == nth

    seen = commits(monkeypatch, die)
    with pytest.raises(Killed):
        run(spec, Silent())
    assert kind in seen[-1]
    report = run(spec, Silent())
    assert record("killed") == uninterrupted
    assert len(set(winners("killed"))) == 1
    assert [row.candidates.proposed for row in report.stages] == [4, 2]
