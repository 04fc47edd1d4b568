"""Digests of the config and tokenizer files that accompany a model's weights.

`content_sha256` covers only the weights, but with another rotary base or tokenizer the same weights are another model.
"""

import hashlib
import json

from evosearch.checkpoints.model_files import listed, read_bytes
from evosearch.checkpoints.reader import CONFIG, Checkpoint
from evosearch.checkpoints.writer import COMPANIONS, TOKENIZER_FILES

NO_EFFECT = ("_name_or_path", "transformers_version")  # keys of config.json about the model's origin


def files_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Return file name → sha256 (hex) of a model's config and tokenizer files."""
    config = {key: value for key, value in checkpoint.config.items() if key not in NO_EFFECT}
    found = {CONFIG: hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()}
    for folder, names in ((checkpoint.folder, COMPANIONS), (checkpoint.tokenizer_folder, TOKENIZER_FILES)):
        for name, path in listed(folder, names).items():
            found[name] = hashlib.sha256(read_bytes(path, folder)).hexdigest()
    return found
