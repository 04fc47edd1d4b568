"""Documents of the tiny tasks, as in `evals/tiny/documents.py` but twice as many.

They continue the same stream, whose strings are reserved for evaluation: no model was trained on them.
"""

from typing import Any

from datasets import Dataset

from evosearch.zoo.tiny_data import POOL, rows

DOCUMENTS = 2 * POOL  # per task


def load(tiny_task: str, **_metadata: Any) -> dict[str, Dataset]:
    """Load the evaluation documents of one task, in a fixed order.

    Args:
        tiny_task: reverse, sort, deal or median, from the task's `dataset_kwargs`.
        _metadata: Run metadata from lm-eval, ignored.
    """
    return {"test": Dataset.from_list(rows(tiny_task, DOCUMENTS))}
