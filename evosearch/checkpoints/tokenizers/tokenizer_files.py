"""Tokenizer files of a model: read them, add tokens, set the chat template, and store them in a cache by content."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from evosearch.checkpoints.cache.drafts import draft
from evosearch.checkpoints.model_files import check_contents, listed, read_bytes, read_json
from evosearch.checkpoints.tokenizers import chat_template
from evosearch.checkpoints.tokenizers.tokenizer import ADDED, FLAGS, SETTINGS, TOKENIZER, Vocabulary, vocabulary_of
from evosearch.checkpoints.writer import TOKENIZER_FILES
from evosearch.errors import CheckpointError
from evosearch.untrusted import boundary, present

Files = Mapping[str, bytes]  # path within the folder → content


def read(folder: Path) -> Files:
    """Read the tokenizer and chat template files of a model folder.

    Raises:
        CheckpointError: There are none, or one cannot be read.
    """
    found = {name: read_bytes(path, folder) for name, path in listed(folder, TOKENIZER_FILES).items()}
    if SETTINGS in found:
        read_json(folder / SETTINGS)  # which names the file if it is damaged
    if not found:
        what = "no tokenizer files"
        raise CheckpointError(
            str(folder),
            what,
            f"One of {', '.join(TOKENIZER_FILES[:3])}",
            "Copy the model's tokenizer files into the folder",
        )
    return found


def check(folder: Path) -> None:
    """Check the tokenizer and chat template files of a model folder, before they are copied anywhere.

    Raises:
        CheckpointError: A file is damaged; the message names it.
    """
    check_contents(folder, (name for name in TOKENIZER_FILES if name != TOKENIZER))
    if present(folder / TOKENIZER):
        vocabulary_of(folder / TOKENIZER, read_json(folder / TOKENIZER))


def digest(files: Files) -> str:
    """Return the sha256 (hex) over names and contents of the files."""
    total = hashlib.sha256()
    for name, data in sorted(files.items()):
        total.update(f"{name}\n{hashlib.sha256(data).hexdigest()}\n".encode())
    return total.hexdigest()


def store(files: Files, cache: Path) -> Path:
    """Return a folder in `cache` with exactly these files, created atomically; safe for concurrent processes.

    Raises:
        CheckpointError: The folder cannot be written.
    """
    folder = cache / digest(files)
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with draft(cache, folder.name) as made:
            for name, data in files.items():
                (made / name).parent.mkdir(parents=True, exist_ok=True)
                (made / name).write_bytes(data)
            _rename(made, folder)  # unless another process was faster
    except OSError as error:
        what = f"cannot be written: {error.strerror or error}"
        raise CheckpointError(
            str(folder), what, next="Check disk space and permissions, or choose another cache"
        ) from None
    return folder


def with_tokens(files: Files, vocabulary: Vocabulary, tokens: Sequence[AddedToken], reference: str) -> Files:
    """Return the files of a tokenizer with more added tokens; existing ids stay, new tokens follow in order.

    Args:
        files: Files of a tokenizer.
        vocabulary: Vocabulary of `files`.
        tokens: Tokens to add. An existing token becomes an added token, matched before the tokenizer's model runs.
        reference: Reference of the model, for errors.

    Raises:
        CheckpointError: The tokenizers library cannot add tokens to this tokenizer.
    """
    new = [*(vocabulary.added[token] for token in vocabulary.beyond), *tokens]
    if not new:
        return files
    what = f"cannot add tokens to the tokenizer of '{reference}'"
    with boundary("recipe.tokenizer", CheckpointError, what, "Choose another model as its source"):
        tokenizer = Tokenizer.from_str(files[TOKENIZER].decode())
        tokenizer.add_tokens(new)
    _check_ids(tokenizer, vocabulary, tokens, reference)
    text = tokenizer.to_str(pretty=True)
    changed = dict(files) | {TOKENIZER: text.encode()}
    changed.pop(ADDED, None)  # tokenizer.json has all of them; this file would be read as a complete list
    settings = json.loads(files.get(SETTINGS, b"{}"))
    if settings.get("added_tokens_decoder"):
        entries = json.loads(text)["added_tokens"]
        decoder = {str(entry["id"]): {key: entry[key] for key in ("content", *FLAGS)} for entry in entries}
        changed[SETTINGS] = _json(settings | {"added_tokens_decoder": decoder})
    return changed


def with_template(files: Files, template: str) -> Files:
    """Return the files with `template` as the only chat template."""
    others = (chat_template.OLDER, chat_template.NAMED)
    changed = {name: data for name, data in files.items() if name.split("/")[0] not in others}
    if SETTINGS in files:
        settings = json.loads(files[SETTINGS])
        if settings.pop("chat_template", None) is not None:
            changed[SETTINGS] = _json(settings)
    return changed | {chat_template.FILE: template.encode()}


def _check_ids(tokenizer: Tokenizer, vocabulary: Vocabulary, tokens: Sequence[AddedToken], reference: str) -> None:
    """Check the ids of added tokens: the library counts tokens, which reuses ids if the existing ids have gaps."""
    last = max(vocabulary.ids.values(), default=-1)
    names = [token.content for token in tokens if token.content not in vocabulary.ids]
    expected = {token: vocabulary.ids[token] for token in vocabulary.beyond}
    expected |= {token: last + 1 + index for index, token in enumerate(names)}
    for token, id in expected.items():
        if tokenizer.token_to_id(token) != id:
            what = f"token {token!r} cannot be added to the tokenizer of '{reference}' with id {id}"
            next = "Choose another model as recipe.tokenizer.source"
            raise CheckpointError("recipe.tokenizer", what, "A tokenizer whose ids have no gaps", next)


def _rename(made: Path, folder: Path) -> None:
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():  # created by another process
            raise


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()
