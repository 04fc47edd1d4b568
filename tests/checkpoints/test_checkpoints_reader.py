"""Reading checkpoints: lazy and strict."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evosearch.checkpoints.families.llama import FAMILY
from evosearch.checkpoints.families.registry import all_families
from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import CheckpointError
from evosearch.recipe.shapes import Place


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_llama_shape_names_exactly_the_tensors_that_transformers_saves(tiny, tied, bias):
    folder = tiny("model", tie_word_embeddings=tied, attention_bias=bias, mlp_bias=bias)
    checkpoint = Checkpoint.open(folder, "a/b")
    saved = load_file(folder / "model.safetensors")
    assert checkpoint.tensors.keys() == saved.keys()
    assert checkpoint.shape.tied_embeddings is tied
    assert checkpoint.shape.num_layers == 2
    assert (checkpoint.reference, checkpoint.folder, checkpoint.dtype) == ("a/b", folder, torch.float32)
    for name, tensor in saved.items():
        assert torch.equal(checkpoint.load(name), tensor)
        assert (checkpoint.tensors[name].dtype, checkpoint.tensors[name].shape) == ("F32", tuple(tensor.shape))


def test_llama_places_and_residual_writers():
    shape = FAMILY.shape({"num_hidden_layers": 3, "attention_bias": True})
    assert shape.names(Place.EMBEDDINGS) == ("model.embed_tokens.weight",)
    assert shape.names(Place.FINAL_NORM) == ("model.norm.weight",)
    assert shape.names(Place.HEAD) == ("lm_head.weight",)
    assert shape.by_name["model.layers.2.mlp.down_proj.weight"].layer == 2
    writers = {tensor.name.split(".", 3)[3] for tensor in shape.tensors if tensor.writes_residual}
    assert writers == {"self_attn.o_proj.weight", "self_attn.o_proj.bias", "mlp.down_proj.weight"}


def test_families_are_discovered_by_file():
    assert "LlamaForCausalLM" in all_families()


def test_content_hash_is_independent_of_sharding(tiny):
    single = Checkpoint.open(tiny("single", seed=1))
    cut = tiny("cut", seed=1, max_shard_size="20KB")
    assert len(shards(cut)) > 2
    assert Checkpoint.open(cut).content_sha256() == single.content_sha256()
    assert Checkpoint.open(tiny("other", seed=2)).content_sha256() != single.content_sha256()


def test_content_hash_covers_dtype_and_name(tiny):
    folder = tiny("model")
    before = Checkpoint.open(folder).content_sha256()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].bfloat16()  # ones: the same values in another type
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert Checkpoint.open(folder).content_sha256() != before


def test_rotary_tables_and_the_copy_of_a_tied_head_are_ignored(tiny):
    folder = tiny("model", tie_word_embeddings=True)
    before = Checkpoint.open(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    after = Checkpoint.open(folder)
    assert after.tensors.keys() == before.tensors.keys()
    assert after.content_sha256() == before.content_sha256()


def test_a_tied_head_that_differs_is_rejected(tiny):
    folder = tiny("model", tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.safetensors: 'lm_head\.weight' differs"):
        Checkpoint.open(folder)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def garble(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not a safetensors file at all")


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def extra_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.layers.7.mlp.up_proj.weight": torch.ones(2)}, folder / "model.safetensors")


def integer_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(32, dtype=torch.int8)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"model\.safetensors: not a complete safetensors file"),
        (garble, r"model\.safetensors: not a complete safetensors file"),
        (pickle_only, r"model: only pickled weights.*Only safetensors.*allow them with --allow-pickle"),
        (drop_tensor, r"model\.safetensors: tensor 'model\.layers\.1\.mlp\.up_proj\.weight' is missing"),
        (extra_tensor, r"model\.safetensors: unexpected tensor 'model\.layers\.7\.mlp\.up_proj\.weight'"),
        (integer_tensor, r"model\.safetensors: tensor 'model\.norm\.weight' is stored as I8"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"model: no weights"),
        (lambda folder: (folder / "config.json").unlink(), r"config\.json: No such file"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json: invalid JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), r"config\.json: got a list"),
        (
            lambda folder: edit_config(folder, architectures=["NewForCausalLM"]),
            r"'NewForCausalLM' is not supported.*Llama",
        ),
        (lambda folder: edit_config(folder, architectures=None), r"config\.json: architectures: got None"),
        (lambda folder: edit_config(folder, num_hidden_layers=0), r"config\.json: num_hidden_layers: got 0"),
        (lambda folder: edit_config(folder, quantization_config={"bits": 4}), r"the weights are quantized"),
    ],
)
def test_damage_gives_one_error_that_names_the_file(tiny, damage, message):
    folder = tiny("model")
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder)


def test_a_missing_shard_is_named(tiny):
    folder = tiny("model", max_shard_size="20KB")
    gone = shards(folder)[1]
    gone.unlink()
    with pytest.raises(CheckpointError, match=f"{gone.name}: no such file"):
        Checkpoint.open(folder)


def test_a_shard_that_lacks_an_indexed_tensor_is_named(tiny):
    folder = tiny("model", max_shard_size="20KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    name, place = next(iter(index["weight_map"].items()))
    wrong = next(path.name for path in shards(folder) if path.name != place)
    index["weight_map"][name] = wrong
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=f"{wrong}: tensor '{name}' is missing"):
        Checkpoint.open(folder)


def test_an_index_may_not_point_outside_its_folder(tiny):
    folder = tiny("model", max_shard_size="20KB")
    index = {"weight_map": {"model.norm.weight": "../other/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"weight_map\.model\.norm\.weight: got"):
        Checkpoint.open(folder)


def test_a_safetensors_index_never_opens_a_pickle(tiny):
    folder = tiny("model", max_shard_size="20KB")
    index = {"weight_map": {"model.norm.weight": "pytorch_model.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"got 'pytorch_model\.bin'\. The name of a \.safetensors file"):
        Checkpoint.open(folder, allow_pickle=True)


def test_shards_keep_their_own_dtypes(tiny):
    folder = tiny("model", max_shard_size="20KB")
    expected = {}
    for path, dtype in zip(shards(folder), (torch.bfloat16, torch.float16, torch.float32, torch.float64), strict=False):
        tensors = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
        save_file(tensors, path, {"format": "pt"})
        expected |= tensors
    checkpoint = Checkpoint.open(folder)
    assert {"BF16", "F16", "F32"} <= {info.dtype for info in checkpoint.tensors.values()}
    for name, tensor in expected.items():
        assert checkpoint.load(name).dtype == tensor.dtype
        assert torch.equal(checkpoint.load(name), tensor)


def make_gpt2(folder: Path) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(folder)
    return folder


def test_names_without_the_prefix_are_mapped_to_the_familys(tmp_path):
    folder = make_gpt2(tmp_path / "gpt2")
    before = Checkpoint.open(folder)
    tensors = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 16, 16, dtype=torch.uint8)
    save_file(bare, folder / "model.safetensors")
    after = Checkpoint.open(folder)
    assert "transformer.wte.weight" in after.tensors
    assert torch.equal(after.load("transformer.wte.weight"), tensors["transformer.wte.weight"])
    assert after.content_sha256() == before.content_sha256()


def test_duplicate_names_of_one_tensor_are_rejected(tmp_path):
    folder = make_gpt2(tmp_path / "gpt2")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"ln_f.bias": torch.zeros(16)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: '.*ln_f\.bias' and '.*ln_f\.bias' are both 'trans"):
        Checkpoint.open(folder)
