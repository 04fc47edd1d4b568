"""Vocabularies of model folders: ids, added tokens and special tokens."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from evosearch.checkpoints.model_files import read_bytes, read_json
from evosearch.errors import CheckpointError
from evosearch.untrusted import present, quoted

TOKENIZER, MODEL, SETTINGS, SPECIAL, ADDED = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
MAX_ID = 2**22  # token ids are smaller; a union of vocabularies has a row for each id up to the largest


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
        if not present(path):
            what = f"no such file, so the vocabulary of '{reference}' cannot be read"
            next = "Load its tokenizer with transformers' AutoTokenizer and save it into the folder"
            raise CheckpointError(str(path), what, f"A {TOKENIZER}, as fast tokenizers have", next)
        data = read_json(path)
        listed = sorted(vocabulary_of(path, data).items(), reverse=True)
        ids = {token: id for id, token in listed}  # of several ids, a token keeps the lowest
        known = [_token(path, entry) for entry in data.get("added_tokens") or ()]
        added, beyond = {token.content: token for token in known}, []
        last = max(ids.values(), default=-1)
        for token, id in _further(folder):
            if token.content not in ids:
                ids[token.content] = last + 1 if id is None else id
                last = max(last, ids[token.content])
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
    for name, tokens in ((TOKENIZER, vocabulary_of), (SETTINGS, _added)):
        if present(one / name) and present(other / name):
            if read_bytes(one / name, one) == read_bytes(other / name, other):
                return None
            first, second = (tokens(folder / name, read_json(folder / name)) for folder in (one, other))
            found = _first_difference(first, second)
            if found or name == TOKENIZER:
                return found and f"{name}: {found}"
    models = [(folder / MODEL, folder) for folder in (one, other)]
    if all(present(path) for path, _ in models) and len({read_bytes(*model) for model in models}) > 1:
        return f"{MODEL}: the files differ"
    return None


def vocabulary_of(path: Path, data: Mapping[str, Any]) -> dict[int, str]:
    """Return id → token of a tokenizer.json: the vocabulary of its model and its added tokens.

    Args:
        path: The file, for errors.
        data: Its content.

    Raises:
        CheckpointError: The vocabulary is missing, or has invalid ids or tokens.
    """
    try:
        listed = data["model"]["vocab"]
        # A mapping token → id, or for Unigram models a list of [token, score] in the order of ids
        pairs = [(token, id) for id, (token, _) in enumerate(listed)] if isinstance(listed, list) else listed.items()
        found = [(id, token) for token, id in pairs]
        added = [(entry["id"], entry["content"]) for entry in data.get("added_tokens") or ()]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(str(path), "not a tokenizer: model.vocab is missing or invalid") from None
    _check_tokens(found, f"{path}: model.vocab")
    _check_tokens(added, f"{path}: added_tokens")
    return dict(found) | dict(added)


def _check_tokens(tokens: Iterable[tuple[Any, Any]], where: str) -> None:
    """Check that ids are whole numbers below `MAX_ID`, and tokens text."""
    for id, token in tokens:
        if type(id) is not int or not 0 <= id < MAX_ID:
            raise CheckpointError(
                where, f"token {quoted(token)} has the id {quoted(id)}", f"Ids from 0 to {MAX_ID - 1}"
            )
        if not isinstance(token, str):
            raise CheckpointError(where, f"{quoted(token)} is not a token", "Text")


def _token(path: Path, entry: Any) -> AddedToken:
    """Return the added token of an entry: a text, or a mapping with flags."""
    if isinstance(entry, str):
        return AddedToken(entry, special=True, normalized=False)
    if isinstance(entry, Mapping) and isinstance(entry.get("content"), str):
        return AddedToken(entry["content"], **{flag: bool(entry[flag]) for flag in FLAGS if flag in entry})
    raise CheckpointError(str(path), f"not an added token: {quoted(entry)}")


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
    _check_tokens(((id, "") for id in listed), f"{path}: added_tokens_decoder")
    for id, entry in sorted(listed.items(), key=lambda item: item[0]):
        yield _token(path, entry), id
    for role in _roles(folder).values():
        yield _token(path, role), None
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or ()
    if not isinstance(extra, list | Mapping | tuple):
        raise CheckpointError(f"{path}: extra_special_tokens", f"got {quoted(extra)}", "A list of tokens, or a mapping")
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
    return read_json(path) if present(path) else {}


def _added(path: Path, data: Mapping[str, Any]) -> dict[int, str]:
    """Return id → token for the added tokens of a tokenizer_config.json."""
    try:
        return {int(id): str(entry["content"]) for id, entry in (data.get("added_tokens_decoder") or {}).items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(f"{path}: added_tokens_decoder", "not a mapping of ids to tokens") from None


def _first_difference(one: dict[int, str], other: dict[int, str]) -> str | None:
    differing = sorted(id for id in one.keys() | other.keys() if one.get(id) != other.get(id))
    if not differing:
        return None
    first = differing[0]
    more = f" (and {len(differing) - 1} more)" if differing[1:] else ""
    return f"token {first} is {one.get(first)!r} in one and {other.get(first)!r} in the other{more}"
