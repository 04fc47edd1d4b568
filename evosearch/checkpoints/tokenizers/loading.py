"""Loading of a model folder's tokenizer with transformers."""

from pathlib import Path
from typing import Any

from evosearch.errors import CheckpointError


def load_tokenizer(folder: Path, where: str | None = None) -> Any:
    """Load the tokenizer of a model folder; no code in the folder is executed.

    Args:
        folder: The folder.
        where: Place that errors name; default: the folder.

    Raises:
        CheckpointError: The tokenizer files are missing or damaged.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as exc:  # the tokenizers library raises plain Exception for a damaged file
        reason = next(iter(str(exc).splitlines()), type(exc).__name__)
        where = str(folder) if where is None else where
        raise CheckpointError(where, f"no usable tokenizer: {reason}", next="Add its tokenizer files") from exc
