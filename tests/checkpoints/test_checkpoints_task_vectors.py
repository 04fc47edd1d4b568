"""Task vectors as files: exactness, missing keys, verified bases, references in recipes, damaged files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.references import split
from evosearch.checkpoints.task_vector_file import KEY, TASK_VECTOR, base_of, read_header
from evosearch.checkpoints.task_vectors import apply_task_vector, write_task_vector
from evosearch.errors import CheckpointError
from evosearch.materialize.inputs import Opener

Program = Callable[..., tuple[int, str, str]]
Random = Callable[..., Path]


@pytest.fixture
def home(world: Callable[..., Path]) -> Path:
    return world().parent


def recipe(folder: Path, name: str, models: list[str], **changes: Any) -> Path:
    data = {
        "merge_method": "ties",
        "base_model": "./base",
        "models": [{"model": model, "parameters": {"weight": 0.6, "density": 0.5}} for model in models],
    } | changes
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def cast(source: Path, to: Path, dtype: torch.dtype) -> Path:
    """Copy a model with its weights rounded to another type."""
    shutil.copytree(source.resolve(), to)
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(to / "model.safetensors").items()}
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    return to


def merged(evosearch: Program, path: Path, out: Path) -> dict[str, torch.Tensor]:
    code, _, err = evosearch("merge", path, out)
    assert code == 0, err
    return load_file(out / "model.safetensors")


def test_bfloat16_models_come_back_exactly_and_merge_to_the_same_bytes(
    home: Path, evosearch: Program, tmp_path: Path
) -> None:
    for name in ("base", "expert1", "expert2"):
        cast(home / name, home / f"half-{name}", torch.bfloat16)
    code, out, err = evosearch("diff", home / "half-base", home / "half-expert1", "-o", home / "vector", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert (report["inexact"], report["error"]) == (0, 0.0)
    assert report["base_sha256"] == Checkpoint.open(home / "half-base").content_sha256()
    with_model = recipe(home, "model", ["./half-expert1", "./half-expert2"], base_model="./half-base")
    with_vector = recipe(home, "with-vector", ["./vector", "./half-expert2"], base_model="./half-base")
    one = merged(evosearch, with_model, tmp_path / "one")
    other = merged(evosearch, with_vector, tmp_path / "other")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_float32_models_come_back_within_one_unit_in_the_last_place(
    home: Path, evosearch: Program, tmp_path: Path
) -> None:
    base, model = (Checkpoint.open(home / name) for name in ("base", "expert1"))
    written = write_task_vector(base, model, tmp_path / "vector")
    applied = apply_task_vector(base, tmp_path / "vector", "applied")
    off = 0
    for name in base.tensors:
        theta, tuned, again = base.load(name), model.load(name), applied.load(name)
        bound = 2.0**-23 * torch.maximum(theta.abs(), tuned.abs())
        assert ((again - tuned).abs() <= bound).all(), name
        off += int((again != tuned).sum())
        near = (theta.sign() == tuned.sign()) & (tuned.abs() >= theta.abs() / 2) & (tuned.abs() <= 2 * theta.abs())
        assert torch.equal(again[near], tuned[near])  # Sterbenz's lemma
    assert off == written.inexact
    evosearch("diff", home / "base", home / "expert1", "-o", home / "vector")
    one = merged(evosearch, recipe(home, "m", ["./expert1", "./expert2"]), tmp_path / "one")
    other = merged(evosearch, recipe(home, "v", ["./base+./vector", "./expert2"]), tmp_path / "other")
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=4e-7)


def test_unchanged_tensors_are_not_stored_and_shared_with_the_base(home: Path, tmp_path: Path) -> None:
    shutil.copytree((home / "base").resolve(), tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] += 1.0
    save_file(tensors, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    base, model = Checkpoint.open(home / "base"), Checkpoint.open(tmp_path / "model")
    written = write_task_vector(base, model, tmp_path / "vector")
    assert (written.tensors, len(written.header.unchanged)) == (1, len(base.tensors) - 1)
    with safe_open(tmp_path / "vector" / TASK_VECTOR, "pt") as file:
        assert list(file.keys()) == [name]
    applied = apply_task_vector(base, tmp_path / "vector", "applied")
    assert applied.shares("model.norm.weight") is base
    assert list(applied.computed) == [name]


def test_missing_keys_are_listed(random_model: Random, evosearch: Program, tmp_path: Path) -> None:
    base = random_model("Qwen2ForCausalLM", tie_word_embeddings=True, seed=1)
    model = random_model("Qwen2ForCausalLM", tie_word_embeddings=False, vocab_size=44, seed=2)
    arguments = ("diff", base, model, "-o", tmp_path / "vector", "--allow-unrelated")
    code, out, err = evosearch(*arguments, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["only_in_model"] == ["lm_head.weight"]
    assert report["only_in_base"] == []
    assert report["other_shape"] == ["model.embed_tokens.weight"]
    applied = Opener(tmp_path / "cache").open(str(tmp_path / "vector"))
    assert "2 tensors" in applied.notes[-1]
    assert "lm_head.weight" in applied.notes[-1]


def test_another_base_is_refused(home: Path, evosearch: Program, tmp_path: Path) -> None:
    assert evosearch("diff", home / "base", home / "expert1", "-o", home / "vector")[0] == 0
    path = recipe(home, "wrong", ["./expert2+./vector"])
    code, _, err = evosearch("merge", path, tmp_path / "out")
    assert code == 2
    assert "its base has the content" in err
    assert not (tmp_path / "out").exists()
    moved = home / "elsewhere" / "vector"
    shutil.copytree(home / "vector", moved)
    code, _, err = evosearch("merge", recipe(home, "lost", ["./elsewhere/vector"]), tmp_path / "out")
    assert code == 2
    assert "no such folder" in err
    assert evosearch("merge", recipe(home, "named", ["./base+./elsewhere/vector"]), tmp_path / "out")[0] == 0


def test_references(home: Path) -> None:
    base, model = (Checkpoint.open(home / name, str(home / name)) for name in ("base", "expert1"))
    write_task_vector(base, model, home / "vector")
    assert read_header(home / "vector").base == "../base"
    assert read_header(home / "vector").model == "expert1"
    assert base_of(home / "vector") == str(home / "base")
    assert split(str(home / "vector")) == (str(home / "base"), str(home / "vector"))
    assert split(f"{home}/base+{home}/vector") == (f"{home}/base", f"{home}/vector")


def test_a_search_takes_a_task_vector_as_a_model(home: Path, world: Callable[..., Path], evosearch: Program) -> None:
    evosearch("diff", home / "base", home / "expert1", "-o", home / "vector")
    spec = yaml.safe_load(world().read_text())
    spec["recipe"]["models"][0]["model"] = "./vector"
    spec |= {"name": "vectors", "budget": {"candidates": 6}}
    path = home / "vectors.yaml"
    path.write_text(yaml.safe_dump(spec))
    code, _, err = evosearch("run", path)
    assert code in (0, 3), err
    code, _, err = evosearch("export", path, "--format", "mergekit", "--candidate", "0", "-o", home / "kit.yaml")
    assert code == 2
    assert "task vector" in err


def test_nothing_is_overwritten_or_left_half_written(
    home: Path, evosearch: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vector").mkdir()
    (tmp_path / "vector" / "notes.txt").write_text("mine")
    arguments = ("diff", home / "base", home / "expert1", "-o", tmp_path / "vector")
    code, _, err = evosearch(*arguments)
    assert code == 2
    assert "not an empty folder" in err
    assert [path.name for path in (tmp_path / "vector").iterdir()] == ["notes.txt"]
    (tmp_path / "vector" / "notes.txt").unlink()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("evosearch.checkpoints.task_vectors._write", full)
    code, _, err = evosearch(*arguments)
    assert code == 2
    assert "cannot be written" in err
    assert [path.name for path in tmp_path.iterdir() if "vector" in path.name] == ["vector"]
    assert not list((tmp_path / "vector").iterdir())


def test_its_files_follow_the_umask(home: Path, evosearch: Program, tmp_path: Path) -> None:
    assert evosearch("diff", home / "base", home / "expert1", "-o", tmp_path / "vector")[0] == 0
    assert (tmp_path / "vector").stat().st_mode & 0o077 == 0
    assert (tmp_path / "vector" / TASK_VECTOR).stat().st_mode & 0o077 == 0


def test_bases_with_adapters_and_strangers_are_refused(home: Path, random_model: Random, evosearch: Program) -> None:
    evosearch("diff", home / "base", home / "expert1", "-o", home / "vector")
    code, _, err = evosearch("diff", home / "vector", home / "expert2", "-o", home / "second")
    assert code == 2
    assert "a base is one model" in err
    one, other = (random_model("LlamaForCausalLM", seed=seed) for seed in (1, 2))
    code, _, err = evosearch("diff", one, other, "-o", home / "second")
    assert code == 2
    assert "relative change" in err
    code, _, err = evosearch("diff", home / "base", random_model("Qwen2ForCausalLM"), "-o", home / "second")
    assert code == 2
    assert "Qwen2ForCausalLM" in err


def rewrite(folder: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    save_file(tensors, folder / TASK_VECTOR, metadata)


@pytest.mark.parametrize(
    "damage", ["no header", "keys", "not a list", "tensor gone", "shape", "type", "not finite", "cut"]
)
def test_damaged_vectors_are_errors(damage: str, home: Path, tmp_path: Path) -> None:
    base, model = (Checkpoint.open(home / name, str(home / name)) for name in ("base", "expert1"))
    write_task_vector(base, model, tmp_path / "vector")
    path = tmp_path / "vector" / TASK_VECTOR
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    header = json.loads(metadata[KEY])
    name = next(iter(tensors))
    match damage:
        case "no header":
            metadata.pop(KEY)
        case "keys":
            metadata[KEY] = json.dumps(header | {"more": 1})
        case "not a list":
            metadata[KEY] = json.dumps(header | {"unchanged": 3})
        case "tensor gone":
            del tensors[name]
        case "shape":
            tensors[name] = tensors[name][:-1].contiguous()
        case "type":
            tensors[name] = tensors[name].to(torch.float16)
        case "not finite":
            tensors[name].view(-1)[0] = float("nan")
    rewrite(tmp_path / "vector", tensors, metadata)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=TASK_VECTOR):
        apply_task_vector(base, tmp_path / "vector", "applied").content_sha256()
