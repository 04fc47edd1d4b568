"""LoRA adapters as peft saves them: what is checked of one before it is taken."""

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evosearch.errors import CheckpointError
from examples.smollm2.base import load_base, quiet
from examples.smollm2.folders import file_sha256, progress

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def check_adapter(folder: Path) -> dict[str, str]:
    """sha256 of an adapter's two files, after checking that they are there and a LoRA."""
    allowed, next = "A LoRA adapter as peft saves it", "Train it with scripts/train_experts, or give --experts DIR"
    if not folder.is_dir():
        raise CheckpointError(f"--experts: {folder}", "no such folder", allowed, next)
    digests = {}
    for key, name in (("config_sha256", CONFIG), ("weights_sha256", WEIGHTS)):
        if not (folder / name).is_file():
            raise CheckpointError(str(folder / name), "missing", allowed, next)
        digests[key] = file_sha256(folder / name)
    try:
        kind = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["peft_type"]
    except (ValueError, KeyError, TypeError):
        kind = None
    if kind != "LORA":
        raise CheckpointError(str(folder / CONFIG), f"peft_type {kind!r}", "LORA")
    return digests


def copy_adapter(base: Path, adapter: Path, folder: Path) -> None:
    """The adapter's two files into a folder, after attaching it to the base to see that it fits.

    Raises:
        CheckpointError: the adapter's tensors do not fit the base.
    """
    progress(f"{adapter.name}: checking the adapter against the base")
    model, _ = load_base(base)
    attached(model, adapter)
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(adapter / name, folder / name)


def attached(model: Any, adapter: Path) -> Any:
    """The model with the adapter attached, every tensor of the adapter accounted for."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(adapter / WEIGHTS, "pt") as file:
            given = set(file.keys())
        with quiet(), peft_warnings():
            model = PeftModel.from_pretrained(model, str(adapter))
    except (RuntimeError, ValueError, TypeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(str(adapter), f"does not fit the base: {reason}") from None
    taken = set(get_peft_model_state_dict(model, save_embedding_layers=False))  # "auto" asks the hub for the base
    if given != taken:
        odd = sorted(given ^ taken)[0]
        what = f"{len(given - taken)} tensors the base has no place for, {len(taken - given)} lacking"
        raise CheckpointError(str(adapter), f"does not fit the base: {what}, first {odd}")
    return model


@contextmanager
def peft_warnings() -> Iterator[None]:
    """Without warnings that are peft's own affair, or an error of ours."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*missing adapter keys", UserWarning)  # an error in `attached`
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield
