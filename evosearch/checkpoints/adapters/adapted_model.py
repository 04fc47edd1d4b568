"""LoRA adapters applied to their base: θ + ΔW, ΔW = scale · B·A  (Hu et al. 2021, eq. 3).

| stored | resulting tensor |
|---|---|
| `M.lora_A.weight`, `M.lora_B.weight` | θ + scale · B·A, transposed if the layer stores (in, out) |
| `M.lora_embedding_A`, `M.lora_embedding_B` | θ + scale · (B·A)ᵀ |
| also `M.lora_magnitude_vector` (DoRA) | m · (θ + ΔW) / ‖θ + ΔW‖, norms over the weights of each output |
| `M.weight`, `M.bias` (`modules_to_save`, trained biases) | the stored tensor |

M is the path of a module in the live transformers model. Results are float32 even if base and adapter are narrower.
Neighbouring bfloat16 numbers differ by 2⁻⁸ of a weight, and fine-tuning mostly changes weights by less. Rounding the
sum, as peft does for a bfloat16 base, would therefore discard the task vector before it is merged.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from evosearch.checkpoints import pickles
from evosearch.checkpoints.adapters.adapter_config import AdapterConfig, read_config
from evosearch.checkpoints.adapters.tensors import AdapterTensors, Change
from evosearch.checkpoints.cache.hashes import Hashes
from evosearch.checkpoints.digest import DTYPE_NAMES, combine, finite, tensor_line
from evosearch.checkpoints.overlay import Computed, Overlay
from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.references import ADAPTER_WEIGHTS
from evosearch.checkpoints.tensor_files import Pickled, Safetensors, TensorFile, TensorInfo
from evosearch.errors import CheckpointError
from evosearch.untrusted import present


def apply_adapter(
    base: Checkpoint, folder: Path, reference: str, allow_pickle: bool = False, hashes: Hashes | None = None
) -> Overlay:
    """Return a model with a LoRA adapter applied. Only headers are read; tensors are computed when they are loaded.

    Args:
        base: The base model.
        folder: Folder with adapter_config.json and adapter_model.safetensors (or .bin if pickles are allowed).
        reference: Reference of the result.
        allow_pickle: Read pickled weights if there are no others.
        hashes: Cache of hashes.

    Raises:
        CheckpointError: The adapter is damaged, incomplete, not supported, or does not fit the base.
    """
    config, file = read_config(folder), open_weights(folder, allow_pickle)
    changes = AdapterTensors(base, config, file).changes()
    overlay = changed(base, changes, reference, cache(lambda: _content(base, file, changes, hashes)))
    overlay.notes += _other_base(base, config)
    return overlay


def changed(base: Checkpoint, changes: Mapping[str, Change], reference: str, content: Callable[[], str]) -> Overlay:
    """Return a model with the changes of an adapter.

    Args:
        base: The base model.
        changes: Tensor of the base → its change.
        reference: Reference of the result.
        content: Returns content_sha256 of the result.
    """
    replaced: dict[str, Computed] = {}
    for name, change in changes.items():
        replaced[name] = (TensorInfo(DTYPE_NAMES[change.dtype], base.tensors[name].shape), change.make)
    factors = {name: change.factors for name, change in changes.items() if change.is_low_rank}
    return Overlay(base, reference, content, replaced, factors=factors)


def open_weights(folder: Path, allow_pickle: bool = False) -> TensorFile:
    """Open the weights of an adapter.

    Raises:
        CheckpointError: There are none, they are damaged, or they are pickled, which is not allowed.
    """
    if present(folder / ADAPTER_WEIGHTS):
        return Safetensors(folder / ADAPTER_WEIGHTS)
    if present(folder / pickles.ADAPTER):
        if not allow_pickle:
            raise pickles.refused(folder, [ADAPTER_WEIGHTS])
        return Pickled(folder / pickles.ADAPTER)
    raise CheckpointError(str(folder), "no weights", ADAPTER_WEIGHTS, "Download or copy the adapter again")


def _content(base: Checkpoint, file: TensorFile, changes: Mapping[str, Change], hashes: Hashes | None) -> str:
    """Return a hash of base and adapter: the base's content, the stored tensors, and how the config applies them."""

    def hashed() -> str:
        loaded = ((name, finite(file.load(name), str(file.path), f"'{name}'")) for name in file.names())
        return combine(tensor_line(name, tensor) for name, tensor in loaded)

    weights = hashes.of([file.path], hashed) if hashes else hashed()
    effect = sorted((change.described() for change in changes.values()), key=str)
    text = json.dumps(["adapter", base.content_sha256(), weights, effect])
    return hashlib.sha256(text.encode()).hexdigest()


def _other_base(base: Checkpoint, config: AdapterConfig) -> tuple[str, ...]:
    """Return a note if the adapter names another base model; only the last component of the names is compared."""
    names = [Path(name.partition("@")[0]).name.lower() for name in (base.reference, config.base_name)]
    if not names[1] or names[0] == names[1]:
        return ()
    return (f"{config.where}: trained on '{config.base_name}', applied to '{base.reference}'",)
