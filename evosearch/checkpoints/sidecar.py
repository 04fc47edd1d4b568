"""What lies beside a model's weights and decides its answers all the same, by digest: its config and its tokenizer.

`content_sha256` is of the weights alone, and the same weights under another rotary base or another tokenizer are
another model.
"""

import hashlib
import json

from evosearch.checkpoints.reader import CONFIG, Checkpoint
from evosearch.checkpoints.writer import COMPANIONS, TOKENIZER_FILES

NO_EFFECT = ("_name_or_path", "transformers_version")  # keys of config.json that say who wrote it, not what it is


def files_of(checkpoint: Checkpoint) -> dict[str, str]:
    """File → sha256 (hex), of a model's config and its tokenizer's files."""
    config = {key: value for key, value in checkpoint.config.items() if key not in NO_EFFECT}
    found = {CONFIG: hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()}
    for folder, names in ((checkpoint.folder, COMPANIONS), (checkpoint.tokenizer_folder, TOKENIZER_FILES)):
        for name in names:
            if (folder / name).is_file():
                found[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return found
