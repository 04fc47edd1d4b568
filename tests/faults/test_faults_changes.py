"""Inputs that changed before a resume, or are damaged, are errors with exit code 2; the ledger stays unchanged."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.search.ledger.events import Event
from evosearch.search.ledger.ledger import Ledger

Evosearch = Callable[..., tuple[int, str, str]]
World = Callable[..., Path]
Events = Callable[[Path], list[Event]]


@dataclass(frozen=True)
class Begun:
    """A search that has started, with its own copy of all files."""

    spec: Path
    files: Path
    runs: Path


@pytest.fixture(scope="module")
def _begun(_planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Begun:
    home = tmp_path_factory.mktemp("begun")
    shutil.copytree(_planted, home / "files")
    parents = [{"model": f"./{name}", "parameters": {"weight": {"low": 0, "high": 1}}} for name in EXPERTS]
    spec = {
        "name": "begun",
        "recipe": {"merge_method": "task_arithmetic", "base_model": "./base", "models": parents},
        "optimizer": {"name": "random", "seed": 1},
        "suite": "suite.yaml",
        "budget": {"candidates": 2},
        "workers": {"executor": "local", "threads": 1},
        "tracking": {"uri": "jsonl:events.jsonl"},
        "baselines": {"scales": []},
        "promotion": {"finalists": 1},
    }
    path = home / "files" / "begun.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return Begun(path, home / "files", home / "runs")


EXPERTS = ("expert1", "expert2")


@pytest.fixture
def begun(_begun: Begun, evosearch: Evosearch, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begun]:
    """The search, run once; changes to its files are reverted after each test."""
    monkeypatch.setenv("EVOSEARCH_RUNS", str(_begun.runs))
    if not _begun.runs.exists():
        code, _, err = evosearch("run", _begun.spec)
        assert code in (0, 3), err
    before = {path: path.read_bytes() for path in _begun.files.rglob("*") if path.is_file()}
    yield _begun
    for path, content in before.items():
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def weights(files: Path) -> str:
    from safetensors.torch import load_file, save_file

    path = files / "expert2" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] += 0.5
    save_file(tensors, path, metadata={"format": "pt"})
    sha = r"[0-9a-f]{12}"
    return (
        rf"begun\.yaml: recipe: \S*expert2: its weights changed since this search started "
        rf"\(content {sha} then, {sha} now\)\. Restore the model, or give the new search another name"
    )


def config(files: Path) -> str:
    """Change the rotary base: the tensors are equal, but the model's outputs are not."""
    path = files / "base" / "config.json"
    data = json.loads(path.read_text())
    data["rope_theta"] = 5.0
    if "rope_parameters" in data:
        data["rope_parameters"] = data["rope_parameters"] | {"rope_theta": 5.0}
    path.write_text(json.dumps(data))
    return r"begun\.yaml: recipe: \S*base: config\.json of this model changed .*[0-9a-f]{12} then.*Restore the file"


def tokenizer(files: Path) -> str:
    edit_json(files / "base" / "tokenizer_config.json", add_bos_token=True)
    return r"begun\.yaml: recipe: \S*base: tokenizer_config\.json of this model changed .*Restore the file"


def generation_config(files: Path) -> str:
    (files / "expert1" / "generation_config.json").unlink()
    return r"recipe: \S*expert1: generation_config\.json of this model changed .*[0-9a-f]{12} then, nothing now"


def weight_in_the_suite(files: Path) -> str:
    edit(files / "suite.yaml", "chance: 0.25", "chance: 0.25\n  weight: 2.0")
    return r"suite\.yaml: tasks\[0\]\.weight: it changed since this search started \(1\.0 then, 2\.0 now\)\. Undo the"


def metric_in_the_suite(files: Path) -> str:
    another = "- {metric: acc_norm, aggregation: mean, higher_is_better: true}\n"
    edit(files / "tasks" / "p_choice.yaml", "- aggregation: mean", another + "- aggregation: mean")
    edit(files / "suite.yaml", "metric: acc", "metric: acc_norm")
    return r"suite\.yaml: tasks\[0\]\.metric: it changed since this search started \('acc' then, 'acc_norm' now\)"


def document(files: Path) -> str:
    """Change a document that the search uses."""
    with Ledger.open(f"sqlite:///{files.parent}/runs/begun/ledger.db", read_only=True) as ledger:
        (info,) = ledger.searches()
        began = ledger.events(info.search_id)[0].payload
        used = ledger.item_set(began["item_sets"]["test"]["choice"]).doc_ids[0]
    path = files / "tasks" / "p_choice.jsonl"
    lines = path.read_text().splitlines()
    lines[used] = json.dumps(json.loads(lines[used]) | {"question": "jjjjjj"})
    path.write_text("\n".join(lines) + "\n")
    return (
        r"suite\.yaml: tasks\[0\]\.task: \d+ of the \d+ documents of 'p_choice' in the \w+ split changed since this "
        r"search started.*document \d+, sha256 [0-9a-f]{12}.*Restore the data"
    )


def prompt(files: Path) -> str:
    edit(files / "tasks" / "p_choice.yaml", "{{question}}?", "{{question}}=")
    return r"suite\.yaml: tasks\[0\]\.task: doc_to_text of 'choice' changed since this search started.*Restore the task"


@pytest.mark.parametrize(
    "change",
    [weights, config, tokenizer, generation_config, weight_in_the_suite, metric_in_the_suite, document, prompt],
    ids=lambda change: change.__name__,
)
def test_a_change_since_the_start_is_an_error_and_adds_no_events(
    begun: Begun, evosearch: Evosearch, events: Events, change: Callable[[Path], str]
) -> None:
    edit(begun.spec, "candidates: 2", "candidates: 4")  # so that the search is not finished
    before = events(begun.spec)
    expected = change(begun.files)
    code, out, err = evosearch("run", begun.spec)
    assert code == 2, err
    assert re.search(expected, err), err
    assert out == ""
    assert events(begun.spec) == before


def test_irrelevant_changes_are_allowed(begun: Begun, evosearch: Evosearch, events: Events) -> None:
    edit_json(begun.files / "base" / "config.json", transformers_version="4.0.0", _name_or_path="/elsewhere")
    (begun.files / "base" / "README.md").write_text("notes")
    edit(begun.spec, "candidates: 2", "candidates: 3")
    code, _, err = evosearch("run", begun.spec)
    assert code in (0, 3), err
    recorded = events(begun.spec)
    assert sum(event.type == "asked" for event in recorded) == 3, "no candidate is scored twice"
    assert [event.payload["resumed"] for event in recorded if event.type == "started"] == [False, True]


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_a_parent_with_non_finite_weights_is_an_error_before_anything_is_scored(
    begun: Begun, evosearch: Evosearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    from safetensors.torch import load_file, save_file

    path = begun.files / "expert1" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(tensors, path, metadata={"format": "pt"})
    monkeypatch.setenv("EVOSEARCH_RUNS", str(tmp_path / "fresh"))
    for command in ("check", "run"):
        code, out, err = evosearch(command, begun.spec)
        assert code == 2, out + err
        shown = (out + err).replace("\n", " ")
        damaged = r"'model\.layers\.1\.mlp\.up_proj\.weight' of \S*expert1 is damaged: 1 of its \d+ values are NaN or"
        assert re.search(damaged, shown), shown
        assert "expert1/model.safetensors" in shown
    assert not (tmp_path / "fresh").exists(), "no ledger is created"
