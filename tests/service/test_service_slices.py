"""Searches over stacked layers, from the spec to the exported winner."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from evosearch.preflight.check import check
from evosearch.reporting.report import CandidateCounts
from evosearch.search.progress import Silent
from evosearch.service.run import run
from evosearch.spec.spec import load_spec

World = Callable[..., Path]
HOLE = {"low": 0.0, "high": 1.5}


def source(model: str, first: int, end: int, **parameters: object) -> dict[str, Any]:
    return {"model": model, "layer_range": [first, end]} | ({"parameters": parameters} if parameters else {})


def recipe(*slices: list[dict[str, Any]], **more: object) -> dict[str, Any]:
    listed = [{"sources": part} for part in slices]
    return {"merge_method": "task_arithmetic", "base_model": "./base", "slices": listed, **more}


def spec(world: World, name: str, template: dict[str, Any]) -> Path:
    budget, optimizer = {"candidates": 6}, {"name": "random", "seed": 1, "start": "init"}
    return world(name=name, recipe=template, budget=budget, optimizer=optimizer, baselines={"scales": [0.3]})


def test_a_stack_is_compared_with_baselines_of_complete_models(world: World) -> None:
    low = [source("./expert1", 0, 2, weight=HOLE), source("./expert2", 0, 2, weight=0.5)]
    high = [source("./expert2", 1, 3, weight=HOLE)]
    path = spec(world, "stack", recipe(low, high))
    report = run(path, Silent())
    assert report.candidates == CandidateCounts(6, 6, 0, 0)
    assert all(baseline.score is not None for baseline in report.baselines.values())
    assert set(report.baselines) == {"base", "parent:0", "parent:1", "uniform", "scale:0.30"}
    assert load_spec(path).search_id()


def test_models_of_different_depth_are_searched_and_only_their_own_baseline_apply(world: World) -> None:
    path = spec(world, "depths", {})
    stack = "merge_method: passthrough\nslices:\n"
    stack += (
        "- sources: [{model: ./expert2, layer_range: [0, 3]}]\n- sources: [{model: ./expert2, layer_range: [1, 3]}]\n"
    )
    (path.parent / "deep.yaml").write_text(stack)
    low = [source("./base", 0, 2), source("./deep.yaml", 0, 2, weight=HOLE)]
    high = [source("./base", 2, 3), source("./deep.yaml", 4, 5, weight=HOLE)]
    path = spec(world, "depths", recipe(low, high))
    found = check(path, False, Silent())
    assert (found.ok, found.problems) == (True, ())
    report = run(path, Silent())
    assert report.candidates == CandidateCounts(6, 6, 0, 0)
    scored = {name: baseline.score for name, baseline in report.baselines.items() if baseline.score is not None}
    assert set(scored) == {"base", "parent:0"}


def test_slices_that_keep_every_layer_in_its_place_have_every_baseline(world: World) -> None:
    parts = [[source(name, 0, 2, weight=HOLE) for name in ("./expert1", "./expert2")]]
    parts.append([source(name, 2, 3, weight=HOLE) for name in ("./expert1", "./expert2")])
    path = spec(world, "in_place", recipe(*parts))
    report = run(path, Silent())
    assert report.candidates.scored == 6
    assert all(baseline.score is not None for baseline in report.baselines.values())


def test_a_file_of_several_recipes_is_checked_as_the_one_it_makes(world: World) -> None:
    path = spec(world, "unused", recipe()).parent / "steps.yaml"
    step = "name: step\nmerge_method: linear\nmodels: [{model: ./expert1, parameters: {weight: 1}}]\n"
    last = "merge_method: slerp\nbase_model: ./base\nmodels: [{model: step}]\nparameters: {t: 0.5}\n"
    path.write_text(step + "---\n" + last)
    assert check(path, False, Silent()).problems == ()
    path.write_text(step + "---\n" + last.replace("t: 0.5", "tt: 0.5"))
    (problem,) = check(path, False, Silent()).problems
    assert problem.where == f"{path}: parameters.tt"
