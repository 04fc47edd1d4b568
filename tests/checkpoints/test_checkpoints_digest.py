"""`content_sha256`: a literal value, an independent computation, and everything that it must cover."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from evosearch.checkpoints.digest import combine, tensor_line
from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.writer import CheckpointWriter

CONFIG = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1, "tie_word_embeddings": True}
LAYER = "model.layers.0."
SHAPES = {
    "model.embed_tokens.weight": (3, 2),
    f"{LAYER}input_layernorm.weight": (2,),
    f"{LAYER}self_attn.q_proj.weight": (2, 2),
    f"{LAYER}self_attn.k_proj.weight": (2, 2),
    f"{LAYER}self_attn.v_proj.weight": (2, 2),
    f"{LAYER}self_attn.o_proj.weight": (2, 2),
    f"{LAYER}post_attention_layernorm.weight": (2,),
    f"{LAYER}mlp.gate_proj.weight": (4, 2),
    f"{LAYER}mlp.up_proj.weight": (4, 2),
    f"{LAYER}mlp.down_proj.weight": (2, 4),
    "model.norm.weight": (2,),
}
WIDTH = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}  # bytes per number
# Masks of random merge methods are keyed by this hash, so it must never change
PINNED = "1983bd62770c74d30cb36ead2df4e07c42cc41bd82fedf3b23e29e61d0f370a0"


def contents() -> dict[str, bytes]:
    """Tensor → its bytes: 32-bit numbers that differ in every tensor."""
    return {
        name: np.arange(index * 10, index * 10 + np.prod(shape), dtype="<f4").tobytes()
        for index, (name, shape) in enumerate(SHAPES.items())
    }


def write(folder: Path, data: dict[str, bytes], dtypes: dict[str, str] | None = None) -> Path:
    """Write a safetensors file by hand."""
    folder.mkdir()
    header: dict[str, object] = {}
    offset = 0
    for name, content in data.items():
        dtype = (dtypes or {}).get(name, "F32")
        shape = shape_of(name, content, dtype)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(content)]}
        offset += len(content)
    text = json.dumps(header).encode()
    body = b"".join(data.values())
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def shape_of(name: str, content: bytes, dtype: str) -> list[int]:
    """Return the shape of a tensor whose bytes are read as another type: its last dimension changes."""
    rows = SHAPES[name][:-1]
    return [*rows, len(content) // WIDTH[dtype] // int(np.prod(rows))]


def by_hand(dtypes: dict[str, str] | None = None) -> str:
    """Compute the digest of `contents` without the code under test."""
    digest = hashlib.sha256()
    for name, content in sorted(contents().items()):
        dtype = (dtypes or {}).get(name, "F32")
        sizes = ", ".join(map(str, shape_of(name, content, dtype)))
        digest.update(f'["{name}", "{dtype}", [{sizes}], "{hashlib.sha256(content).hexdigest()}"]\n'.encode())
    return digest.hexdigest()


def sha256_of(folder: Path) -> str:
    return Checkpoint.open(folder).content_sha256()


def test_the_digest_has_a_fixed_value(tmp_path: Path) -> None:
    assert by_hand() == PINNED
    assert sha256_of(write(tmp_path / "model", contents())) == PINNED


def test_a_written_checkpoint_has_the_same_digest(tmp_path: Path) -> None:
    source = Checkpoint.open(write(tmp_path / "model", contents()))
    with CheckpointWriter(tmp_path / "out", list(SHAPES.items()), torch.float32, source.folder) as writer:
        for name in SHAPES:
            writer.add(name, source.load(name))
    assert writer.weights_sha256 == sha256_of(tmp_path / "out") == PINNED


def test_the_order_of_the_file_does_not_matter(tmp_path: Path) -> None:
    assert sha256_of(write(tmp_path / "model", dict(reversed(contents().items())))) == PINNED


def test_tensors_that_swap_names_change_the_digest(tmp_path: Path) -> None:
    data = contents()
    one, other = f"{LAYER}input_layernorm.weight", f"{LAYER}post_attention_layernorm.weight"
    assert sha256_of(write(tmp_path / "model", data | {one: data[other], other: data[one]})) != PINNED


@pytest.mark.parametrize("name", SHAPES)
def test_the_same_bytes_with_another_dtype_change_the_digest(name: str, tmp_path: Path) -> None:
    found = {dtype: sha256_of(write(tmp_path / dtype, contents(), {name: dtype})) for dtype in ("F16", "BF16")}
    assert found == {dtype: by_hand({name: dtype}) for dtype in found}
    assert len({PINNED, *found.values()}) == 3


@pytest.mark.parametrize("name", SHAPES)
def test_every_tensor_changes_the_digest(name: str, tmp_path: Path) -> None:
    data = contents()
    changed = bytes([data[name][0] ^ 1]) + data[name][1:]
    assert sha256_of(write(tmp_path / "model", data | {name: changed})) != PINNED


def test_a_line_covers_name_type_shape_and_bytes() -> None:
    tensor = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    lines = [
        tensor_line("a", tensor),
        tensor_line("b", tensor),
        tensor_line("a", tensor.view(torch.int32).view(torch.float32).reshape(4)),
        tensor_line("a", tensor + 1),
        tensor_line("a", tensor.view(torch.float16)),
        tensor_line("a", tensor.view(torch.bfloat16)),
    ]
    assert len({combine([line]) for line in lines}) == len(lines)
