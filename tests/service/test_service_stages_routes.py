"""A hybrid: merge weights first, then a route that starts in the merged model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.preflight.check import check
from evosearch.recipe import files
from evosearch.reporting.export import export
from evosearch.reporting.report import CandidateCounts
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Silent
from evosearch.service.merge import merge
from evosearch.service.run import run
from evosearch.setup.loading import read_search
from evosearch.spec.lookup import find

World = Callable[..., Path]
WEIGHT = {"low": 0.0, "high": 1.2, "init": 0.4}
STAGES: list[dict[str, Any]] = [
    {
        "name": "parameters",
        "recipe": {
            "merge_method": "task_arithmetic",
            "base_model": "./base",
            "models": [{"model": f"./expert{index}", "parameters": {"weight": WEIGHT}} for index in (1, 2)],
        },
        "optimizer": {"name": "random", "population": 2},
        "budget": {"candidates": 2},
    },
    {
        "name": "routes",
        "recipe": {
            "routing": {
                "search": True,
                "models": ["stage:parameters", "./expert1"],
                "repeats": 1,
                "keep_first": 1,
                "keep_last": 1,
                "scale": {"low": 0.8, "high": 1.25},
            }
        },
        "optimizer": {"name": "cat_cma", "population": 4, "seed": 1},
        "budget": {"candidates": 4},
    },
]


@pytest.fixture
def hybrid(world: World) -> Path:
    path = world("hybrid", baselines={"scales": [0.5]}, promotion={"finalists": 1})
    data = yaml.safe_load(path.read_text())
    for key in ("recipe", "optimizer", "budget"):
        del data[key]
    path.write_text(yaml.safe_dump(data | {"stages": STAGES}, sort_keys=False))
    return path


def test_a_route_search_starts_from_the_winner_and_resumes_after_a_kill(
    hybrid: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert check(hybrid, False, Silent()).problems == ()
    append = Ledger.append

    def dying(self: Ledger, search_id: str, entries: Any, scores: Any = ()) -> Any:
        events = append(self, search_id, entries, scores)
        if any(kind == "asked" and "routing" in payload["recipe"] for kind, payload in entries):
            raise KeyboardInterrupt
        return events

    monkeypatch.setattr(Ledger, "append", dying)
    with pytest.raises(KeyboardInterrupt):
        run(hybrid, Silent())
    monkeypatch.setattr(Ledger, "append", append)
    report = run(hybrid, Silent())
    first, second = report.stages
    assert first.candidates == CandidateCounts(2, 2, 0, 2)
    assert second.candidates.scored == 4
    run_dir = find("hybrid")
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        _, state = read_search(ledger, run_dir)
    winner = "stage:parameters"
    routes = [state.recipe(name)["routing"]["hops"] for name in state.candidates]
    assert all(route[0]["model"] == winner and route[0]["layer"] == 0 for route in routes)
    # What the first stage was made of is what the route is held against
    made = {name: (baseline.recipe or {}).get("models") for name, baseline in state.baselines.items()}
    assert made["stage:parameters"] == [{"model": winner, "parameters": {"weight": 1.0}}]
    assert made["base"][0]["model"] == str(hybrid.parent / "base")
    assert [entry["model"] for entry in made["scale:0.50"]] == [str(hybrid.parent / f"expert{i}") for i in (1, 2)]
    assert {"base", "stage:parameters", "uniform", "scale:0.50"} < set(state.test_openings[0].candidates)
    # One file has the route and the merge that it starts in
    out = tmp_path / "best.yaml"
    written = export("hybrid", "recipe", out, "0", False, Silent())
    find("hybrid.parameters").winner_file.unlink()
    inner, outer = yaml.safe_load_all(out.read_text())
    assert inner["name"] == "parameters"
    assert outer["routing"]["hops"][0] == {"model": "parameters", "layer": 0} | outer["routing"]["hops"][0]
    assert files.load(out).routing is not None
    assert merge(out, tmp_path / "merged", Silent()).recipe_id == written.recipe_id
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["num_hidden_layers"] == len(outer["routing"]["hops"])
