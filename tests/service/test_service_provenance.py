"""Exported recipes are portable, and `merge` compares models and merged weights with what their files record."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import InputError
from evosearch.preflight.check import check
from evosearch.recipe import files
from evosearch.recipe.provenance import Provenance, pack, unpack
from evosearch.reporting.export import export
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Silent
from evosearch.service.merge import merge
from evosearch.service.run import run
from evosearch.setup.loading import read_search
from evosearch.spec.lookup import find

World = Callable[..., Path]
COMMIT = "ab" * 20


@pytest.fixture
def exported(exported_as: Callable[[str], Path]) -> Path:
    """The recipe of a candidate."""
    return exported_as("3")


def section(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(path.read_text())["provenance"]
    return data


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Rewrite a recipe's file."""
    data = yaml.safe_load(path.read_text())
    change(data)
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def test_the_file_states_everything_as_keys_and_no_path_of_this_machine(exported: Path, tmp_path: Path) -> None:
    text, found = exported.read_text(), section(exported)
    assert str(tmp_path) not in text
    assert [one["model"] for one in found["inputs"]] == ["../specs/base", "../specs/expert1", "../specs/expert2"]
    for one in found["inputs"]:
        folder = tmp_path / "specs" / Path(one["model"]).name
        assert one["content_sha256"] == Checkpoint.open(folder).content_sha256()
        assert {"config.json", "tokenizer.json"} <= one["files"].keys()
    with Ledger.open(find("night").ledger, read_only=True) as ledger:
        search_id, state = read_search(ledger, find("night"))
        card = state.cards[state.original(found["candidate"]), "search"]
        columns = ledger.columns(search_id, card.candidate, "search", card.sets)
    assert (found["search"], found["search_id"], found["seeds"]["optimizer"]) == ("night", search_id, 1)
    assert found["suite"]["digest"] == state.spec["suite"]["digest"]
    assert found["suite"]["file"] == "../specs/suite.yaml"
    assert found["suite"]["items"]["search"] == dict(card.sets)
    score = found["scores"]["search"]
    assert score["lower"] < score["value"] == card.score < score["upper"]
    assert score["baselines"].keys() >= {"base", "parent:0", "uniform"}
    for task, entry in score["tasks"].items():
        assert unpack(score["values"][task]) == tuple(columns[task][entry["metric"]])
    assert {"python", "torch", "machine"} <= found["versions"].keys()
    assert len(found["tensors"]) == len(Checkpoint.open(tmp_path / "specs" / "base").tensors)


def test_openings_are_stated_only_where_something_was_opened(exported: Path) -> None:
    """The candidate was not scored on test, and a search without an opening says nothing of openings."""
    found = section(exported)
    assert ("test_openings" in found) == ("test" in found["scores"])
    assert "0 time(s)" not in exported.read_text()


