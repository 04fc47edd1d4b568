"""Searches over the models of slices, end to end: checked, run to the gate, resumed, exported."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from evosearch.errors import InputError
from evosearch.preflight.check import check
from evosearch.recipe import files
from evosearch.reporting.export import export
from evosearch.reporting.leaderboard import leaderboard
from evosearch.reporting.report import CandidateCounts
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Silent
from evosearch.service.run import run
from evosearch.service.score import score
from evosearch.setup.prepare import prepare
from evosearch.spec.spec import load_spec

World = Callable[..., Path]


def spec(world: World, name: str = "sources", **changes: Any) -> Path:
    """A search over both experts and the base for each of the three layers."""
    layers = changes.pop("layers", [0, 3])
    hole = {"choices": ["./expert1", "./expert2", "./base"], "per": "layer"} | changes.pop("hole", {})
    slices = [{"sources": [{"model": hole, "layer_range": layers}]}]
    recipe = {"merge_method": "passthrough", "base_model": "./base", "slices": slices}
    data = {"budget": {"candidates": 8}, "optimizer": {"name": "random", "seed": 1, "start": "init"}}
    return world(name=name, **{"recipe": recipe, "baselines": {"scales": [0.3]}, **data, **changes})


def test_check_counts_its_dimensions(world: World) -> None:
    path = spec(world)
    found = check(path, False, Silent())
    assert (found.ok, found.problems) == (True, ())
    assert len(prepare(load_spec(path), Silent()).space.dimensions) == 3


@pytest.mark.parametrize("optimizer", ["random", "cat_cma", "tpe"])
def test_it_runs_to_the_gate_and_resumes(optimizer: str, world: World) -> None:
    options = {"population": 4} if optimizer != "random" else {}
    path = spec(world, optimizer={"name": optimizer, "seed": 1, "start": "init"} | options)
    report = run(path, Silent())
    assert report.candidates == CandidateCounts(8, 8, 0, 0)
    assert set(report.baselines) == {"base", "parent:0", "parent:1", "uniform", "scale:0.30"}
    assert all(baseline.score is not None for baseline in report.baselines.values())
    rows = leaderboard(load_spec(path).run_dir).rows
    genomes = [row.genome for row in rows if row.kind == "candidate"]
    assert set(genomes[0]) == {f"slices[0].model[layer {layer}]" for layer in range(3)}
    assert {label for genome in genomes for label in genome.values()} == {"expert1", "expert2", "base"}
    again = run(path, Silent())
    assert again.candidates.resumed == 8
    changes: dict[str, Any] = {"optimizer": {"name": optimizer, "seed": 1, "start": "init"} | options}
    more = run(spec(world, budget={"candidates": 12}, **changes), Silent())
    assert (more.candidates.proposed, more.candidates.failed, more.candidates.resumed) == (12, 0, 8)
    whole = spec(world, name="whole", budget={"candidates": 12}, **changes)
    run(whole, Silent())
    assert asked(path) == asked(whole)


def asked(path: Path) -> list[tuple[Any, str]]:
    """Genome and recipe of every proposed candidate."""
    run_dir = load_spec(path).run_dir
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        info = ledger.search_by_name(run_dir.name)
        assert info is not None
        found = [event.payload for event in ledger.events(info.search_id) if event.type == "asked"]
    return [(one["genome"], one["recipe_id"]) for one in found]


def test_a_candidate_exports_as_plain_slices_with_its_score(world: World) -> None:
    path = spec(world)
    report = run(path, Silent())
    assert report.best is not None
    out = path.parent / "out"
    export("sources", "recipe", out / "winner.yaml", report.best.candidate, False, Silent())
    export("sources", "mergekit", out / "mergekit.yaml", report.best.candidate, False, Silent())
    export("sources", "checkpoint", out / "model", report.best.candidate, False, Silent())
    recipe = files.load(out / "winner.yaml")
    assert recipe.merge_method == "passthrough"
    ranges = [source.layer_range for each in recipe.slices for source in each.sources]
    assert [one[0] for one in ranges] + [3] == [0] + [one[1] for one in ranges]
    models = [each.sources[0].model for each in recipe.slices]
    assert all(one != other for one, other in pairwise(models))
    for made in ("winner.yaml", "model"):
        found = score(str(out / made), path.parent / "suite.yaml", "search", None, Silent())
        assert found.score == pytest.approx(report.best.score, abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hole": {"choices": ["./expert1", "./missing"]}}, r"sources\[0\]\.model\.choices\[1\]: .*missing"),
        ({"layers": [0, 4]}, r"recipe\.slices\[0\]\.sources\[0\]\.model\.choices\[0\].*layers"),
        ({"hole": {"per": "tensor"}}, r"sources\[0\]\.model\.per"),
        ({"optimizer": {"name": "cma_es", "seed": 1, "start": "init"}}, r"optimizer\.name: cma_es takes only numbers"),
        ({"optimizer": {"name": "random", "start": "best_baseline"}}, r"optimizer\.start: .*no weight is searched"),
    ],
)
def test_a_mistake_names_file_and_key(changes: dict[str, Any], message: str, world: World) -> None:
    path = spec(world, **changes)
    with pytest.raises(InputError, match=rf"{path}: .*{message}"):
        prepare(load_spec(path), Silent())


def test_models_of_another_depth_are_refused_at_their_choice(world: World) -> None:
    path = spec(world, hole={"choices": ["./expert1", "./shallow.yaml"]})
    stack = "merge_method: passthrough\nslices:\n- sources: [{model: ./expert2, layer_range: [0, 2]}]\n"
    (path.parent / "shallow.yaml").write_text(stack)
    with pytest.raises(
        InputError, match=r"recipe\.slices\[0\]\.sources\[0\]\.model\.choices\[1\]: .*2 layers|layers 0"
    ):
        prepare(load_spec(path), Silent())
