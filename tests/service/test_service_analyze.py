"""`evosearch analyze`: figures of real checkpoints, scores along paths, without parents, calibration, wrong options."""

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

Program = Callable[..., tuple[int, str, str]]
MODELS = ("expert1", "expert2")


@pytest.fixture
def home(world: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = world().parent
    monkeypatch.chdir(folder)
    return folder


def recipe(folder: Path, **changes: Any) -> Path:
    data = {
        "merge_method": "task_arithmetic",
        "base_model": "./base",
        "models": [{"model": f"./{name}", "parameters": {"weight": 0.4}} for name in MODELS],
    } | changes
    path = folder / "mean.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def analyzed(evosearch: Program, *arguments: object) -> dict[str, Any]:
    code, out, err = evosearch("analyze", *arguments, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_figures_are_those_of_the_tensors(home: Path, evosearch: Program) -> None:
    found = analyzed(evosearch, recipe(home))["weights"]
    base, *others = (load_file(home / name / "model.safetensors") for name in ("base", *MODELS))
    assert [row["name"] for row in found["tensors"]] == [row["name"] for row in found["tensors"] if row["name"] in base]
    assert len(found["tensors"]) == len(base)
    for row in found["tensors"]:
        name = row["name"]
        deltas = [each[name].double() - base[name].double() for each in others]
        norms = [float(delta.norm()) for delta in deltas]
        assert row["norms"] == pytest.approx(norms, rel=1e-5)
        assert row["relative"] == pytest.approx([norm / float(base[name].double().norm()) for norm in norms], rel=1e-5)
        (pair,) = row["pairs"]
        assert pair["models"] == [str(home / model) for model in MODELS]
        assert pair["cosine"] == pytest.approx(float((deltas[0] * deltas[1]).sum()) / (norms[0] * norms[1]), abs=1e-5)
        signs = [delta.float().sign() for delta in deltas]
        shared = (signs[0] != 0) & (signs[1] != 0)
        assert row["conflict"] == pytest.approx(float((signs[0] != signs[1])[shared].double().mean()), abs=1e-3)
    name = "model.layers.1.mlp.gate_proj.weight"
    (row,) = (row for row in found["tensors"] if row["name"] == name)
    left = [torch.linalg.svd(each[name] - base[name]).U[:, :8] for each in others]
    assert row["pairs"][0]["left"] == pytest.approx(float((left[0].T @ left[1]).square().sum()) / 8, abs=1e-4)
    assert (row["layer"], row["kind"], row["decomposition"]) == (1, "mlp.gate_proj.weight", "exact")


def test_sums_over_layers_and_kinds(home: Path, evosearch: Program) -> None:
    found = analyzed(evosearch, "./expert1", "./expert2", "--base", "./base")["weights"]
    assert [row["name"] for row in found["layers"]] == [
        "embeddings",
        *(f"layer {layer}" for layer in range(3)),
        "final_norm",
        "head",
    ]
    of_kind = {row["name"]: row for row in found["kinds"]}
    queries = [row for row in found["tensors"] if row["kind"] == "self_attn.q_proj.weight"]
    assert [row["layer"] for row in queries] == [0, 1, 2]
    kind = of_kind["self_attn.q_proj.weight"]
    assert kind["elements"] == sum(row["elements"] for row in queries)
    assert kind["norms"][0] ** 2 == pytest.approx(sum(row["norms"][0] ** 2 for row in queries), rel=1e-6)
    matrices = [row for row in found["tensors"] if row["layer"] == 1 and "norm" not in row["name"]]
    assert found["layers"][2]["elements"] == sum(row["elements"] for row in matrices)


def test_tables_and_models_without_a_base(home: Path, evosearch: Program) -> None:
    code, out, err = evosearch("analyze", "./base", "./expert1", "./expert2")
    assert code == 0, err
    assert "changes are measured from ./base" in err
    assert "By layer" in out
    assert "mlp.down_proj" in out
    assert "top 8 singular vectors, exact" in out
    code, _, err = evosearch("analyze", "./expert1")
    assert code == 2
    assert "--base" in err


def test_leave_one_out_are_scores_of_those_merges(home: Path, evosearch: Program) -> None:
    path = recipe(home)
    found = analyzed(evosearch, path, "--leave-one-out", "--suite", "suite.yaml", "--split", "validation")
    assert found["weights"] is None
    left_out = found["leave_one_out"]
    without = {Path(row["model"]).name: row for row in left_out["without"]}
    assert list(without) == list(MODELS)
    kept = [{"model": "./expert2", "parameters": {"weight": 0.4}}]
    other = home / "one.yaml"
    other.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"models": kept}))
    scores = {}
    for name in (path, other):
        code, out, err = evosearch("score", name, "suite.yaml", "--split", "validation", "--json")
        assert code == 0, err
        scores[name] = json.loads(out)["score"]
    assert left_out["score"] == pytest.approx(scores[path])
    assert without["expert1"]["score"] == pytest.approx(scores[other])
    adds = without["expert1"]["adds"]
    assert adds["value"] == pytest.approx(scores[path] - scores[other])
    assert adds["lower"] <= adds["value"] <= adds["upper"]


