"""Searches over adapters, recipes as models, stacked layers, and models with several vocabularies."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import InputError
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.merging.registry import specs
from evosearch.preflight.check import check
from evosearch.recipe import files
from evosearch.reporting.export import export
from evosearch.search.progress import Silent
from evosearch.search.space.space import SearchSpace
from evosearch.service.merge import merge
from evosearch.service.run import RunReport, run
from evosearch.service.score import score
from evosearch.setup.prepare import prepare
from evosearch.spec.spec import load_spec

World = Callable[..., Path]
BUDGET = {"candidates": 6}
DOWN = "model.layers.1.mlp.down_proj.weight"


def recipe(*models: str, **changes: Any) -> dict[str, Any]:
    hole = {"low": 0.0, "high": 1.5}
    entries = [{"model": model, "parameters": {"weight": hole}} for model in models]
    return {"merge_method": "task_arithmetic", "base_model": "./base", "models": entries} | changes


def make_adapter(folder: Path, seed: int, *modules: str) -> None:
    """A LoRA of rank 2 on the world's base."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    targets = list(modules or ("q_proj", "down_proj"))
    config = LoraConfig(r=2, lora_alpha=4, target_modules=targets, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft asks transformers by a name that is going out of use
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder.parent / "base"), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)


def searched(spec: Path) -> RunReport:
    report = run(spec, Silent())
    assert report.candidates.scored == report.candidates.proposed == BUDGET["candidates"]
    assert report.gate is not None
    return report


def test_adapters_are_searched_and_exported_as_they_are_named(world: World, tmp_path: Path) -> None:
    spec = world("lora", recipe=recipe("./base+./one", "./base+./two"), budget=BUDGET)
    for seed, name in enumerate(("one", "two")):
        make_adapter(spec.parent / name, seed)
    searched(spec)
    export("lora", "recipe", tmp_path / "winner.yaml", "3", False, Silent())
    winner = files.load(tmp_path / "winner.yaml")
    base = str(spec.parent / "base")
    assert winner.parents == (f"{base}+{spec.parent / 'one'}", f"{base}+{spec.parent / 'two'}")
    export("lora", "mergekit", tmp_path / "mergekit.yaml", "3", False, Silent())
    text = (tmp_path / "mergekit.yaml").read_text()
    assert "--lora-merge-dtype float32" in text
    assert yaml.safe_load(text)["models"][1]["model"] == winner.parents[0]


