"""Lessons: a teacher's answers and distributions on the items of one task, and the files that keep them.

| output type | answer positions of an item | distribution at a position |
|---|---|---|
| generate_until | tokens of the teacher's greedy answer, with the one that ends it | the K most probable tokens |
| loglikelihood | tokens of the document's continuation | the K most probable tokens |
| multiple_choice | one | the choices, by their log-likelihoods |

Top-K probabilities are renormalized: the rest of the vocabulary counts as improbable. With K at least the size of the
vocabulary they are exact.

A file is named by the content of its lesson: the teacher's recipe_id, the tokenized requests of all items (and with
them documents, prompt format, tokenizer and context length), and K. Nothing that the suite says of right answers is
part of it.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from evosearch.checkpoints.cache.drafts import draft
from evosearch.checkpoints.cache.layout import TEACHERS
from evosearch.errors import CheckpointError
from evosearch.evaluation.engine.generation_plan import GenerationRequest
from evosearch.evaluation.engine.loglikelihood import LoglikelihoodRequest
from evosearch.evaluation.engine.soft_targets import SoftTargets
from evosearch.umask import follow_umask

VERSION = 1  # of the computation; a change leaves older files unused


@dataclass(frozen=True, eq=False)
class Lesson:
    """A teacher's answers to the items of one task: N items, ΣT answer positions, ΣC choices.

    A task of choices has log-likelihoods of its choices; any other has answers with the distributions at their tokens.
    """

    counts: NDArray[np.int64]  # (N,) answer positions, or choices, of each item
    answers: NDArray[np.int32]  # (ΣT,) tokens of the answers
    tokens: NDArray[np.int32]  # (ΣT, K)
    probabilities: NDArray[np.float32]  # (ΣT, K)
    lls: NDArray[np.float64]  # (ΣC,) log-likelihood of each choice

    def place(self, item: int) -> slice:
        """Return the positions, or choices, of an item."""
        return slice(int(self._starts[item]), int(self._starts[item + 1]))

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(self.counts)])

    def answer(self, item: int) -> tuple[int, ...]:
        """Return the tokens of an item's answer."""
        return tuple(self.answers[self.place(item)].tolist())

    def targets(self, item: int) -> SoftTargets:
        """Return the distributions along an item's answer."""
        place = self.place(item)
        probabilities = self.probabilities[place].astype(np.float64)
        shares = probabilities / probabilities.sum(axis=1, keepdims=True)
        return SoftTargets(self.tokens[place].astype(np.int64), shares)

    def choice_lls(self, item: int) -> NDArray[np.float64]:
        """Return the log-likelihoods (C,) of an item's choices."""
        return self.lls[self.place(item)]

    def save(self, file: Path) -> None:
        """Write the lesson atomically.

        Raises:
            CheckpointError: The file cannot be written.
        """
        arrays = {one.name: np.ascontiguousarray(getattr(self, one.name)) for one in fields(self)}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with draft(file.parent, file.stem) as made:
                save_file(arrays, made / file.name)
                follow_umask(made / file.name)
                os.replace(made / file.name, file)
        except OSError as error:
            what = f"cannot be written: {error.strerror or error}"
            raise CheckpointError(str(file), what, next="Check disk space and permissions of EVOSEARCH_CACHE") from None

    @classmethod
    def load(cls, file: Path) -> "Lesson | None":
        """Read a lesson; None if there is no such file, or it is damaged."""
        try:
            arrays = load_file(file)
            return cls(**{one.name: arrays[one.name] for one in fields(cls)})
        except (OSError, SafetensorError, KeyError):
            return None


def lesson_file(
    cache: Path, recipe_id: str, requests: Iterable[GenerationRequest | LoglikelihoodRequest], top_k: int
) -> Path:
    """Return the file of a lesson, which need not exist yet.

    Args:
        cache: The node's cache folder.
        recipe_id: The teacher's.
        requests: The requests of all items, in order.
        top_k: Number of tokens that are kept at each position.
    """
    content = hashlib.sha256(json.dumps([VERSION, recipe_id, top_k]).encode())
    for request in requests:
        if isinstance(request, GenerationRequest):
            content.update(json.dumps([[s.text for s in request.stops], request.max_new_tokens]).encode())
            _add(content, request.prompt)
        else:
            _add(content, request.inputs)
            _add(content, request.targets)
    return cache / TEACHERS / f"{content.hexdigest()}.safetensors"


def _add(content: "hashlib._Hash", tokens: Sequence[int]) -> None:
    content.update(f"[{len(tokens)}]".encode())
    content.update(np.asarray(tokens, dtype=np.int64).tobytes())
