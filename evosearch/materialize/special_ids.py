"""Ids of tokens in configs: what config.json and generation_config.json say of them, in another vocabulary."""

from collections.abc import Mapping
from typing import Any

from evosearch.checkpoints.tokenizers.tokenizer import Vocabulary

ONE, SEVERAL = "_token_id", ("suppress_tokens", "begin_suppress_tokens")


def in_vocabulary(settings: Mapping[str, Any], old: Vocabulary, new: Vocabulary, size: int) -> dict[str, Any]:
    """A config whose ids stand for the same tokens in another vocabulary.

    Where the new tokenizer gives a role (`bos`, `eos`, `pad`) to another token than the old one did, that token has it
    in the config, too. An id of a token that is not in the new vocabulary becomes null, or leaves its list.

    Args:
        size: rows of the new embeddings; ids without a token are kept below it.
    """
    changed = dict(settings)
    for key, value in settings.items():
        if key.endswith(ONE):
            changed[key] = _renamed(value, old, new, size, key.removesuffix(ONE))
        elif key in SEVERAL:
            changed[key] = _renamed(value, old, new, size)
    return changed


def _renamed(value: Any, old: Vocabulary, new: Vocabulary, size: int, role: str | None = None) -> Any:
    token = new.roles.get(role) if role is not None else None
    named = new.ids[token] if token is not None and token != old.roles.get(role or "") else None
    if isinstance(value, list):
        ids = [named, *(_id(entry, old, new, size) for entry in value)]
        return list(dict.fromkeys(id for id in ids if id is not None))
    if value is None or named is None:
        return _id(value, old, new, size)
    return named


def _id(value: Any, old: Vocabulary, new: Vocabulary, size: int) -> Any:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return value  # none, or one that means none
    token = old.tokens.get(value)
    if token is not None:
        return new.ids.get(token)
    return value if value < size else None