class Told(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def with_hole(spec: Path, **hole: Any) -> dict[str, Any]:
    """A recipe of two adapters, each of which changes one kind of projection."""
    for seed, (name, module) in enumerate((("one", "q_proj"), ("two", "down_proj"))):
        make_adapter(spec.parent / name, seed, module)
    weight = {"low": 0.0, "high": 1.5, **hole}
    models = [{"model": f"./base+./{name}", "parameters": {"weight": weight}} for name in ("one", "two")]
    return recipe() | {"models": models, "parameters": {"normalize": True}}


@pytest.mark.parametrize("per", ["module", "tensor"])
def test_numbers_of_tensors_that_no_model_changes_are_not_searched(world: World, tmp_path: Path, per: str) -> None:
    spec, watcher = load_spec(world("lora", recipe=with_hole(world("lora"), per=per))), Told()
    prepared = prepare(spec, watcher)
    space, models = prepared.space, prepared.models
    layers, named = range(models.shape.num_layers), [dimension.name for dimension in space.dimensions]
    changed = [f"{module} {layer}" for layer in layers for module in ("q_proj", "down_proj")]
    # Of both models: with `normalize`, a weight where only the other adapter changes a tensor has an effect
    assert sorted(named) == sorted(f"models[{index}].weight[{key}]" for index in (0, 1) for key in changed)
    every = SearchSpace.from_template(spec.template, models.shape, specs(), spec.where)
    count = len(every.dimensions)
    assert f"{count - len(named)} of {count} numbers are not searched, since no model changes their" in str(
        watcher.notes
    )
    genome = {name: 0.1 + place / len(named) for place, name in enumerate(named)}
    others = {d.name: 0.7 for d in every.dimensions if d.name not in genome}
    for out, filled in (("own", space.fill(genome)), ("every", every.fill(genome | others))):
        write_checkpoint(filled, models.checkpoints, tmp_path / out, models.donor)
    own, full = (Checkpoint.open(tmp_path / out, out) for out in ("own", "every"))
    assert all(torch.equal(own.load(name), full.load(name)) for name in own.tensors)
    assert not torch.equal(own.load(DOWN), models.checkpoints[models.donor].load(DOWN))


def test_a_search_over_unchanged_tensors_is_refused(world: World) -> None:
    data = with_hole(world("lora"))
    for model in data["models"]:
        weight = model["parameters"]["weight"]
        model["parameters"]["weight"] = [{"filter": "embed_tokens", "value": weight}, {"value": 0.5}]
    with pytest.raises(InputError, match=r"nothing to search: no number has an effect, since no model changes"):
        prepare(load_spec(world("lora", recipe=data)), Silent())


def test_a_recipe_is_a_parent_like_any_other_and_its_change_is_noticed(world: World) -> None:
    spec = world("nested", recipe=recipe("./soup.yaml", "./expert2"), budget=BUDGET)
    soup = {
        "merge_method": "linear",
        "models": [{"model": f"./{name}", "parameters": {"weight": 1}} for name in ("base", "expert1")],
    }
    (spec.parent / "soup.yaml").write_text(yaml.safe_dump(soup))
    searched(spec)
    soup["models"][0]["parameters"]["weight"] = 2
    (spec.parent / "soup.yaml").write_text(yaml.safe_dump(soup))
    with pytest.raises(InputError, match=r"soup\.yaml"):
        run(spec, Silent())


def test_stacked_layers_are_compared_with_the_full_models(world: World, tmp_path: Path) -> None:
    hole = {"low": 0.5, "high": 1.5}
    stack = {
        "merge_method": "linear",
        "base_model": "./base",
        "slices": [
            {"sources": [{"model": "./expert1", "layer_range": [0, 2], "parameters": {"weight": 1}}]},
            {
                "sources": [
                    {"model": "./expert1", "layer_range": [1, 3], "parameters": {"weight": hole}},
                    {"model": "./expert2", "layer_range": [1, 3], "parameters": {"weight": hole}},
                ]
            },
        ],
    }
    spec = world("stack", recipe=stack, budget=BUDGET)
    report = searched(spec)
    assert report.baselines["base"].score is not None
    assert report.baselines["parent:1"].score is not None
    assert {row.role for row in report.gate.comparisons} >= {"base", "parent"}  # type: ignore[index]
    export("stack", "checkpoint", tmp_path / "out", "3", False, Silent())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 4
    suite = spec.parent / "suite.yaml"
    row = next(row for row in report.leaderboard if row.candidate == "3")
    assert score(str(tmp_path / "out"), suite, "search", None, Silent()).score == pytest.approx(row.score)


def test_one_vocabulary_for_all(world: World, tmp_path: Path) -> None:
    spec = world("union", recipe=recipe("./expert1", "./expert2", tokenizer_source="union"), budget=BUDGET)
    searched(spec)
    plain = world("plain", recipe=recipe("./expert1", "./expert2"), budget=BUDGET)
    one, other = ({row.candidate: row.score for row in run(path, Silent()).leaderboard} for path in (spec, plain))
    assert one["base"] == other["base"]  # the vocabularies are one already: nothing but the ids of recipes differs


def test_pickles_only_where_they_are_allowed(world: World, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    spec = world("pickled", recipe=recipe("./expert1", "./old"), budget=BUDGET)
    old, source = spec.parent / "old", (spec.parent / "expert2").resolve()
    old.mkdir()
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            (old / path.name).write_bytes(path.read_bytes())
    torch.save(load_file(source / "model.safetensors"), old / "pytorch_model.bin")
    found = check(spec, dry_run=False, watcher=Silent())
    assert [problem.where for problem in found.problems] == [f"{spec}: recipe.models[1].model"]
    assert "--allow-pickle" in found.problems[0].next
    assert check(spec, dry_run=False, watcher=Silent(), allow_pickle=True).ok
    report = run(spec, Silent(), allow_pickle=True)
    assert report.candidates.scored == 6
    fixed = tmp_path / "fixed.yaml"
    fixed.write_text(
        yaml.safe_dump({"merge_method": "linear", "models": [{"model": str(old), "parameters": {"weight": 1}}]})
    )
    with pytest.raises(InputError, match="--allow-pickle"):
        merge(fixed, tmp_path / "out", Silent())
    assert not (tmp_path / "out").exists()
    merge(fixed, tmp_path / "out", Silent(), allow_pickle=True)
    assert (tmp_path / "out" / "model.safetensors").is_file()
    suite = spec.parent / "suite.yaml"
    with pytest.raises(InputError, match="--allow-pickle"):
        score(str(old), suite, "search", None, Silent())
    again = score(str(old), suite, "search", None, Silent(), allow_pickle=True)
    assert again.score == score(str(source), suite, "search", None, Silent()).score


@pytest.mark.parametrize("command", ["check", "run", "merge", "score", "export"])
def test_every_command_that_reads_models_takes_the_option(command: str) -> None:
    from typer.main import get_command

    from evosearch.cli.main import app

    options = [name for parameter in get_command(app).commands[command].params for name in parameter.opts]  # type: ignore[attr-defined]
    assert "--allow-pickle" in options


def test_the_export_has_the_scored_config(world: World, tmp_path: Path) -> None:
    spec = world("config", recipe=recipe("./expert1", "./expert2"), budget=BUDGET)
    searched(spec)
    link = spec.parent / "base"
    source = link.resolve()
    link.unlink()
    shutil.copytree(source, link)
    config = json.loads((link / "config.json").read_text())
    (link / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    with pytest.raises(InputError, match=r"base: config\.json has changed since the search"):
        export("config", "checkpoint", tmp_path / "out", "3", False, Silent())
    assert not (tmp_path / "out").exists()
