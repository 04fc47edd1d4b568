"""Preparation of a search over routes: models, baselines, start, memory."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.checkpoints.disk_space import GIB
from evosearch.errors import CheckpointError, SpecError
from evosearch.preflight.check import check
from evosearch.recipe.schema import Recipe
from evosearch.search.progress import Silent
from evosearch.setup.executors import worker_config
from evosearch.setup.prepare import Prepared, prepare
from evosearch.spec.spec import load_spec

World = Callable[..., Path]


def searched(baselines: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Changes that turn the small world's spec into a search over routes."""
    hole = {"search": True, "models": ["./expert1", "./expert2"], "repeats": 1, "max_hops": 5, "encoding": "threshold"}
    return {
        "recipe": {"routing": hole | changes},
        "optimizer": {"name": "random", "seed": 1},
        "baselines": {"base_model": "./base", "scales": [0.3]} if baselines is None else baselines,
    }


def prepared(spec: Path) -> Prepared:
    return prepare(load_spec(spec), Silent())


def other_model(spec: Path, name: str, **changes: Any) -> None:
    """A random model next to the spec, with changes to the others' config."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    source, out = (spec.parent / "base").resolve(), spec.parent / name
    shutil.copytree(source, out)
    (out / "model.safetensors").unlink()
    config = AutoConfig.from_pretrained(source, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        AutoModelForCausalLM.from_config(config).save_pretrained(out)


def test_a_search_over_routes_is_prepared(world: World) -> None:
    spec = world(**searched(encoding="categorical"))
    found = prepared(spec)
    folder = spec.parent.absolute()
    assert found.models.references == tuple(f"{folder}/{name}" for name in ("expert1", "expert2", "base"))
    assert found.models.also == (f"{folder}/base",)
    assert found.models.depths == dict.fromkeys(found.models.references, 3)
    assert found.example.routing is not None
    assert [(hop.model, hop.layer) for hop in found.example.routing.hops] == [
        (f"{folder}/expert1", n) for n in (0, 1, 2)
    ]
    assert {baseline.name: baseline.skipped for baseline in found.baselines} == dict.fromkeys(
        ("base", "parent:0", "parent:1", "uniform", "scale:0.30")
    )
    assert found.models.identify(found.example) != found.models.identify(found.largest)
    merged = prepared(world("merged", budget={"candidates": 6}))
    assert found.tokens == merged.tokens  # prompts are those of the first model, whatever passes in between
    config = worker_config(found.spec.config.workers, found.models, found.suite, "float32")
    assert config.also == (f"{folder}/base",)
    frame = Recipe.model_validate(config.recipe)
    assert frame.routing is not None
    assert [(hop.model, hop.layer) for hop in frame.routing.hops] == [(f"{folder}/expert{n}", 0) for n in (1, 2)]


def test_without_a_base_only_baselines_without_one_apply(world: World) -> None:
    found = prepared(world(**searched(baselines={})))
    assert {baseline.name for baseline in found.baselines if baseline.recipe} == {"parent:0", "parent:1", "uniform"}
    assert found.models.also == ()


def test_models_of_baselines_change_only_the_identity_of_searches_that_name_them(world: World) -> None:
    assert set(load_spec(world(baselines={"scales": [0.3]})).identity()["baselines"]) == {"scales"}
    one, other = (
        load_spec(world(f"n{i}", **searched(baselines=c))) for i, c in enumerate(({}, {"base_model": "./base"}))
    )
    assert "baselines" not in one.identity()
    assert other.identity()["baselines"]


def test_models_of_other_depth_are_routed_and_not_averaged(world: World) -> None:
    spec = world(**searched(models=["./expert1", "./deep"], encoding="categorical"))
    other_model(spec, "deep", num_hidden_layers=4)
    found = prepared(spec)
    assert [d.name for d in found.space.dimensions if d.choices] == [
        *("include[1 expert1:1]", "include[1 expert1:2]"),
        *(f"include[1 deep:{layer}]" for layer in range(4)),
    ]
    skipped = {baseline.name: baseline.skipped for baseline in found.baselines if baseline.skipped}
    assert skipped == dict.fromkeys(("uniform", "scale:0.30"), "the models have different layers")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 16}, r"recipe\.routing\.models\[1\]: .*other' cannot be in one route: .*×32.*×16"),
        ({"vocab_size": 40}, r"cannot be in one route: vocabularies of \d+ and 40 tokens"),
    ],
)
def test_models_of_other_width_or_vocabulary_are_refused(changes: dict[str, Any], said: str, world: World) -> None:
    spec = world(**searched(models=["./expert1", "./other"]))
    other_model(spec, "other", **changes)
    with pytest.raises(CheckpointError, match=said):
        prepared(spec)


def test_a_base_for_baselines_that_does_not_fit_is_refused(world: World) -> None:
    spec = world(**searched(baselines={"base_model": "./wide"}))
    other_model(spec, "wide", hidden_size=64)
    with pytest.raises(CheckpointError, match=rf"^{spec}: baselines: .*wide.* cannot be "):
        prepared(spec)
    spec = world("missing", **searched(baselines={"base_model": "./nowhere"}))
    with pytest.raises(CheckpointError, match=r"nowhere"):
        prepared(spec)


@pytest.mark.parametrize("start", ["best_baseline", "parents"])
def test_a_route_cannot_start_from_weights(start: str, world: World) -> None:
    spec = searched()
    spec["optimizer"]["start"] = start
    said = rf"optimizer\.start: got '{start}', which sets weights of parents, and no weight is searched"
    with pytest.raises(SpecError, match=said):
        prepared(world(**spec))


def test_an_optimizer_without_categories_names_another_encoding_s_dimension(world: World) -> None:
    spec = searched(encoding="categorical") | {"optimizer": {"name": "cma_es"}}
    with pytest.raises(SpecError, match=r"optimizer\.name: cma_es takes only numbers, but include\[1 expert1:1\]"):
        prepared(world(**spec))


def test_memory_grows_by_each_hops_own_tensors(world: World) -> None:
    needed = []
    for hops in (3, 5):
        found = check(world(f"hops{hops}", **searched(max_hops=hops, baselines={})), False, Silent())
        assert found.problems == ()
        needed.append(found.memory["resident_gib"] * GIB / 2)  # a baseline needs a second resident model
    o_proj, down_proj = 32 * 32, 32 * 48
    assert needed[1] - needed[0] == pytest.approx(2 * 4 * (o_proj + down_proj))
    base = prepared(world("hops3", **searched(max_hops=3, baselines={})))
    merged = base.models.live_numbers(base.baselines[1].recipe)  # type: ignore[arg-type]
    layers = sum(2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32 for _ in range(3))
    assert needed[0] == pytest.approx(4 * (merged + layers - 3 * (o_proj + down_proj)))


def test_a_route_is_checked_against_its_models(world: World, tmp_path: Path) -> None:
    folder = world().parent
    hops: list[dict[str, Any]] = [{"model": "./base", "layer": 0}, {"model": "./expert1", "layer": 2, "scale": 0.9}]
    recipe = folder / "route.yaml"
    recipe.write_text(yaml.safe_dump({"routing": {"hops": hops}, "out_dtype": "bfloat16"}))
    found = check(recipe, False, Silent())
    assert (found.problems, found.notes) == ((), ())
    assert found.memory["resident_gib"] > 0
    hops[1]["layer"] = 3
    recipe.write_text(yaml.safe_dump({"routing": {"hops": hops}}))
    (problem, *_) = check(recipe, False, Silent()).problems
    assert problem.where.endswith("routing.hops[1].layer")
    assert problem.what == "got 3"
    assert "layers 0 to 2" in problem.allowed
    recipe.write_text(json.dumps({"routing": {"hops": hops}, "base_model": "./base"}))
    (problem, *_) = check(recipe, False, Silent()).problems
    assert problem.where.endswith("base_model")


def test_a_merge_cannot_start_from_a_baseline_of_other_models(world: World) -> None:
    spec = world(baselines={"models": ["./base", "./expert1", "./other"], "scales": [0.3]})
    other_model(spec, "other")
    said = r"optimizer\.start: got 'best_baseline', and this search has no such baseline: it is made of other models"
    with pytest.raises(SpecError, match=said):
        prepared(spec)
    spec = world("own", baselines={"models": ["./expert1"], "scales": [0.3]})
    found = {baseline.name: baseline.weights for baseline in prepared(spec).baselines if baseline.recipe}
    assert found == {"base": (0.0, 0.0), "parent:0": (1.0, 0.0), "parent:1": (0.0, 1.0), "scale:0.30": (0.3, 0.0)}
