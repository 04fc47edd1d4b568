"""Tokens of a recipe's sample: prompts of a suite's task as they are scored, or texts of a file."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from evosearch.errors import CheckpointError, RecipeError, did_you_mean
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.suites.suite import load_suite
from evosearch.recipe.sample import Sample
from evosearch.untrusted import boundary, read_text

MAX_BYTES = 2**28  # of a file of texts
LINES = ".jsonl"

Tokens = tuple[tuple[int, ...], ...]  # of each document


def read_tokens(sample: Sample, tokenizer: Any, max_length: int) -> Tokens:
    """Return the token ids of every document, each of at least one and at most `sample.tokens` tokens.

    Args:
        sample: The sample, with absolute paths.
        tokenizer: The models' transformers tokenizer.
        max_length: The models' context length in tokens.

    Raises:
        RecipeError: The file of texts cannot be read, has no texts, or the suite has no such task.
        SuiteError: The suite cannot be loaded.
        CheckpointError: The tokenizer cannot encode a text.
    """
    most = min(sample.tokens, max_length)
    if sample.suite is not None:
        assert sample.task is not None
        found = _prompts(sample, tokenizer, max_length)
        found = [tokens[-most:] for tokens in found]  # the answer follows the end
    else:
        assert sample.text is not None
        texts = _texts(Path(sample.text))[: sample.documents]
        where = str(getattr(tokenizer, "name_or_path", "") or "tokenizer")
        with boundary(where, CheckpointError, "the tokenizer cannot encode a text of the sample"):
            found = [tuple(tokenizer(text)["input_ids"][:most]) for text in texts]
    kept = tuple(tokens for tokens in found if tokens)
    if not kept:
        raise RecipeError("recipe.sample", "has no documents with tokens", next="Name other texts")
    return kept


def digest_of(tokens: Tokens) -> str:
    """Return the sha256 (hex) of the documents' tokens."""
    content = hashlib.sha256()
    for document in tokens:
        content.update(f"[{len(document)}]".encode())
        content.update(np.asarray(document, dtype=np.int64).tobytes())
    return content.hexdigest()


def _prompts(sample: Sample, tokenizer: Any, max_length: int) -> list[tuple[int, ...]]:
    assert sample.suite is not None
    suite = load_suite(Path(sample.suite))
    names = [task.name for task in suite.tasks]
    if sample.task not in names:
        near = did_you_mean(str(sample.task), names)
        raise RecipeError("recipe.sample.task", f"{sample.suite} has no task '{sample.task}'", ", ".join(names), near)
    return Harness(suite).prompts(str(sample.task), sample.split, sample.documents, tokenizer, max_length)


def _texts(path: Path) -> list[str]:
    """Return the texts of a file, without empty ones.

    Raises:
        RecipeError: The file cannot be read, or a line is not an object with a text.
    """
    whole = read_text(path, RecipeError, MAX_BYTES)
    if path.suffix != LINES:
        return [text for part in whole.split("\n\n") if (text := part.strip())]
    found = []
    for number, line in enumerate(whole.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            text = json.loads(line).get("text")
        except (ValueError, AttributeError, RecursionError):
            raise RecipeError(where, "is not a JSON object", 'Lines such as {"text": "…"}') from None
        if not isinstance(text, str):
            raise RecipeError(f"{where}: text", "missing, or not a text", 'Lines such as {"text": "…"}')
        found += [text] if text.strip() else []
    return found
