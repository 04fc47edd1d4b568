"""User mistakes: one message that names file and key, exit code 2, and nothing written."""

import json
import os
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

World = Callable[..., Path]


def change(spec: Path, *path: object, to: Any) -> None:
    """Set one key of a YAML file, however deep."""
    data = node = yaml.safe_load(spec.read_text())
    for key in path[:-1]:
        node = node[key]  # type: ignore[index]
    node[path[-1]] = to
    spec.write_text(yaml.safe_dump(data, sort_keys=False))


def own_copy(spec: Path, name: str) -> Path:
    """Replace a folder of the shared world by a real copy that may be damaged."""
    link = spec.parent / name
    source = link.resolve()
    link.unlink()
    shutil.copytree(source, link)
    return link


def misspelled_key(spec: Path) -> str:
    change(spec, "optimizer", "sigam", to=0.3)
    return r"optimizer\.sigam: cma_es has no option 'sigam'.*Did you mean 'sigma'\?"


def misspelled_parameter(spec: Path) -> str:
    change(spec, "recipe", "models", 1, "parameters", "wieght", to=0.3)
    return r"recipe\.models\[1\]\.parameters\.wieght.*task_arithmetic takes .*weight.*Did you mean 'weight'\?"


def misspelled_hole(spec: Path) -> str:
    change(spec, "recipe", "models", 0, "parameters", "weight", to={"low": 0, "hihg": 1})
    return r"recipe\.models\[0\]\.parameters\.weight\.hihg.*Did you mean 'high'\?"


def misspelled_method(spec: Path) -> str:
    change(spec, "recipe", "merge_method", to="task_arithmatic")
    return r"recipe\.merge_method: unknown method 'task_arithmatic'.*Did you mean 'task_arithmetic'\?"


def unknown_optimizer(spec: Path) -> str:
    change(spec, "optimizer", "name", to="cma_se")
    return r"optimizer\.name: unknown optimizer 'cma_se'.*Did you mean 'cma_es'\?"


def density_out_of_range(spec: Path) -> str:
    change(spec, "recipe", "merge_method", to="ties")
    change(spec, "recipe", "models", 0, "parameters", "density", to=1.2)
    return r"recipe\.models\[0\]\.parameters\.density.*1\.2.*\(0, 1\]"


def density_hole_out_of_range(spec: Path) -> str:
    change(spec, "recipe", "merge_method", to="ties")
    change(spec, "recipe", "models", 0, "parameters", "density", to={"low": 0.2, "high": 1.2})
    return r"recipe\.models\[0\]\.parameters\.density.*1\.2.*\(0, 1\]"


def missing_model(spec: Path) -> str:
    change(spec, "recipe", "models", 0, "model", to="./nowhere")
    return r"nowhere"


def different_depth(spec: Path) -> str:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = own_copy(spec, "expert2")
    config = LlamaConfig.from_pretrained(folder)
    config.num_hidden_layers = 2
    LlamaForCausalLM(config).save_pretrained(folder)
    return r"expert2.*2 layers|layers.*expert2"


def different_vocabulary(spec: Path) -> str:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = own_copy(spec, "expert2")
    config = LlamaConfig.from_pretrained(folder)
    config.vocab_size += 5
    LlamaForCausalLM(config).save_pretrained(folder)
    return r"expert2.*vocab|vocab.*expert2"


def truncated_weights(spec: Path) -> str:
    file = own_copy(spec, "expert1") / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    return r"expert1/model\.safetensors"


def missing_task(spec: Path) -> str:
    suite = own_suite(spec)
    change(suite, "tasks", 0, "task", to="w_choise")
    return r"suite\.yaml: tasks\[0\]\.task.*w_choise.*w_choice"


def missing_data(spec: Path) -> str:
    suite = own_suite(spec)
    (suite.parent / "tasks" / "w_generate.jsonl").unlink()
    return r"suite\.yaml: tasks\[1\]\.task.*w_generate\.jsonl"


def split_larger_than_data(spec: Path) -> str:
    suite = own_suite(spec)
    change(suite, "documents", "test", to=300)
    return r"suite\.yaml: .*documents.*300"


def unknown_metric(spec: Path) -> str:
    suite = own_suite(spec)
    change(suite, "tasks", 0, "metric", to="accuracy")
    return r"suite\.yaml: tasks\[0\]\.metric.*accuracy.*acc"


