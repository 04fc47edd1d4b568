"""An exported route can be rebuilt anywhere: the file includes the recipes that its hops name."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from evosearch.checkpoints.reader import Checkpoint
from evosearch.promotion.export_files import Origin, export
from evosearch.recipe import files
from evosearch.search.progress import Silent
from evosearch.service.merge import merge

World = Callable[..., Path]


@pytest.fixture
def route(world: World, tmp_path: Path) -> Path:
    """A route through a model and a merge of two, the second of which is itself a merge, each in its own file."""
    models = world().parent
    nested = tmp_path / "recipes"
    nested.mkdir()
    inner = {"merge_method": "linear", "models": [{"model": str(models / name)} for name in ("expert1", "expert2")]}
    inner["parameters"] = {"weight": 0.5}
    (nested / "inner.yaml").write_text(yaml.safe_dump(inner))
    outer = {"merge_method": "slerp", "base_model": str(models / "base"), "models": [{"model": "./inner.yaml"}]}
    outer["parameters"] = {"t": 0.3}
    (nested / "outer.yaml").write_text(yaml.safe_dump(outer))
    hops = [
        {"model": str(models / "base"), "layer": 0},
        {"model": "./outer.yaml", "layer": 1, "scale": 0.8},
        {"model": "./inner.yaml", "layer": 1, "scale": 1.1},
        {"model": str(models / "base"), "layer": 2},
    ]
    (nested / "route.yaml").write_text(yaml.safe_dump({"routing": {"hops": hops}}))
    return nested / "route.yaml"


def test_an_exported_route_needs_no_other_recipe_file(route: Path, tmp_path: Path) -> None:
    before = merge(route, tmp_path / "before", Silent())
    provenance = Origin("night", "5e" * 32, "17", before.recipe_id, {})
    out = export(files.load(route), "recipe", tmp_path / "elsewhere" / "winner.yaml", provenance)
    for name in ("inner.yaml", "outer.yaml", "route.yaml"):
        (route.parent / name).unlink()
    after = merge(out, tmp_path / "after", Silent())
    assert after.recipe_id == before.recipe_id
    assert after.weights_sha256 == before.weights_sha256
    assert after.tensors == len(Checkpoint.open(tmp_path / "after").tensors)
    assert Checkpoint.open(tmp_path / "after").shape.num_layers == 4
