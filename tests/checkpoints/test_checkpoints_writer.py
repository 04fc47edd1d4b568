"""Writing checkpoints atomically."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.writer import CheckpointWriter
from evosearch.errors import CheckpointError


def copy(source: Checkpoint, out: Path, dtype: torch.dtype = torch.float32, **options: int) -> CheckpointWriter:
    layout = [(name, info.shape) for name, info in source.tensors.items()]
    with CheckpointWriter(out, layout, dtype, source.folder, **options) as writer:
        for name in source.tensors:
            writer.add(name, source.load(name).to(dtype))
    return writer


def test_a_written_checkpoint_is_read_back_with_the_reported_hash(tiny, tmp_path):
    source = Checkpoint.open(tiny("model"))
    writer = copy(source, tmp_path / "out")
    result = Checkpoint.open(tmp_path / "out")
    assert writer.weights_sha256 == result.content_sha256() == source.content_sha256()
    assert writer.bytes_written == sum(4 * torch.Size(info.shape).numel() for info in source.tensors.values())
    model, loading = LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not loading["missing_keys"]
    assert torch.equal(model.model.norm.weight, source.load("model.norm.weight"))


@pytest.mark.parametrize("limit", [1, 20_000])
def test_shards_match_the_index(tiny, tmp_path, limit):
    source = Checkpoint.open(tiny("model"))
    writer = copy(source, tmp_path / "out", max_shard_bytes=limit)
    files = sorted((tmp_path / "out").glob("model-*"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(files) > 2
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert index["metadata"]["total_size"] == writer.bytes_written
    assert Checkpoint.open(tmp_path / "out").content_sha256() == source.content_sha256()
    assert LlamaForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.float32


def test_config_has_the_new_dtype_and_companion_files_are_copied(tiny, tmp_path):
    folder = tiny("model")
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "train.py").write_text("print()")
    copy(Checkpoint.open(folder), tmp_path / "out", torch.bfloat16)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert config["num_hidden_layers"] == 2
    assert Checkpoint.open(tmp_path / "out").dtype == torch.bfloat16
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
    }


def test_a_non_empty_folder_is_rejected_and_unchanged(tiny, tmp_path):
    source = Checkpoint.open(tiny("model"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="out: exists and is not an empty folder"):
        copy(source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_an_empty_folder_is_accepted(tiny, tmp_path):
    (tmp_path / "out").mkdir()
    copy(Checkpoint.open(tiny("model")), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_failed_write_leaves_no_files(tmp_path):
    def fail_midway() -> None:
        with CheckpointWriter(tmp_path / "out", [("a", (2,)), ("b", (2,))], torch.float32) as writer:
            writer.add("a", torch.ones(2))
            raise RuntimeError("power")

    with pytest.raises(RuntimeError, match="power"):
        fail_midway()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_created_gives_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        CheckpointWriter(tmp_path / "file" / "out", [("a", (2,))], torch.float32)