def unwritable_ledger(spec: Path) -> str:
    blocked = spec.parent / "blocked"
    blocked.write_text("a file where a folder should be")
    change(spec, "ledger", to=f"sqlite:///{blocked}/ledger.db")
    return r"ledger: .*blocked"


def not_a_ledger(spec: Path) -> str:
    other = spec.parent / "other.db"
    other.write_text("not a database, and it has to stay as it is")
    change(spec, "ledger", to=f"sqlite:///{other}")
    return r"ledger: .*other\.db"


def no_budget(spec: Path) -> str:
    change(spec, "budget", to={})
    return r"budget: .*candidates, hours"


def no_hole(spec: Path) -> str:
    for index in (0, 1):
        change(spec, "recipe", "models", index, "parameters", "weight", to=0.5)
    return r"recipe.*hole"


def route(spec: Path) -> str:
    change(spec, "recipe", to={"routing": {"hops": [{"model": "./base", "layer": 0}]}})
    return r"recipe: nothing to search: the recipe has no hole"


def own_suite(spec: Path) -> Path:
    own_copy(spec, "tasks")
    link = spec.parent / "suite.yaml"
    text = link.read_text()
    link.unlink()
    link.write_text(text)
    return link


MISTAKES = (
    misspelled_key,
    misspelled_parameter,
    misspelled_hole,
    misspelled_method,
    unknown_optimizer,
    density_out_of_range,
    density_hole_out_of_range,
    missing_model,
    different_depth,
    different_vocabulary,
    truncated_weights,
    missing_task,
    missing_data,
    split_larger_than_data,
    unknown_metric,
    unwritable_ledger,
    not_a_ledger,
    no_budget,
    no_hole,
    route,
)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_run_says_what_is_wrong_and_writes_nothing(
    world: World, evosearch: Callable[..., tuple[int, str, str]], mistake: Callable[[Path], str], tmp_path: Path
) -> None:
    import re

    spec = world()
    pattern = mistake(spec)
    before = {path: path.read_bytes() for path in spec.parent.glob("*.db")}
    code, out, err = evosearch("run", spec)
    message = " ".join(err.split())
    assert code == 2, message
    assert out == ""
    assert re.search(pattern, message), message
    assert spec.parent.name in message or "specs/" in message, "the message names the file"
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()
    assert {path: path.read_bytes() for path in spec.parent.glob("*.db")} == before


def test_check_lists_problems_of_several_kinds_at_once(
    world: World, evosearch: Callable[..., tuple[int, str, str]]
) -> None:
    spec = world()
    unwritable_ledger(spec)
    different_depth(spec)
    code, out, _ = evosearch("check", spec, "--json")
    assert code == 2
    result = json.loads(out)
    assert not result["ok"]
    places = [problem["where"] for problem in result["problems"]]
    assert any("ledger" in place for place in places)
    assert any("expert2" in problem["what"] + problem["where"] for problem in result["problems"])


def test_check_of_a_sound_spec_forecasts(world: World, evosearch: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = evosearch("check", world(), "--json")
    result = json.loads(out)
    assert code == 0, result
    assert result["ok"]
    forecast = result["forecast"]
    assert forecast["seconds_per_candidate"] > 0
    # Three plain baselines and two scales, of which one is scored on test; two finalists, and the answer
    counted = {"candidates": 18, "search": 6 + 1, "validation": 2 + 1 + 4 + 2, "test": 1 + 4 + 1}
    assert forecast["cost"]["evaluations"] == counted | {"placebo": 0, "training": 0, "gradients": 0}
    assert forecast["search_hours"] >= (18 + 6) / forecast["candidates_per_hour"]
    assert forecast["total_hours"] > forecast["search_hours"] + (9 + 6) / forecast["candidates_per_hour"]
    assert datetime.fromisoformat(forecast["ends"]).utcoffset() is not None
    assert "price" not in forecast
    assert result["memory"]["parents_gib"] > 0


def test_error_as_json(world: World, evosearch: Callable[..., tuple[int, str, str]]) -> None:
    spec = world()
    misspelled_method(spec)
    code, out, _ = evosearch("run", spec, "--json")
    error = json.loads(out)["error"]
    assert code == 2
    assert error["where"].endswith("world.yaml: recipe.merge_method")
    assert "Known methods" in error["allowed"]


def test_wrong_usage_exits_2(evosearch: Callable[..., tuple[int, str, str]]) -> None:
    assert evosearch("run")[0] == 2
    assert evosearch("frobnicate")[0] == 2
    assert evosearch("leaderboard", "no-such-search")[0] == 2
