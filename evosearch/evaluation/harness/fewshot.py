"""Few-shot seeds, and exclusion of few-shot examples that would leak answers.

lm-eval only excludes a document from its own examples if both come from the test split. Here, a document's prompt never
shows the document itself, its copies, its near-duplicates or its group, nor documents of the suite's other splits or
documents linked to those: search prompts would otherwise contain test answers. If examples and documents come from
different dataset splits, validation and test prompts may show documents of the search split, as lm-eval's own do.

Examples from a separate data file are identified by their hashes. They are compared for near-duplicates only if the
task sets `documents_from`, so that examples and documents have the same origin; otherwise they are exactly lm-eval's.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from evosearch.documents import join
from evosearch.errors import SuiteError
from evosearch.evaluation.suites.sources import dataset_split, evaluated_split
from evosearch.evaluation.suites.splits import document_hash


def example_pool(where: str, name: str, task: Any, source: str) -> list[Any]:
    """Return the pool that a task draws its few-shot examples from; empty for a zero-shot task.

    Args:
        where: The task's key in the suite, for errors.
        name: Name of the lm-eval task, for errors.
        task: The lm-eval task.
        source: Dataset split of the documents; empty for the one that lm-eval evaluates.

    Raises:
        SuiteError: `source` is set, but the task draws examples with its own code, from which none can be excluded.
    """
    if not task.config.num_fewshot:
        return []
    if not hasattr(getattr(task, "sampler", None), "df"):
        if not source:
            return []
        what = f"'{name}' draws few-shot examples with its own code: a document could be its own example"
        raise SuiteError(join(where, "documents_from"), what, next="Set `num_fewshot: 0`, or remove documents_from")
    return list(task.sampler.df)


class ExampleIndex:
    """Index of a pool of few-shot examples by the documents that they equal or are linked to.

    If examples are processed differently from documents, their hashes differ, and a document is found by its position.

    Args:
        task: The lm-eval task.
        source: Dataset split of the documents; empty for the one that lm-eval evaluates.
        hashes: Hashes of the documents, by doc id.
        pool: The examples, see `example_pool`.
        links: Document hash → keys that it shares with its near-duplicates and its group.

    Attributes:
        separate: Whether examples come from another dataset split than the documents, or are literals in the YAML.
    """

    def __init__(
        self, task: Any, source: str, hashes: Sequence[str], pool: Sequence[Any], links: Mapping[str, Sequence[str]]
    ) -> None:
        self._links = links
        self._at: dict[str, set[int]] = {}  # document or key → positions of the examples
        if not pool:
            self.separate = True
            return
        self.separate = _example_split(task) != dataset_split(task, source or evaluated_split(task))
        examples = list(map(document_hash, pool))
        if len(pool) == len(hashes) and not self.separate:
            examples += hashes
        for index, example in enumerate(examples):
            for key in (example, *links.get(example, ())):
                self._at.setdefault(key, set()).add(index % len(pool))

    def positions(self, documents: Iterable[str]) -> frozenset[int]:
        """Return the positions in the pool of all examples that equal these documents or are linked to them."""
        keys = {key for doc_hash in documents for key in (doc_hash, *self._links.get(doc_hash, ()))}
        return frozenset[int]().union(*(self._at.get(key, ()) for key in keys))


def check_enough(where: str, name: str, task: Any, split: str, size: int, excluded: int) -> None:
    """Check that enough examples are left after exclusion.

    Args:
        where: The task's key in the suite, for errors.
        name: Name of the lm-eval task, for errors.
        task: The lm-eval task.
        split: Split of the document.
        size: Number of examples in the pool.
        excluded: Number of examples that the document's prompt must not show.

    Raises:
        SuiteError: Fewer examples are left than the task shows.
    """
    shown = task.config.num_fewshot
    drawn = shown + (task.fewshot_cfg.split == task.config.test_split)  # lm-eval draws a spare one, in case of itself
    if excluded and size - excluded < drawn:
        what = (
            f"'{name}' shows {shown} few-shot examples, but only {size - excluded} of {size} are left for a document "
        )
        what += f"of the {split} split: the document itself and documents of other splits are excluded"
        next_step = "Set `fewshot_split` in the task's YAML to other documents, or request fewer `documents`"
        raise SuiteError(join(where, "task"), what, next=next_step)


def seed_of(doc_hash: str) -> int:
    """Return the seed of a document's few-shot draw; its examples thus do not depend on the rest of the batch."""
    return int(hashlib.sha256(doc_hash.encode()).hexdigest()[:8], 16)


@contextmanager
def without(task: Any, positions: Collection[int]) -> Iterator[None]:
    """Exclude the examples at these positions inside the block."""
    if not positions:
        yield
        return
    pool = task.sampler.df
    excluded = frozenset(positions)
    task.sampler.df = [example for position, example in enumerate(pool) if position not in excluded]
    try:
        yield
    finally:
        task.sampler.df = pool


def _example_split(task: Any) -> str | None:
    """Dataset split that examples come from, by lm-eval's rule; None if they are literals in the YAML."""
    config = task.fewshot_cfg
    if config.split is not None or config.samples is not None:
        return None if config.split is None else str(config.split)
    if task.has_training_docs():
        return dataset_split(task, "train")
    return dataset_split(task, "validation" if task.has_validation_docs() else "test")
