"""Multi-stage runs at the command line: run, status, leaderboard, export, and errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

World = Callable[..., Path]
WEIGHT = {"low": 0.0, "high": 1.2, "init": 0.4}


def stage(name: str, method: str, first: str, **more: Any) -> dict[str, Any]:
    models = [{"model": model, "parameters": {"weight": WEIGHT}} for model in (first, "./expert2")]
    optimizer = {"name": "random", "population": 2, "start": "init"}
    recipe = {"merge_method": method, "models": models} | more
    return {"name": name, "recipe": recipe, "optimizer": optimizer, "budget": {"candidates": 2}}


@pytest.fixture
def spec(world: World) -> Path:
    path = world("hybrid", baselines={"scales": [0.5]}, promotion={"finalists": 1})
    data = yaml.safe_load(path.read_text())
    for key in ("recipe", "optimizer", "budget"):
        del data[key]
    stages = [
        stage("one", "task_arithmetic", "./expert1", base_model="./base"),
        stage("two", "linear", "stage:one"),
        stage("three", "linear", "stage:two"),
    ]
    path.write_text(yaml.safe_dump(data | {"stages": stages}, sort_keys=False))
    return path


def test_three_stages_are_run_listed_and_exported(
    spec: Path, evosearch: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    code, out, err = evosearch("run", spec)
    assert code in (0, 3), err
    assert "Stages (winners by the validation split)" in " ".join(out.split())  # a narrow table wraps its title
    for line in ("one: baselines: ", "one: validation: ", "two: search: ", "three: test: "):
        assert line in err
    code, out, _ = evosearch("run", spec, "--json")
    report = json.loads(out)
    assert [row["name"] for row in report["stages"]] == ["one", "two", "three"]
    assert report["name"] == "hybrid.three"
    _, out, _ = evosearch("status", "--json")
    rows = {row["name"]: row["winner"] for row in json.loads(out)}
    assert rows == {f"hybrid.{row['name']}": row["winner"]["candidate"] for row in report["stages"][:2]} | {
        "hybrid.three": None
    }
    boards = [json.loads(evosearch("leaderboard", name, "--json")[1]) for name in ("hybrid.two", "hybrid", spec)]
    assert boards[1] == boards[2] != boards[0]
    code, out, err = evosearch(
        "export", "hybrid.two", "--candidate", "0", "--format", "mergekit", "-o", tmp_path / "m.yaml"
    )
    assert code == 0, err
    named = [entry["model"] for entry in yaml.safe_load((tmp_path / "m.yaml").read_text())["models"]]
    assert all((Path(model) / "config.json").is_file() for model in named)
    # The exported file includes the winners of both earlier stages
    file = tmp_path / "moved" / "best.yaml"
    code, out, err = evosearch("export", "hybrid", "--candidate", "0", "-o", file, "--json")
    assert code == 0, err
    written = json.loads(out)
    for row in report["stages"][:2]:
        Path(row["exported"]["recipe"]).unlink()
    names = [document.get("name") for document in yaml.safe_load_all(file.read_text())]
    assert names == ["one", "two", None]
    code, out, err = evosearch("merge", file, tmp_path / "merged", "--json")
    assert code == 0, err
    assert json.loads(out)["recipe_id"] == written["recipe_id"]


def test_an_error_in_a_stage_is_one_message(spec: Path, evosearch: Callable[..., tuple[int, str, str]]) -> None:
    spec.write_text(spec.read_text().replace("stage:one", "stage:on"))
    for command in (("run", spec), ("leaderboard", spec), ("check", spec)):
        code, out, err = evosearch(*command)
        said = " ".join((out + err).split())
        assert code == 2
        assert "hybrid.yaml: stages[1].recipe.models[0].model: got 'stage:on', and no earlier stage is named" in said
        assert "Did you mean 'one'?" in said
    assert not (spec.parents[1] / "runs").exists()
