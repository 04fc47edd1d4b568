"""Preflight reports problems that would fail every candidate, or score another model than intended, before a search."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evosearch.errors import InputError, RecipeError, SpecError
from evosearch.merging.registry import specs
from evosearch.preflight.check import check
from evosearch.search.progress import Silent
from evosearch.search.space.space import SearchSpace
from evosearch.setup.executors import worker_count
from evosearch.spec.config import WorkersConfig
from evosearch.spec.spec import load_spec

World = Callable[..., Path]


def problems(spec: Path) -> str:
    return "\n".join(map(str, check(spec, dry_run=False, watcher=Silent()).problems))


def own_copy(spec: Path, name: str) -> Path:
    """Replace a model of the world by a copy that the test can damage."""
    link = spec.parent / name
    source = link.resolve()
    link.unlink()
    shutil.copytree(source, link)
    return link


def test_a_recipe_without_a_value_at_some_tensor(world: World) -> None:
    hole = {"low": 0.0, "high": 1.0}
    models = [{"model": f"./expert{i}", "parameters": {"weight": [{"filter": "mlp", "value": hole}]}} for i in (1, 2)]
    spec = world("gap", recipe={"merge_method": "task_arithmetic", "base_model": "./base", "models": models})
    assert "recipe.models[0].parameters.weight" in problems(spec)
    assert "no filter matches tensor" in problems(spec)


def test_a_config_that_transformers_does_not_take(world: World) -> None:
    spec = world()
    config = own_copy(spec, "base") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": "x"}))
    assert "config.json" in problems(spec)


def test_a_tokenizer_that_is_damaged(world: World) -> None:
    spec = world()
    file = own_copy(spec, "base") / "tokenizer.json"
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | {"model": {"type": "Other", "vocab": data["model"]["vocab"]}}))
    for name in ("expert1", "expert2"):
        shutil.copyfile(file, own_copy(spec, name) / "tokenizer.json")
    assert "no usable tokenizer" in problems(spec)


def test_a_parent_with_another_config_is_noted(world: World) -> None:
    class Listener(Silent):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

    spec = world()
    config = own_copy(spec, "expert2") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 0.01}))
    listener = Listener()
    check(spec, dry_run=False, watcher=listener)
    (told,) = [text for text in listener.notes if "its config has" in text]
    assert "expert2: its config has rms_norm_eps 0.01 instead of" in told


def test_nothing_is_searched_where_nothing_has_an_effect(world: World) -> None:
    spec = load_spec(world())
    template: dict[str, Any] = {**spec.template, "parameters": {"int8_mask": {"choices": [True, False]}}}
    from evosearch.checkpoints.reader import Checkpoint

    shape = Checkpoint.open(spec.file.parent / "base").shape
    with pytest.raises(RecipeError, match=r"parameters\.int8_mask: has no effect here"):
        SearchSpace.from_template(template, shape, specs(), "night.yaml: recipe")


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        ({"gpus_per_worker": 2}, r"workers\.gpus_per_worker: got 2, and this machine has no GPU"),
        ({"executor": "local", "device": "cuda"}, r"workers\.device: got 'cuda', and this machine has no GPU"),
    ],
)
def test_workers_that_are_not_available(workers: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(SpecError, match=message):
        worker_count(WorkersConfig.model_validate(workers))


def test_scales_that_would_share_a_name(world: World) -> None:
    with pytest.raises(InputError, match=r"baselines: two scales round to the same two decimals"):
        load_spec(world(baselines={"scales": [0.12, 0.125]}))


def test_a_ledger_without_a_file(world: World) -> None:
    assert "ledger" in problems(world(ledger="sqlite:///"))
