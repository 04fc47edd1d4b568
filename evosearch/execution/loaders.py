"""Loading of tokenizers and reference schemes, shared by controller and workers."""

from importlib import import_module
from pathlib import Path
from typing import Any

from evosearch.errors import CheckpointError


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a model folder; no code in the folder is executed.

    Raises:
        CheckpointError: The tokenizer files are missing or damaged.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as exc:  # the tokenizers library raises plain Exception for a damaged file
        reason = next(iter(str(exc).splitlines()), type(exc).__name__)
        raise CheckpointError(str(folder), f"no usable tokenizer: {reason}", next="Add its tokenizer files") from exc


def register_schemes(modules: tuple[str, ...] = ("evosearch.zoo",)) -> None:
    """Register the reference schemes (`zoo:`) of these modules in this process."""
    for module in modules:
        import_module(module).register()
