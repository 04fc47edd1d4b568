"""`evosearch verify` rebuilds an exported recipe, here and in a second copy, and names whatever differs."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.suites.suite import load_suite
from evosearch.recipe.provenance import pack, unpack
from evosearch.reporting.openings import openings
from evosearch.search.progress import Silent
from evosearch.service.verify import VerifyReport, verify

World = Callable[..., Path]
Evosearch = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def exported(exported_as: Callable[[str], Path]) -> Path:
    """The recipe of the base, which is scored on every split."""
    return exported_as("base")


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = yaml.safe_load(path.read_text())
    change(data["provenance"])
    path.write_text(yaml.safe_dump(data, sort_keys=False))


def recorded_openings(path: Path) -> int:
    return int(yaml.safe_load(path.read_text())["provenance"]["test_openings"])


def differing(report: VerifyReport) -> list[tuple[str, str]]:
    assert not report.equal
    return [(one.kind, one.name) for one in report.differences]


def test_an_export_is_equal_per_item_on_every_split(exported: Path) -> None:
    recorded = yaml.safe_load(exported.read_text())["provenance"]["scores"]
    assert set(recorded) == {"search", "validation", "test"}
    report = verify(exported, Silent(), scores=True)
    assert report.equal, report.differences
    assert report.compared == ("inputs", "weights", "items", "scores")
    assert {split: pair.found for split, pair in report.scores.items()} == pytest.approx(
        {split: score["value"] for split, score in recorded.items()}, abs=1e-9
    )
    batch = Harness(load_suite(exported.parents[1] / "specs" / "suite.yaml")).batch("test")
    with openings() as record:
        events = record.events(batch.documents_digest, types=["reread"])
        assert record.count_test_openings(batch.documents_digest) == recorded_openings(exported)
    assert [event.payload["what"] for event in events if str(exported) in event.payload["what"]] == [
        f"verify {exported}"
    ]


def test_a_second_copy_with_another_home_and_cache_is_equal_or_names_what_differs(
    exported: Path, tmp_path: Path
) -> None:
    """Another folder, home, cache, data and hub cache, in a new process: nothing of the first run is left."""
    other = tmp_path / "second" / "place"
    other.mkdir(parents=True)
    for name in ("specs", "winner"):
        shutil.move(tmp_path / name, other / name)
    for name in ("runs", "cache"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    home = tmp_path / "home"
    home.mkdir()
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("EVOSEARCH_", "HF_HOME", "XDG_"))}
    settings = {"HOME": str(home), "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    settings |= {"EVOSEARCH_TASKS": str(other), "OMP_NUM_THREADS": "1"}

    def command(*options: str) -> tuple[int, dict[str, Any]]:
        words = [sys.executable, "-m", "evosearch.cli.main", "verify", "winner/best.yaml", *options, "--json"]
        done = subprocess.run(words, cwd=other, env=kept | settings, capture_output=True, text=True, timeout=600)
        assert done.returncode in (0, 1, 2), done.stderr
        return done.returncode, json.loads(done.stdout)

    code, report = command("--scores")
    assert code == 0, report
    assert report["equal"]
    assert report["compared"] == ["inputs", "weights", "items", "scores"]
    assert (home / ".cache" / "evosearch").is_dir()

    weights = other / "specs" / "base" / "model.safetensors"
    tensors = load_file(weights)
    tensors["lm_head.weight"] = -tensors["lm_head.weight"]
    save_file(tensors, weights, {"format": "pt"})
    code, report = command("--scores")
    assert code == 1
    assert [one["name"] for one in report["differences"]] == [f"{other}/specs/base: weights"]
    assert report["compared"] == ["inputs"]

    shutil.rmtree(other / "specs" / "base")
    code, report = command()
    assert code == 2
    assert "specs/base" in report["error"]["where"] + report["error"]["what"]


def test_tensors_and_items_that_differ_are_named(exported: Path) -> None:
    def other(found: dict[str, Any]) -> None:
        found["weights_sha256"] = "0" * 64
        found["tensors"]["model.layers.1.mlp.up_proj.weight"] = "1" * 64
        score = found["scores"]["validation"]
        values = list(unpack(score["values"]["choice"]))
        values[2] = 1.0 - values[2]
        score["values"]["choice"] = pack(values)
        score["tasks"]["generate"]["value"] += 0.5
        del score["values"]["generate"]

    changed(exported, other)
    report = verify(exported, Silent(), scores=True)
    (tensor, item, mean) = report.differences
    assert str(tensor).startswith("tensor model.layers.1.mlp.up_proj.weight: recorded 111111111111, found ")
    assert item.kind == "item"
    assert item.name.startswith("validation/choice document ")
    assert {item.recorded, item.found} == {"0", "1"}
    assert (mean.kind, mean.name) == ("score", "validation/generate exact_match")


def test_a_suite_with_other_documents_is_named_and_not_scored(exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "specs" / "suite.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"split_seed": 7}))
    report = verify(exported, Silent(), scores=True)
    found = differing(report)
    assert ("suite", str(path)) in found
    assert ("items", "test/choice") in found
    assert "scores" not in report.compared
    assert report.scores == {}


def test_the_command_has_one_exit_code_for_each_result(exported: Path, tmp_path: Path, evosearch: Evosearch) -> None:
    code, out, _ = evosearch("verify", exported)
    assert (code, out.split()[-4:]) == (0, ["equal;", "compared:", "inputs,", "weights"])
    changed(exported, lambda found: found.update(weights_sha256="0" * 64))
    code, out, _ = evosearch("verify", exported)
    assert code == 1
    assert "weights all tensors: recorded 000000000000, found" in out
    changed(exported, lambda found: found.update(suite=found["suite"] | {"file": "../gone.yaml"}))
    code, _, err = evosearch("verify", exported, "--scores")
    assert code == 2
    assert "the suite 'world' is not here: no file" in err
    assert "Name its file with --suite" in err
    code, _, err = evosearch("verify", exported, "--scores", "--suite", tmp_path / "specs" / "suite.yaml", "--json")
    assert code == 1
    plain = tmp_path / "plain.yaml"
    plain.write_text("merge_method: linear\nmodels: [{model: ./specs/base}]\n")
    code, _, err = evosearch("verify", plain)
    assert code == 2
    assert "plain.yaml: provenance: no section with digests to compare" in err


def test_damaged_values_are_an_input_error(exported: Path, evosearch: Evosearch) -> None:
    changed(exported, lambda found: found["scores"]["search"]["values"].update(choice="AAAA"))
    code, _, err = evosearch("verify", exported, "--scores")
    assert code == 2
    assert "provenance.scores.search.values.choice: cannot be read" in err
