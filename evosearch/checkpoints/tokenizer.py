"""Tokenizers as merging must know them: which id means which token."""

import hashlib
from pathlib import Path
from typing import Any

from evosearch.checkpoints.reader import read_json
from evosearch.errors import CheckpointError


def difference(one: Path, other: Path) -> str | None:
    """How the vocabularies of two model folders differ, in words; None where they agree or cannot be compared.

    Compared through tokenizer.json where both folders have one, else through the added tokens of
    tokenizer_config.json, else tokenizer.model.

    Raises:
        CheckpointError: a tokenizer file is damaged.
    """
    for name, read in (("tokenizer.json", _vocabulary), ("tokenizer_config.json", _added)):
        if (one / name).is_file() and (other / name).is_file():
            if (one / name).read_bytes() == (other / name).read_bytes():
                return None
            found = _first_difference(read(one / name), read(other / name))
            if found or name == "tokenizer.json":
                return found and f"{name}: {found}"
    model = [folder / "tokenizer.model" for folder in (one, other)]
    if (
        all(path.is_file() for path in model)
        and len({hashlib.sha256(path.read_bytes()).digest() for path in model}) > 1
    ):
        return "tokenizer.model: the files differ"
    return None


def _vocabulary(path: Path) -> dict[int, str]:
    """Id → token, of a tokenizer.json: its model's vocabulary and its added tokens."""
    data = read_json(path)
    try:
        listed = data["model"]["vocab"]
        # A mapping token → id, or for Unigram models a list of [token, score] in order of ids.
        pairs = [(token, id) for id, (token, _) in enumerate(listed)] if isinstance(listed, list) else listed.items()
        return {id: token for token, id in pairs} | {
            entry["id"]: entry["content"] for entry in data.get("added_tokens", ())
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(str(path), "not a tokenizer: no model.vocab in it") from None


def _added(path: Path) -> dict[int, str]:
    """Id → token, for the added tokens of a tokenizer_config.json."""
    data: Any = read_json(path).get("added_tokens_decoder", {})
    try:
        return {int(id): entry["content"] for id, entry in data.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(f"{path}: added_tokens_decoder", "not a mapping of ids to tokens") from None


def _first_difference(one: dict[int, str], other: dict[int, str]) -> str | None:
    differing = sorted(id for id in one.keys() | other.keys() if one.get(id) != other.get(id))
    if not differing:
        return None
    first = differing[0]
    more = f" (and {len(differing) - 1} more)" if differing[1:] else ""
    return f"token {first} is {one.get(first)!r} in one and {other.get(first)!r} in the other{more}"
