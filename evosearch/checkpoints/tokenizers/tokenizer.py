"""Vocabularies of model folders: ids, added tokens and special tokens."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from evosearch.checkpoints.reader import read_json
from evosearch.errors import CheckpointError

TOKENIZER, SETTINGS, SPECIAL, ADDED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model as in transformers after loading the tokenizer.

    Attributes:
        ids: Token → id.
        added: Added tokens with their flags; they are matched in a text before the tokenizer's model runs.
        roles: `bos`, `eos`, … → token.
        beyond: Tokens that transformers adds to those of tokenizer.json, in the order of their ids.
    """

    ids: Mapping[str, int]
    added: Mapping[str, AddedToken]
    roles: Mapping[str, str]
    beyond: tuple[str, ...] = ()

    @cached_property
    def tokens(self) -> Mapping[int, str]:
        """Id → token, in the order of ids."""
        return {id: token for token, id in sorted(self.ids.items(), key=lambda item: (item[1], item[0]))}

    @classmethod
    def read(cls, folder: Path, reference: str) -> "Vocabulary":
        """Read the vocabulary of a model folder.

        Args:
            folder: Folder of the tokenizer.
            reference: Reference of the model, for errors.

        Raises:
            CheckpointError: There is no tokenizer.json, or a tokenizer file is damaged.
        """
        path = folder / TOKENIZER
        if not path.is_file():
            what = f"no such file, so the vocabulary of '{reference}' cannot be read"
            next = "Load its tokenizer with transformers' AutoTokenizer and save it into the folder"
            raise CheckpointError(str(path), what, f"A {TOKENIZER}, as fast tokenizers have", next)
        data = read_json(path)
        listed = sorted(_vocabulary(path, data).items(), reverse=True)
        ids = {token: id for id, token in listed}  # of several ids, a token keeps the lowest
        known = [_token(path, entry) for entry in data.get("added_tokens") or ()]
        added, beyond = {token.content: token for token in known}, []
        for token, id in _further(folder):
            if token.content not in ids:
                ids[token.content] = max(ids.values(), default=-1) + 1 if id is None else id
                added[token.content] = token
                beyond.append(token.content)
        return cls(ids, added, _roles(folder), tuple(beyond))


def difference(one: Path, other: Path) -> str | None:
    """Describe how the vocabularies of two model folders differ; None if they agree or cannot be compared.

    Compares tokenizer.json if both folders have one, else the added tokens of tokenizer_config.json, else
    tokenizer.model.

    Raises:
        CheckpointError: A tokenizer file is damaged.
    """
    for name, tokens in ((TOKENIZER, _vocabulary), (SETTINGS, _added)):
        if (one / name).is_file() and (other / name).is_file():
            if (one / name).read_bytes() == (other / name).read_bytes():
                return None
            first, second = (tokens(folder / name, read_json(folder / name)) for folder in (one, other))
            found = _first_difference(first, second)
            if found or name == TOKENIZER:
                return found and f"{name}: {found}"
    model = [folder / "tokenizer.model" for folder in (one, other)]
    if (
        all(path.is_file() for path in model)
        and len({hashlib.sha256(path.read_bytes()).digest() for path in model}) > 1
    ):
        return "tokenizer.model: the files differ"
    return None


def _vocabulary(path: Path, data: Mapping[str, Any]) -> dict[int, str]:
    """Return id → token of a tokenizer.json: the vocabulary of its model and its added tokens."""
    try:
        listed = data["model"]["vocab"]
        # A mapping token → id, or for Unigram models a list of [token, score] in the order of ids
        pairs = [(token, id) for id, (token, _) in enumerate(listed)] if isinstance(listed, list) else listed.items()
        return {id: token for token, id in pairs} | {
            entry["id"]: entry["content"] for entry in data.get("added_tokens", ())
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(str(path), "not a tokenizer: model.vocab is missing or invalid") from None


def _token(path: Path, entry: Any) -> AddedToken:
    """Return the added token of an entry: a text, or a mapping with flags."""
    if isinstance(entry, str):
        return AddedToken(entry, special=True, normalized=False)
    if isinstance(entry, Mapping) and isinstance(entry.get("content"), str):
        return AddedToken(entry["content"], **{flag: bool(entry[flag]) for flag in FLAGS if flag in entry})
    raise CheckpointError(str(path), f"not an added token: {entry!r}")


def _further(folder: Path) -> Iterator[tuple[AddedToken, int | None]]:
    """Yield the tokens that transformers adds when it loads the tokenizer, with their ids where given.

    The order is that of transformers: tokens with ids, then tokens with roles.
    """
    path, settings = folder / SETTINGS, _read(folder / SETTINGS)
    decoder = settings.get("added_tokens_decoder") or {}
    older = _read(folder / ADDED) if not decoder else {}
    try:
        listed = {int(id): entry for id, entry in decoder.items()}
        listed |= {int(id): {"content": token, "normalized": False} for token, id in older.items()}
    except (TypeError, ValueError, AttributeError):
        raise CheckpointError(f"{path}: added_tokens_decoder", "not a mapping of ids to tokens") from None
    for id, entry in sorted(listed.items(), key=lambda item: item[0]):
        yield _token(path, entry), id
    for role in _roles(folder).values():
        yield _token(path, role), None
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or ()
    for entry in extra.values() if isinstance(extra, Mapping) else extra:
        yield _token(path, entry), None


def _roles(folder: Path) -> dict[str, str]:
    """Return role → token from tokenizer_config.json, or from special_tokens_map.json if not given there."""
    found = {}
    settings, older = _read(folder / SETTINGS), _read(folder / SPECIAL)
    for role in ROLES:
        value = settings.get(f"{role}_token", older.get(f"{role}_token"))
        text = value.get("content") if isinstance(value, Mapping) else value
        if isinstance(text, str) and text:
            found[role] = text
    return found


def _read(path: Path) -> Mapping[str, Any]:
    return read_json(path) if path.is_file() else {}


def _added(path: Path, data: Mapping[str, Any]) -> dict[int, str]:
    """Return id → token for the added tokens of a tokenizer_config.json."""
    try:
        return {int(id): entry["content"] for id, entry in data.get("added_tokens_decoder", {}).items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(f"{path}: added_tokens_decoder", "not a mapping of ids to tokens") from None


def _first_difference(one: dict[int, str], other: dict[int, str]) -> str | None:
    differing = sorted(id for id in one.keys() | other.keys() if one.get(id) != other.get(id))
    if not differing:
        return None
    first = differing[0]
    more = f" (and {len(differing) - 1} more)" if differing[1:] else ""
    return f"token {first} is {one.get(first)!r} in one and {other.get(first)!r} in the other{more}"