def test_paths_have_common_ends_and_the_barrier_of_their_points(home: Path, evosearch: Program) -> None:
    found = analyzed(evosearch, recipe(home), "--path", "--suite", "suite.yaml", "--points", "3")["paths"]
    assert [path["kind"] for path in found] == ["straight", "spherical", "to base", "to base"]
    straight, spherical, one, other = found
    assert [point["t"] for point in straight["points"]] == [0.0, 0.5, 1.0]
    assert straight["points"][0] == spherical["points"][0]
    assert straight["points"][2] == spherical["points"][2]
    assert straight["points"][1]["loss"] != spherical["points"][1]["loss"]
    assert one["points"][2]["loss"] == pytest.approx(straight["points"][0]["loss"], rel=1e-6)
    assert other["points"][2]["loss"] == pytest.approx(straight["points"][2]["loss"], rel=1e-6)
    assert one["points"][0] == other["points"][0]
    for path in found:
        losses = [point["loss"] for point in path["points"]]
        assert all(loss > 0 for loss in losses)
        assert path["barrier"] == pytest.approx(max(0.0, losses[1] - (losses[0] + losses[2]) / 2))
        assert path["best"] == path["points"][losses.index(min(losses))]["t"]


def test_the_loss_of_a_path_is_the_mean_gold_log_probability(home: Path, evosearch: Program) -> None:
    found = analyzed(evosearch, "./expert1", "--base", "./base", "--path", "--suite", "suite.yaml", "--points", "3")
    suite = yaml.safe_load((home / "suite.yaml").read_text()) | {"fitness": "gold_logprob"}
    (home / "gold.yaml").write_text(yaml.safe_dump(suite))
    code, out, err = evosearch("score", "./expert1", "gold.yaml", "--split", "search", "--json")
    assert code == 0, err
    (path,) = found["paths"]
    assert path["points"][-1]["loss"] == pytest.approx(-json.loads(out)["fitness"]["value"], rel=1e-6)


def test_calibration_of_base_parents_and_merge(home: Path, evosearch: Program, tmp_path: Path) -> None:
    found = analyzed(evosearch, recipe(home), "--calibration", "--suite", "suite.yaml")["calibration"]
    assert [Path(row["model"]).name for row in found] == ["base", *MODELS, "merge"]
    assert {row["task"] for row in found} == {"choice"}
    items = tmp_path / "items.jsonl"
    code, _, err = evosearch("score", "./base", "suite.yaml", "--split", "search", "--items", items)
    assert code == 0, err
    rows = [json.loads(line) for line in items.read_text().splitlines()]
    chosen = [torch.tensor(row["loglikelihoods"]).softmax(0) for row in rows if row["task"] == "choice"]
    right = [row["metrics"]["acc"] for row in rows if row["task"] == "choice"]
    figures = found[0]["figures"]
    assert figures["items"] == len(chosen)
    assert figures["accuracy"] == pytest.approx(sum(right) / len(right))
    assert figures["confidence"] == pytest.approx(float(torch.stack([p.max() for p in chosen]).mean()), abs=1e-5)
    assert 0 <= figures["ece"] <= 1
    assert 0 <= figures["brier"] <= 2
    code, out, _ = evosearch("analyze", "mean.yaml", "--calibration", "--suite", "suite.yaml")
    assert code == 0
    assert "Brier" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--path"], "--suite: is missing"),
        (["--suite", "suite.yaml"], "nothing is scored"),
        (["--path", "--suite", "suite.yaml", "--points", "2"], "--points: got 2"),
        (["--top", "0"], "--top: got 0"),
        (["--path", "--suite", "suite.yaml", "--split", "test"], "--split: got 'test'"),
    ],
)
def test_wrong_options(arguments: list[str], words: str, home: Path, evosearch: Program) -> None:
    code, _, err = evosearch("analyze", recipe(home), *arguments)
    assert code == 2
    assert words in err


def test_merges_that_cannot_be_analyzed(home: Path, evosearch: Program) -> None:
    scored = ("--leave-one-out", "--suite", "suite.yaml")
    code, _, err = evosearch("analyze", "./expert1", "./expert2", *scored)
    assert code == 2
    assert "needs a recipe" in err
    single = [{"model": "./expert1"}]
    path = recipe(home, merge_method="slerp", models=single, parameters={"t": 0.5})
    code, _, err = evosearch("analyze", path, *scored)
    assert code == 2
    assert "'slerp' needs at least 1 models" in err
    code, _, err = evosearch("analyze", "./base", "./expert1", "./expert2", "--path", "--suite", "suite.yaml")
    assert code == 2
    assert "between two models" in err
    route = home / "route.yaml"
    route.write_text(yaml.safe_dump({"routing": {"hops": [{"model": "./base", "layer": 0}]}}))
    code, _, err = evosearch("analyze", route)
    assert code == 2
    assert "a route merges no weights" in err


def test_tensors_that_only_some_models_have_are_listed(
    random_model: Callable[..., Path], evosearch: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three models of one family: the pairs of three, and a matrix that is large enough for the randomized method."""
    monkeypatch.setattr("evosearch.analysis.subspaces.EXACT", 16)
    base = random_model("Qwen2ForCausalLM", seed=1)
    models = [random_model("Qwen2ForCausalLM", seed=seed, near=base) for seed in (2, 3, 4)]
    found = analyzed(evosearch, *models, "--base", base, "--top", "4")["weights"]
    assert found["left_out"] == []
    assert [pair["models"] for pair in found["total"]["pairs"]] == [
        list(map(str, pair)) for pair in combinations(models, 2)
    ]
    assert found["total"]["decomposition"] == "randomized" or found["total"]["decomposition"] == "mixed"
