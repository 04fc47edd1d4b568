"""Lineage check of real checkpoints: by check, merge and run, for bases, pairs, adapters and nested recipes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from evosearch.checkpoints.adapters.adapted_model import apply_adapter
from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.rows import rows
from evosearch.recipe.schema import Recipe
from evosearch.setup import lineage
from evosearch.setup.lineage import compare, relations

Program = Callable[..., tuple[int, str, str]]
World = Callable[..., Path]


@pytest.fixture
def folder(world: World) -> Path:
    """The world's folder with `stranger`, whose weights are independent of the others'."""
    home = world().parent
    shutil.copytree((home / "base").resolve(), home / "stranger")
    with safe_open(home / "stranger" / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    draw = torch.Generator().manual_seed(7)
    for name, tensor in tensors.items():
        if tensor.dim() > 1:
            tensors[name] = 0.2 * torch.randn(tensor.shape, generator=draw)
    save_file(tensors, home / "stranger" / "model.safetensors", {"format": "pt"})
    return home


def write(folder: Path, name: str = "recipe", **changes: Any) -> Path:
    data = {
        "merge_method": "task_arithmetic",
        "base_model": "./base",
        "models": [{"model": f"./{model}", "parameters": {"weight": 0.5}} for model in ("expert1", "stranger")],
    } | changes
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in data.items() if value is not None}))
    return path


def test_merge_refuses_an_unrelated_model_with_its_figures(folder: Path, evosearch: Program, tmp_path: Path) -> None:
    path = write(folder)
    code, out, err = evosearch("merge", path, tmp_path / "out", "--json")
    assert code == 2
    error = json.loads(out)["error"]
    assert error["where"] == f"{path}: models[1].model"
    assert "relative change 1.4" in error["what"]
    assert "cosine" in error["what"]
    assert "'expert1'" in error["what"] or "expert1" in error["what"]
    assert "--allow-unrelated" in error["next"]
    assert not (tmp_path / "out").exists()
    assert "stranger" in err


def test_the_flag_goes_on(folder: Path, evosearch: Program, tmp_path: Path) -> None:
    code, _, err = evosearch("merge", write(folder), tmp_path / "out", "--allow-unrelated")
    assert code == 0, err
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_check_lists_it_and_the_flag_takes_it_off_the_list(folder: Path, evosearch: Program) -> None:
    path = write(folder)
    code, out, _ = evosearch("check", path, "--json")
    problems = json.loads(out)["problems"]
    assert code == 2
    assert [problem["where"] for problem in problems] == [f"{path}: models[1].model"]
    assert evosearch("check", path, "--allow-unrelated")[0] == 0


def test_a_wrong_base_is_named(folder: Path, evosearch: Program) -> None:
    models = [{"model": f"./expert{index}", "parameters": {"weight": 0.5}} for index in (1, 2)]
    code, out, _ = evosearch("check", write(folder, base_model="./stranger", models=models), "--json")
    problems = json.loads(out)["problems"]
    assert code == 2
    assert [problem["where"].rpartition(": ")[2] for problem in problems] == ["models[0].model", "models[1].model"]
    assert all("check base_model" in problem["next"] for problem in problems)


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_without_a_base_models_are_compared_with_each_other(
    method: str, folder: Path, evosearch: Program, tmp_path: Path
) -> None:
    own = {"linear": {"weight": 0.5}, "slerp": {}}[method]
    shared = {"t": 0.5} if method == "slerp" else None

    def recipe(*names: str) -> Path:
        models = [{"model": f"./{name}", "parameters": own} for name in names]
        base = f"./{names[0]}" if method == "slerp" else None
        return write(folder, "pair", merge_method=method, base_model=base, models=models, parameters=shared)

    assert evosearch("merge", recipe("expert1", "expert2"), tmp_path / "good")[0] == 0
    code, _, err = evosearch("merge", recipe("expert1", "stranger"), tmp_path / "bad")
    assert code == 2
    assert "relative change" in err


def test_a_nested_recipe_is_checked_too(folder: Path, evosearch: Program, tmp_path: Path) -> None:
    inner = [{"model": f"./{name}", "parameters": {"weight": 1.0}} for name in ("expert1", "stranger")]
    write(folder, "inner", merge_method="linear", base_model=None, models=inner)
    outer = [{"model": name, "parameters": {"weight": 1.0}} for name in ("./inner.yaml", "./expert2")]
    path = write(folder, "outer", merge_method="linear", base_model=None, models=outer)
    code, _, err = evosearch("merge", path, tmp_path / "out")
    assert code == 2
    assert "inner.yaml: models[1].model" in err


def test_run_refuses_before_anything_is_written(folder: Path, world: World, evosearch: Program, tmp_path: Path) -> None:
    spec = yaml.safe_load(world().read_text())
    spec["recipe"]["models"][1]["model"] = "./stranger"
    path = folder / "unrelated.yaml"
    path.write_text(yaml.safe_dump(spec))
    code, _, err = evosearch("run", path)
    assert code == 2
    assert "recipe.models[1].model" in err
    assert not list((tmp_path / "runs").rglob("*.db"))
    assert evosearch("check", path, "--no-dry-run", "--allow-unrelated")[0] == 0


def test_routes_and_single_models_are_not_compared() -> None:
    one = {"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": 1.0}}]}
    assert relations(Recipe.model_validate(one)) == ()
    route = {"routing": {"hops": [{"model": "a", "layer": 0}, {"model": "b", "layer": 0}]}}
    assert relations(Recipe.model_validate(route)) == ()
    two = one | {"models": [*one["models"], {"model": "b", "parameters": {"weight": 1.0}}], "base_model": "donor"}
    (relation,) = relations(Recipe.model_validate(two))
    assert (relation.base, dict(relation.models), relation.is_base) == ("a", {"b": "models[1].model"}, False)


def test_the_sample_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of elements that are read does not grow with the models."""
    read: list[int] = []

    def counted(checkpoint: Checkpoint, name: str, start: int, stop: int, most: int) -> torch.Tensor | None:
        found = rows(checkpoint, name, start, stop, most)
        read.append(0 if found is None else found.numel())
        return found

    monkeypatch.setattr(lineage, "rows", counted)
    monkeypatch.setattr(lineage, "MOST_ELEMENTS", 64)
    base, stranger = (Checkpoint.open(folder / name) for name in ("base", "stranger"))
    (found,) = compare(base, [stranger])
    assert not found.related
    assert max(read) <= 64
    assert 2 <= len(read) <= 2 * lineage.MOST_TENSORS
    assert sum(lineage.SHARES.values()) == lineage.MOST_TENSORS


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of peft
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "GPT2LMHeadModel"])
def test_rows_of_an_adapter_are_those_of_the_applied_tensor(
    architecture: str, random_model: Callable[..., Path], tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    more = {"n_embd": 32, "n_layer": 2, "n_head": 2} if architecture.startswith("GPT2") else {}
    base = random_model(architecture, **more)
    targets = ["c_attn"] if more else ["q_proj", "down_proj"]
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=3, target_modules=targets, init_lora_weights=False, fan_in_fan_out=bool(more)),
    )
    model.save_pretrained(tmp_path / "adapter")
    adapted = apply_adapter(Checkpoint.open(base), tmp_path / "adapter", "adapted")
    changed = [name for name in adapted.computed if adapted.low_rank(name)]
    assert changed
    for name in changed:
        found = rows(adapted, name, 5, 17, 0)
        assert found is not None
        torch.testing.assert_close(found, adapted.load(name)[5:17], rtol=1e-6, atol=1e-6)


def test_a_model_that_is_matched_with_the_base_first_may_be_unrelated(
    folder: Path, evosearch: Program, tmp_path: Path
) -> None:
    matched = write(folder, "matched", merge_method="rebasin_weights", models=[{"model": "./stranger"}])
    code, _, err = evosearch("merge", matched, tmp_path / "matched")
    assert code == 0, err
    models: list[dict[str, Any]] = [
        {"model": f"./{model}", "parameters": {"weight": 0.5}} for model in ("expert1", "matched.yaml")
    ]
    code, _, err = evosearch("merge", write(folder, models=models), tmp_path / "out")
    assert code == 0, err
    models.append({"model": "./stranger", "parameters": {"weight": 0.5}})
    code, _, err = evosearch("merge", write(folder, models=models), tmp_path / "no")
    assert code == 2, "the stranger itself is still refused"
    assert "rebasin_weights" in err
