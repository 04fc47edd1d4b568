"""Few-shot examples that do not give the answer away, where documents come from the split that examples come from.

lm-eval leaves a document out of its own examples where both come from its test split by name, and nowhere else. Here
two kinds of examples are kept from a document: itself, with its copies, near-duplicates and group; and the documents
(with what is tied to them) that the suite's other splits drew, or answers of the test would stand in what is searched
by. Where examples come from another dataset split than the documents, validation and test prompts may show what was
searched on, as lm-eval's own do.

Examples of a data file of their own are known by their hashes. They are compared for near-duplicates only beside
`documents_from`, where they and the documents are of one origin; elsewhere they are what `lm_eval` shows.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from evosearch.documents import join
from evosearch.errors import SuiteError
from evosearch.evaluation.suites.sources import dataset_split, evaluated_split
from evosearch.evaluation.suites.splits import document_hash


def example_pool(where: str, name: str, task: Any, source: str) -> list[Any]:
    """What a task draws its examples from; empty where it shows none.

    Args:
        source: the dataset split of the documents, empty for those that lm-eval evaluates.

    Raises:
        SuiteError: the task draws them by code of its own, which nothing can be kept from, and `source` is not empty.
    """
    if not task.config.num_fewshot:
        return []
    if not hasattr(getattr(task, "sampler", None), "df"):
        if not source:
            return []
        what = f"'{name}' draws its few-shot examples by code of its own: a document could be its own example"
        raise SuiteError(join(where, "documents_from"), what, next="Set `num_fewshot: 0`, or remove documents_from")
    return list(task.sampler.df)


class Kept:
    """Which examples are a document, a copy of it, or tied to it.

    Where examples are processed otherwise than documents, their hashes differ: a document is then known by its place.

    Args:
        source: the dataset split of the documents, empty for those that lm-eval evaluates.
        hashes: of the documents, by doc id.
        pool: see `example_pool`.
        ties: document hash → keys that it shares with its near-duplicates and its group.
    """

    def __init__(
        self, task: Any, source: str, hashes: Sequence[str], pool: Sequence[Any], ties: Mapping[str, Sequence[str]]
    ) -> None:
        self._ties = ties
        self._at: dict[str, set[int]] = {}  # document or key → positions of the examples
        if not pool:
            self.apart = True
            return
        # Examples come from another dataset split, or are written out in the YAML.
        self.apart = _example_split(task) != dataset_split(task, source or evaluated_split(task))
        examples = list(map(document_hash, pool))
        if len(pool) == len(hashes) and not self.apart:
            examples += hashes
        for index, example in enumerate(examples):
            for key in (example, *ties.get(example, ())):
                self._at.setdefault(key, set()).add(index % len(pool))

    def of(self, documents: Iterable[str]) -> frozenset[int]:
        """Positions in the pool of the examples that are these documents or tied to them."""
        keys = {key for doc_hash in documents for key in (doc_hash, *self._ties.get(doc_hash, ()))}
        return frozenset[int]().union(*(self._at.get(key, ()) for key in keys))


def check_enough(where: str, name: str, task: Any, split: str, size: int, left_out: int) -> None:
    """Refuse a task that has fewer examples left than it shows.

    Args:
        where: the task's key in the suite.
        name: the lm-eval task's.
        size: of its pool of examples.
        left_out: how many of them a document of `split` must not be shown.

    Raises:
        SuiteError: too few are left.
    """
    shown = task.config.num_fewshot
    drawn = shown + (task.fewshot_cfg.split == task.config.test_split)  # lm-eval draws one more, to drop the document
    if left_out and size - left_out < drawn:
        what = f"'{name}' shows {shown} examples, and {size - left_out} of {size} are left for a document of {split}: "
        what += "neither it nor documents of the other splits are shown"
        next_step = "Set `fewshot_split` in the task's YAML to other documents, or ask for fewer `documents`"
        raise SuiteError(join(where, "task"), what, next=next_step)


@contextmanager
def without(task: Any, positions: Collection[int]) -> Iterator[None]:
    """While this lasts, examples at these positions are not drawn."""
    if not positions:
        yield
        return
    pool = task.sampler.df
    left_out = frozenset(positions)
    task.sampler.df = [example for position, example in enumerate(pool) if position not in left_out]
    try:
        yield
    finally:
        task.sampler.df = pool


def _example_split(task: Any) -> str | None:
    """The dataset split that examples come from, by lm-eval's rule; None where they are written out in the YAML."""
    config = task.fewshot_cfg
    if config.split is not None or config.samples is not None:
        return None if config.split is None else str(config.split)
    if task.has_training_docs():
        return dataset_split(task, "train")
    return dataset_split(task, "validation" if task.has_validation_docs() else "test")
