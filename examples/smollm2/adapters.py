"""Validation and copying of LoRA adapters in peft's format."""

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


def check_adapter(folder: Path, command: str = "python -m examples.smollm2.train_experts") -> dict[str, str]:
    """Check that a folder contains a LoRA adapter; return the sha256 of its two files.

    Args:
        folder: The adapter's folder.
        command: Command that trains it, for errors.

    Raises:
        CheckpointError: The folder or a file is missing, or the adapter is not a LoRA.
    """
    allowed = "A LoRA adapter saved by peft"
    next = f"Train it with `{command}`, or give --experts DIR"
    if not folder.is_dir():
        raise CheckpointError(f"--experts: {folder}", "folder not found", allowed, next)
    digests = {}
    for key, name in (("config_sha256", CONFIG), ("weights_sha256", WEIGHTS)):
        if not (folder / name).is_file():
            raise CheckpointError(str(folder / name), "file not found", allowed, next)
        digests[key] = file_sha256(folder / name)
    try:
        kind = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["peft_type"]
    except (ValueError, KeyError, TypeError):
        kind = None
    if kind != "LORA":
        raise CheckpointError(str(folder / CONFIG), f"peft_type {kind!r}", "LORA")
    return digests


def copy_adapter(base: Path, adapter: Path, folder: Path) -> None:
    """Copy an adapter's two files into a folder after checking that it fits the base.

    Raises:
        CheckpointError: The adapter's tensors do not fit the base.
    """
    progress(f"{adapter.name}: checking the adapter against the base")
    model, _ = load_base(base)
    attach_adapter(model, adapter)
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(adapter / name, folder / name)


def attach_adapter(model: Any, adapter: Path) -> Any:
    """Attach an adapter to a model and check that every tensor is used.

    Raises:
        CheckpointError: The adapter is damaged or its tensors do not fit the base.
    """
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
    taken = set(get_peft_model_state_dict(model, save_embedding_layers=False))  # the default asks the hub for the base
    if given != taken:
        odd = sorted(given ^ taken)[0]
        what = f"{len(given - taken)} tensors without a target, {len(taken - given)} missing"
        raise CheckpointError(str(adapter), f"does not fit the base: {what}, first {odd}")
    return model


@contextmanager
def peft_warnings() -> Iterator[None]:
    """Suppress peft warnings that are harmless or that we raise as errors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*missing adapter keys", UserWarning)  # an error in `attach_adapter`
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield
