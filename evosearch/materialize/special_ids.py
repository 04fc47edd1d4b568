"""Conversion of the token ids in config.json and generation_config.json to another vocabulary."""

from collections.abc import Mapping
from typing import Any

from evosearch.checkpoints.tokenizers.tokenizer import Vocabulary

ONE, SEVERAL = "_token_id", ("suppress_tokens", "begin_suppress_tokens")


def in_vocabulary(settings: Mapping[str, Any], old: Vocabulary, new: Vocabulary, size: int) -> dict[str, Any]:
    """Convert a config's token ids to another vocabulary.

    If the new tokenizer assigns a role (`bos`, `eos`, `pad`) to a different token, the config follows. Ids of tokens
    that the new vocabulary lacks become null, or are removed from their list.

    Args:
        settings: Contents of the config.
        old: Vocabulary that the ids are from.
        new: Vocabulary to convert to.
        size: Rows of the new embeddings. Ids without a token are kept if they are below it.
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
        return value  # no id, or a placeholder such as -1
    token = old.tokens.get(value)
    if token is not None:
        return new.ids.get(token)
    return value if value < size else None
