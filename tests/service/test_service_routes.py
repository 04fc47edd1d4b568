"""A search over routes, end to end: checked, run to its gate, resumed after a stop, exported."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evosearch.recipe import files
from evosearch.recipe.schema import Recipe
from evosearch.reporting.export import export
from evosearch.reporting.report import CandidateCounts
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Silent
from evosearch.service.run import run
from evosearch.service.score import score
from evosearch.spec.spec import load_spec

World = Callable[..., Path]
MAY_DIFFER = ("seconds", "worker", "count", "recipe")  # between two runs of one search


class Killed(BaseException):
    """Simulates SIGKILL: the program does not catch it."""


def searched(optimizer: str = "random", **changes: Any) -> dict[str, Any]:
    """Changes that turn the small world's spec into a search over routes."""
    baselines = changes.pop("baselines", {"base_model": "./base", "scales": [0.3, 0.6]})
    beside = changes.pop("beside", {})
    hole = {"search": True, "models": ["./expert1", "./expert2"], "repeats": 1, "max_hops": 5, "encoding": "threshold"}
    options = {} if optimizer == "random" else {"population": 6}
    return {
        "recipe": {"routing": hole | changes} | beside,
        "optimizer": {"name": optimizer, "seed": 1} | options,
        "baselines": baselines,
        "budget": {"candidates": 12},
    }


def events(spec: Path, *kinds: str) -> list[tuple[str, dict[str, Any]]]:
    """Events of a search in order, scores by name, without times and workers."""
    run_dir = load_spec(spec).run_dir
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        info = ledger.search_by_name(run_dir.name)
        assert info is not None
        found = [
            (event.type, {key: value for key, value in event.payload.items() if key not in MAY_DIFFER})
            for event in ledger.events(info.search_id)
            if event.type in kinds
        ]
    return sorted(found, key=lambda entry: (kinds.index(entry[0]), json.dumps(entry[1], sort_keys=True)))


KINDS = ("baseline", "asked", "scored", "told", "finalist", "test_opened", "gated", "failed")


@pytest.mark.parametrize(
    ("optimizer", "encoding"), [("random", "categorical"), ("cat_cma", "categorical"), ("cma_es", "threshold")]
)
def test_a_search_over_routes_runs_to_its_gate(optimizer: str, encoding: str, world: World) -> None:
    spec = world(name="routes", **searched(optimizer, encoding=encoding))
    report = run(spec, Silent())
    assert report.candidates == CandidateCounts(12, 12, 0, 0)
    assert set(report.baselines) == {"base", "parent:0", "parent:1", "uniform", "scale:0.30", "scale:0.60"}
    assert all(baseline.score is not None for baseline in report.baselines.values())
    assert report.gate is not None
    tested = {row.candidate for row in report.test}
    assert {"base", "parent:0", "parent:1", "uniform"} < tested
    labels = {row.candidate: row.label for row in report.test}
    assert labels["parent:1"].startswith("parent expert2")
    asked = [payload for kind, payload in events(spec, "asked")]
    assert len({payload["recipe_id"] for payload in asked}) > 3
    if optimizer == "cat_cma":
        _is_its_export(spec, report.best.candidate)  # type: ignore[index]


def _is_its_export(spec: Path, candidate: str) -> None:
    """Check that the exported recipe is the candidate's, and that recipe and checkpoint have the recorded scores."""
    out = spec.parent / "out"
    exported = export("routes", "recipe", out / "route.yaml", candidate, False, Silent())
    export("routes", "checkpoint", out / "model", candidate, False, Silent())
    run_dir = load_spec(spec).run_dir
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        info = ledger.search_by_name(run_dir.name)
        assert info is not None
        every = ledger.events(info.search_id)
    asked = next(e.payload for e in every if e.type == "asked" and e.payload["candidate"] == candidate)
    scored = next(e.payload for e in every if e.type == "scored" and e.payload["candidate"] == candidate)
    assert files.load(out / "route.yaml") == Recipe.model_validate(asked["recipe"])
    assert exported.recipe_id == asked["recipe_id"]
    depth = len(asked["recipe"]["routing"]["hops"])
    assert json.loads((out / "model" / "config.json").read_text())["num_hidden_layers"] == depth
    for made in ("route.yaml", "model"):
        found = score(str(out / made), spec.parent / "suite.yaml", "search", None, Silent())
        assert found.score == pytest.approx(scored["score"], abs=1e-9)


def test_a_stopped_search_over_routes_resumes_exactly(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = world(name="whole", **searched(encoding="categorical"))
    run(whole, Silent())
    spec = world(name="stopped", **searched(encoding="categorical"))
    append, count = Ledger.append, 0

    def dying(self: Ledger, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == 14:
            raise Killed
        return append(self, *args, **kwargs)

    monkeypatch.setattr(Ledger, "append", dying)
    with pytest.raises(Killed):
        run(spec, Silent())
    monkeypatch.setattr(Ledger, "append", append)
    report = run(spec, Silent())
    assert 0 < report.candidates.resumed < 12
    assert events(spec, *KINDS) == events(whole, *KINDS)
