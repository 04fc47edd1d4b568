"""Loading of a model folder's tokenizer with transformers."""

from pathlib import Path
from typing import Any

from evosearch.checkpoints.model_files import check
from evosearch.checkpoints.tensor_files import CONFIG
from evosearch.checkpoints.writer import TOKENIZER_FILES
from evosearch.errors import CheckpointError
from evosearch.untrusted import boundary


def load_tokenizer(folder: Path, where: str | None = None) -> Any:
    """Load the tokenizer of a model folder; no code in the folder is executed.

    Args:
        folder: The folder.
        where: Place that errors name; default: the folder.

    Raises:
        CheckpointError: The tokenizer files are missing, damaged, or not regular files of the folder.
    """
    from transformers import AutoTokenizer

    check(folder, (CONFIG, *TOKENIZER_FILES))
    place = str(folder) if where is None else where
    with boundary(place, CheckpointError, "no usable tokenizer", "Add its tokenizer files"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
