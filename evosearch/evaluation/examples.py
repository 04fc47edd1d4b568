"""Few-shot examples that do not give the answer away, where documents come from the split that examples come from.

lm-eval leaves a document out of its own examples where both come from the test split, and nowhere else, since it scores
nothing else. Documents that `documents_from` takes from the training split need the same: the document, its copies and
its near-duplicates are left out of what its examples are drawn from.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from evosearch.documents import join
from evosearch.errors import SuiteError
from evosearch.evaluation.sources import dataset_split
from evosearch.evaluation.splits import document_hash


def example_pool(where: str, name: str, task: Any) -> list[Any]:
    """What a task draws its examples from; empty where it shows none.

    Raises:
        SuiteError: the task draws them by code of its own, which nothing can be kept from.
    """
    if not task.config.num_fewshot:
        return []
    if not hasattr(getattr(task, "sampler", None), "df"):
        what = f"'{name}' draws its few-shot examples by code of its own: a document could be its own example"
        raise SuiteError(join(where, "documents_from"), what, next="Set `num_fewshot: 0`, or remove documents_from")
    return list(task.sampler.df)


def own_examples(
    task: Any, source: str, hashes: Sequence[str], pool: Sequence[Any], clusters: Mapping[str, str]
) -> dict[str, tuple[int, ...]]:
    """Document hash → positions in `pool` of the examples that are the document, a copy or a near-duplicate of it.

    Where examples are processed otherwise than documents, their hashes differ: a document is then known by its place.

    Args:
        source: the dataset split of the documents.
        hashes: of the documents, by doc id.
        pool: see `example_pool`.
        clusters: document hash → cluster, of near-duplicates among documents and examples.
    """
    at: dict[str, set[int]] = {}  # document or cluster → positions of the examples
    examples = list(map(document_hash, pool))
    if len(pool) == len(hashes) and _example_split(task) == dataset_split(task, source):
        examples += hashes
    for position, example in enumerate(examples):
        at.setdefault(clusters.get(example, example), set()).add(position % len(pool))
    own = {doc_hash: at.get(clusters.get(doc_hash, doc_hash), set()) for doc_hash in hashes}
    return {doc_hash: tuple(sorted(positions)) for doc_hash, positions in own.items() if positions}


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