def test_a_moved_tree_gives_the_same_weights(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = merge(exported, tmp_path / "first", Silent())
    assert first.weights_sha256 == section(exported)["weights_sha256"]
    assert first.weights_sha256 == Checkpoint.open(tmp_path / "first").content_sha256()
    other = tmp_path / "elsewhere"
    other.mkdir()
    for name in ("specs", "winner"):
        (tmp_path / name).rename(other / name)
    monkeypatch.chdir(other)
    assert merge(Path("winner/best.yaml"), tmp_path / "second", Silent()).weights_sha256 == first.weights_sha256


def test_another_model_stops_the_merge_and_is_named(exported: Path, tmp_path: Path) -> None:
    weights = tmp_path / "specs" / "expert1" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    save_file(tensors, weights, {"format": "pt"})
    config = tmp_path / "specs" / "expert2" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_theta": 5000.0}))
    with pytest.raises(InputError) as error:
        merge(exported, tmp_path / "out", Silent())
    assert f"best.yaml: provenance: input {tmp_path}/specs/expert1: weights: recorded" in str(error.value)
    assert f"input {tmp_path}/specs/expert2/config.json: recorded" in str(error.value)
    assert "specs/base" not in str(error.value)
    assert not (tmp_path / "out").exists()
    problems = check(exported, True, Silent()).problems
    assert [str(one) for one in problems] == [str(one) for one in error.value.problems], "`check` says the same"


def test_other_weights_stop_the_merge_and_the_tensor_is_named(exported: Path, tmp_path: Path) -> None:
    def other_result(data: dict[str, Any]) -> None:
        data["provenance"]["weights_sha256"] = "0" * 64
        data["provenance"]["tensors"]["model.norm.weight"] = "1" * 64

    changed(exported, other_result)
    with pytest.raises(InputError, match=r"tensor model.norm.weight: recorded 111111111111, found") as error:
        merge(exported, tmp_path / "out", Silent())
    assert len(error.value.problems) == 1
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_an_edited_recipe_is_another_recipe(exported: Path, tmp_path: Path) -> None:
    changed(exported, lambda data: data["models"][0].update(parameters={"weight": 0.123}))
    with pytest.raises(InputError, match=r"recipe parameters: recorded .*remove the section `provenance`"):
        merge(exported, tmp_path / "out", Silent())
    changed(exported, lambda data: data.pop("provenance"))
    assert merge(exported, tmp_path / "out", Silent()).tensors > 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda found: found.update(weights="x"), "provenance.weights: unknown key"),
        (lambda found: found["inputs"][0].update(content_sha256="x"), r"provenance.inputs\[0\].content_sha256"),
        (lambda found: found["scores"]["search"].update(value="high"), "provenance.scores.search.value"),
    ],
)
def test_a_damaged_section_is_one_error_with_its_key(
    exported: Path, change: Callable[[dict[str, Any]], object], match: str
) -> None:
    changed(exported, lambda data: change(data["provenance"]))
    with pytest.raises(InputError, match=match):
        files.load_provenance(exported)
    assert files.load(exported).merge_method == "task_arithmetic", "the recipe itself is not affected"


def test_models_of_the_hub_are_named_by_commit(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    spec = world("hubbed", budget={"candidates": 6})
    stored = tmp_path / "hub" / "models--org--base"
    shutil.copytree((spec.parent / "base").resolve(), stored / "snapshots" / COMMIT)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(COMMIT)
    spec.write_text(spec.read_text().replace("./base", "org/base"))
    run(spec, Silent())
    export("hubbed", "recipe", tmp_path / "best.yaml", "3", False, Silent())
    data = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert data["base_model"] == f"org/base@{COMMIT}" == data["provenance"]["inputs"][0]["model"]
    assert merge(tmp_path / "best.yaml", tmp_path / "out", Silent()).weights_sha256


@pytest.mark.slow
def test_the_commands_of_lm_eval_repeat_the_metrics(exported: Path, tmp_path: Path) -> None:
    merge(exported, tmp_path / "out", Silent())
    score = section(exported)["scores"]["search"]
    (line,) = score["lm_eval"]
    line = line.replace("lm_eval", f"{sys.executable} -m lm_eval", 1)
    line += f" --device cpu --output_path {tmp_path / 'results'}"
    settings = {"MODEL": str(tmp_path / "out"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        line, shell=True, cwd=exported.parent, env=os.environ | settings, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (tmp_path / "results").rglob("results_*.json")
    results = json.loads(file.read_text())["results"]
    for task, entry in score["tasks"].items():
        (value,) = [number for key, number in results[f"w_{task}"].items() if key.partition(",")[0] == entry["metric"]]
        assert value == pytest.approx(entry["value"], abs=1e-9)


def test_values_are_packed_exactly_and_bounded() -> None:
    values = (0.0, 1.0, -0.1, float(torch.rand(1)), 1e-300)
    assert unpack(pack(values)) == values
    assert unpack(pack([])) == ()
    for text in ("", "!", pack(values)[:-8], "AAAA"):
        with pytest.raises(ValueError, match=r"."):
            unpack(text)


def test_the_section_reads_back_as_it_was_written(exported: Path) -> None:
    found = Provenance.model_validate(section(exported))
    assert found.to_dict() == section(exported)
