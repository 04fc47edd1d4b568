"""Searches with random masks: searched seeds, and finalists scored with other seeds on validation."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from evosearch.errors import InputError
from evosearch.preflight.counts import counts_of, planned_baselines
from evosearch.promotion.mask_seeds import MaskSeeds
from evosearch.reporting.generalization import finalist_columns
from evosearch.reporting.leaderboard import leaderboard
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Silent
from evosearch.service.run import run
from evosearch.service.score import score
from evosearch.setup.prepare import prepare
from evosearch.spec.spec import load_spec

World = Callable[..., Path]
MAY_DIFFER = ("seconds", "worker", "count")
ENDING = ("asked", "scored", "finalist", "reseeded", "test_opened", "gated", "failed")


class Killed(BaseException):
    """Simulates SIGKILL: the program does not catch it."""


def spec(world: World, name: str = "masks", **changes: Any) -> Path:
    """A search over weight and seed of DARE, with two finalists."""
    hole = {"low": 0.2, "high": 1.2}
    recipe = {
        "merge_method": changes.pop("method", "dare_ties"),
        "base_model": "./base",
        "models": [{"model": f"./expert{n}", "parameters": {"weight": hole}} for n in (1, 2)],
        "parameters": {"density": 0.4},
        "seed": changes.pop("seed", {"choices": [0, 1, 5]}),
    }
    if recipe["merge_method"] == "task_arithmetic":
        del recipe["parameters"]
    optimizer = {"name": "random", "seed": 1, "start": "init"}
    promotion = {"finalists": 2} | changes.pop("promotion", {})
    base = {"budget": {"candidates": 6}, "optimizer": optimizer, "baselines": {"scales": [0.3]}}
    return world(name=name, **{"recipe": recipe, "promotion": promotion, **base, **changes})


def events(path: Path, *kinds: str) -> list[tuple[str, str]]:
    run_dir = load_spec(path).run_dir
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        info = ledger.search_by_name(run_dir.name)
        assert info is not None
        found = [event for event in ledger.events(info.search_id) if event.type in kinds]
    plain = [(one.type, {key: value for key, value in one.payload.items() if key not in MAY_DIFFER}) for one in found]
    return sorted((kind, json.dumps(payload, sort_keys=True)) for kind, payload in plain)


def test_the_report_has_the_spread_over_three_seeds(world: World, tmp_path: Path) -> None:
    path = spec(world)
    report = run(path, Silent())
    asked = [json.loads(payload) for _, payload in events(path, "asked")]
    assert {one["genome"]["seed"] for one in asked} <= {0, 1, 5}
    assert len({one["genome"]["seed"] for one in asked}) > 1
    assert all(one["recipe"].get("seed", 0) == one["genome"]["seed"] for one in asked)
    assert len(report.finalists) == 2
    for row in report.finalists:
        own = next(one["genome"]["seed"] for one in asked if one["candidate"] == row.candidate)
        assert list(row.mask_scores) == [own, own + 1, own + 2]
        assert row.mask_scores[own] == row.score
        low, high, mean = min(row.mask_scores.values()), max(row.mask_scores.values()), fmean(row.mask_scores.values())
        cell = finalist_columns(report.finalists)[-1].cell(row)
        assert cell == f"{low:.1f} to {high:.1f}, mean {mean:.1f} (3 seeds)"
    assert finalist_columns(report.finalists)[-1].cell(report.unchosen[0]) == ""
    assert "by mask seed (validation)" in report._repr_html_()
    assert {row.candidate for row in leaderboard(load_spec(path).run_dir).rows} == {
        *report.baselines,
        *(one["candidate"] for one in asked),
    }, "finalists with other seeds are no rows of the leaderboard"
    (first, *_) = [json.loads(payload) for _, payload in events(path, "reseeded")]
    scored = {(one["candidate"], one["split"]): one for _, p in events(path, "scored") for one in [json.loads(p)]}
    (tmp_path / "again.yaml").write_text(json.dumps(first["recipe"]))
    found = score(str(tmp_path / "again.yaml"), path.parent / "suite.yaml", "validation", None, Silent())
    assert found.score == pytest.approx(scored[first["candidate"], "validation"]["score"], abs=1e-9)


@pytest.mark.parametrize("at", ["reseeded", "scored"])
def test_a_search_killed_among_the_seeds_resumes_exactly(
    at: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = spec(world, "whole")
    run(whole, Silent())
    path, append, planned = spec(world, "killed"), Ledger.append, False

    def dying(self: Ledger, search_id: str, entries: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal planned
        if planned and at == "scored":
            raise Killed
        found = append(self, search_id, entries, *args, **kwargs)
        if any(kind == "reseeded" for kind, _ in entries):
            planned = True
            if at == "reseeded":
                raise Killed
        return found

    monkeypatch.setattr(Ledger, "append", dying)
    with pytest.raises(Killed):
        run(path, Silent())
    monkeypatch.setattr(Ledger, "append", append)
    report = run(path, Silent())
    assert [len(row.mask_scores) for row in report.finalists] == [3, 3]
    assert events(path, *ENDING) == events(whole, *ENDING)
    before = events(path, *ENDING)
    run(path, Silent())
    assert events(path, *ENDING) == before


@pytest.mark.parametrize(
    ("changes", "seeds"),
    [({"promotion": {"mask_seeds": 1}}, 0), ({"promotion": {"mask_seeds": 2}}, 2), ({"method": "task_arithmetic"}, 0)],
)
def test_only_masks_have_seeds_to_spread_over(changes: dict[str, Any], seeds: int, world: World) -> None:
    report = run(spec(world, seed=0, **changes), Silent())
    assert [len(row.mask_scores) for row in report.finalists] == [seeds, seeds]
    assert ("by mask seed (validation)" in report._repr_html_()) == bool(seeds)


def test_the_forecast_counts_the_seeds(world: World) -> None:
    def validated(**changes: Any) -> int:
        found = load_spec(spec(world, **changes))
        counts = counts_of(found, planned_baselines(found), 16)
        assert counts is not None
        return counts.validation

    without = validated(promotion={"mask_seeds": 1})
    assert validated() == without + 2 * 2  # finalists, further seeds
    assert validated(promotion={"mask_seeds": 5}) == without + 2 * 4
    assert validated(method={"choices": ["ties", "dare_ties"]}) == without + 2 * 2
    assert validated(method="task_arithmetic", seed=0) == without


def test_the_seed_counts_under_methods_with_masks_only(world: World) -> None:
    space = prepare(load_spec(spec(world, method={"choices": ["ties", "dare_ties"]})), Silent()).space
    seed = next(dimension for dimension in space.dimensions if dimension.name == "seed")
    assert (seed.choices, seed.active_if) == ((0, 1, 5), ("merge_method", ("dare_ties",)))
    chosen = space.initial() | {"seed": 5}
    assert space.fill(chosen | {"merge_method": "dare_ties"}).seed == 5
    assert space.fill(chosen | {"merge_method": "ties"}).seed == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": {"choices": [0]}}, r"recipe\.seed\.choices: 1 given"),
        ({"seed": {"choices": [0, -1]}}, r"recipe\.seed\.choices\[1\]: got -1"),
        ({"seed": {"choices": [0, 0.5]}}, r"recipe\.seed\.choices\[1\]: got 0\.5"),
        ({"seed": {"choices": [0, True]}}, r"recipe\.seed\.choices\[1\]: got True"),
        ({"seed": {"low": 0, "high": 9}}, r"recipe\.seed: .*\{choices: \[\.\.\.\]\} with seeds"),
        ({"method": "task_arithmetic"}, r"recipe\.seed: has no effect.*task_arithmetic draws no masks.*dare_ties"),
        ({"promotion": {"mask_seeds": 0}}, r"promotion\.mask_seeds"),
        (
            {"optimizer": {"name": "cma_es", "start": "init"}},
            r"optimizer\.name: cma_es takes only numbers, but seed has",
        ),
    ],
)
def test_a_mistake_names_file_and_key(changes: dict[str, Any], message: str, world: World) -> None:
    path = spec(world, **changes)
    with pytest.raises(InputError, match=rf"{path}: .*{message}|{path}: {message}"):
        prepare(load_spec(path), Silent())


def test_seeds_follow_the_finalist_s_own() -> None:
    recipe = {"merge_method": "della", "models": [{"model": "a"}], "seed": 2**63 - 2}
    found = MaskSeeds(frozenset({"della"}), 3).of("17", recipe)
    assert [(one.candidate, one.seed) for one in found] == [
        (f"reseeded:17:{2**63 - 1}", 2**63 - 1),
        ("reseeded:17:0", 0),
    ]
    assert MaskSeeds(frozenset({"dare_ties"}), 3).of("17", recipe) == []
    assert MaskSeeds(frozenset({"della"}), 1).of("17", recipe) == []
