"""Pickled weights: only if allowed, and only tensors."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import CheckpointError


def to_pickle(folder: Path, legacy: bool = False) -> Path:
    """Replace a folder's weights by pickles, as older tools saved them: one file, or shards with an index."""
    names = {}
    tied = json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    for number, path in enumerate(sorted(folder.glob("model*.safetensors")), 1):
        tensors = load_file(path)
        if tied and "model.embed_tokens.weight" in tensors:  # a tied head was saved too, with shared memory
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        file = "pytorch_model.bin" if path.name == "model.safetensors" else f"pytorch_model-{number:05d}.bin"
        torch.save(tensors, folder / file, _use_new_zipfile_serialization=not legacy)
        names |= dict.fromkeys(tensors, file)
        path.unlink()
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        index.unlink()
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    return folder


@pytest.mark.parametrize("limit", ["5GB", "20KB"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("legacy", [True, False])
def test_pickles_give_the_same_weights_as_safetensors(tiny, limit, tied, legacy):
    expected = Checkpoint.open(tiny("safe", max_shard_size=limit, tie_word_embeddings=tied))
    folder = to_pickle(tiny("pickled", max_shard_size=limit, tie_word_embeddings=tied), legacy)
    with pytest.raises(CheckpointError, match=r"pickled: only pickled weights.*can run code.*--allow-pickle"):
        Checkpoint.open(folder)
    checkpoint = Checkpoint.open(folder, allow_pickle=True)
    assert checkpoint.content_sha256() == expected.content_sha256()
    assert checkpoint.tensors == expected.tensors


def test_safetensors_are_preferred_to_pickles(tiny):
    folder = tiny("model")
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    assert Checkpoint.open(folder, allow_pickle=True).content_sha256() == Checkpoint.open(folder).content_sha256()


class Program:
    """Object whose code runs when it is unpickled without restrictions."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_a_pickle_with_code_is_rejected_without_running_it(tiny, tmp_path):
    folder = to_pickle(tiny("model"))
    torch.save({"model.norm.weight": Program(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"pytorch_model\.bin: contains more than tensors, or is damaged \(.*GLOBAL.*"
    ):
        Checkpoint.open(folder, allow_pickle=True)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Program(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()  # the unrestricted load runs it


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "got a list. A mapping of names to tensors"),
        ({"step": 3}, "entry 'step' is a int.*save only its state_dict"),
        ({"model": {"norm": torch.ones(2)}}, "entry 'model' is a dict"),
        ({0: torch.ones(2)}, "entry 0 is a Tensor. Names and dense tensors"),
        ({"a": torch.ones(2, 2).to_sparse()}, "entry 'a' is a Tensor. Names and dense tensors"),
        ({"model.norm.weight": torch.ones(32)}, "is missing"),
    ],
)
def test_pickles_without_named_tensors_are_rejected(tiny, content, message):
    folder = to_pickle(tiny("model"))
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=rf"pytorch_model\.bin: .*{message}"):
        Checkpoint.open(folder, allow_pickle=True)


@pytest.mark.parametrize("keep", [0, 5, 1000, -100])
def test_a_damaged_pickle_gives_one_error_that_names_the_file(tiny, keep):
    folder = to_pickle(tiny("model"))
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: (not a complete torch file|cannot be read)"):
        Checkpoint.open(folder, allow_pickle=True)


def test_unsupported_file_names_and_missing_shards_are_named(tiny):
    folder = to_pickle(tiny("model"))
    (folder / "pytorch_model.bin").rename(folder / "consolidated.pt")
    with pytest.raises(
        CheckpointError, match=r"model: no weights under a supported name.*pytorch_model\.bin, or shards"
    ):
        Checkpoint.open(folder, allow_pickle=True)
    cut = to_pickle(tiny("cut", max_shard_size="20KB"))
    (cut / "pytorch_model-00002.bin").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model-00002\.bin: no such file"):
        Checkpoint.open(cut, allow_pickle=True)


def test_unsupported_dtypes_are_rejected(tiny):
    folder = tiny("model")
    tensors = load_file(folder / "model.safetensors")
    to_pickle(folder)
    torch.save(tensors | {"model.norm.weight": torch.ones(32, dtype=torch.int8)}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' is stored as torch\.int8\. One of F64, F32"):
        Checkpoint.open(folder, allow_pickle=True)
