"""Which of an lm-eval task's own documents a split takes, and which of them may be tuned on.

The documents that lm-eval evaluates a public benchmark on are what others will measure a model by: its test set, or
its validation set where the answers of the test set are not public, as with HellaSwag. What was searched on them, or
chosen among finalists by them, is not measured by them any more: that is refused, unless the suite says that it knows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evosearch.documents import join
from evosearch.errors import SuiteError
from evosearch.evaluation.suites.suite import SuiteTask

_ACCESSORS = {"train": "training", "validation": "validation", "test": "test"}  # → lm-eval's word for it
_LOADERS = ("json", "csv", "text", "parquet", "arrow", "pandas")  # of `datasets`, for files


def source_of(where: str, spec: SuiteTask, split: str, name: str, task: Any) -> str:
    """The dataset split that a suite's split takes documents from, empty for those that lm-eval evaluates.

    Args:
        where: the task's key in the suite.
        name: the lm-eval task's, for errors.

    Raises:
        SuiteError: the task has no such documents.
    """
    asked = getattr(spec.documents_from, split)
    if asked is None or asked == evaluated_split(task):
        return ""
    have = [source for source in _ACCESSORS if _has(task, source)]
    if asked not in have:
        what = f"'{name}' has no {_ACCESSORS[asked]} documents"
        raise SuiteError(join(where, "documents_from", split), what, f"It has: {', '.join(have)}")
    return str(asked)


def documents_of(task: Any, source: str) -> Sequence[Any]:
    """The documents of a dataset split as lm-eval processes them; of an empty one, those that it evaluates."""
    documents: Sequence[Any] = getattr(task, f"{_ACCESSORS[source]}_docs")() if source else task.eval_docs
    return documents


def dataset_split(task: Any, source: str) -> str:
    """What the task's configuration calls a dataset split: `validation_split: dev` is dev."""
    return str(getattr(task.config, f"{_ACCESSORS[source]}_split", None) or source)


def hub_dataset(task: Any) -> str:
    """The name of the set that a task takes from the hub, which is public; empty where its data are files or code."""
    path = getattr(task, "DATASET_PATH", None)
    if not path or path in _LOADERS or callable(task.config.custom_dataset) or Path(path).exists():
        return ""
    return str(path)


def check_clean(where: str, spec: SuiteTask, split: str, name: str, task: Any) -> None:
    """Refuse to tune on the documents that lm-eval evaluates a public task on.

    Raises:
        SuiteError: `split` is search or validation, and would take them.
    """
    evaluated = evaluated_split(task)
    benchmark = dataset_split(task, evaluated)
    source = getattr(spec.documents_from, split) or evaluated
    if split == "test" or dataset_split(task, source) != benchmark:
        return
    key = join(where, "documents_from", split) if getattr(spec.documents_from, split) else join(where, "task")
    taken = "test documents" if evaluated == "test" else "the validation documents, which lm-eval evaluates,"
    what = (
        f"{split} would take {taken} of '{name}', a public benchmark{_of_hub(task)}, and tune on what it is tested by"
    )
    others = [each for each in ("train", "validation") if _has(task, each) and dataset_split(task, each) != benchmark]
    ways = [f"`documents_from: {{search: {others[0]}, validation: {others[-1]}}}`"] if others else []
    ways.append("another task for each split as `task: {search: …, validation: …, test: …}`")
    next_step = f"Set {', or '.join(ways)}, or, to do it all the same and say so, `acknowledge_contamination: true`"
    raise SuiteError(key, what, next=next_step)


def evaluated_split(task: Any) -> str:
    """The dataset split whose documents lm-eval evaluates the task on."""
    return "test" if task.has_test_docs() else "validation"


def _of_hub(task: Any) -> str:
    return f" ({hub_dataset(task)})" if hub_dataset(task) else ""


def _has(task: Any, source: str) -> bool:
    return bool(getattr(task, f"has_{_ACCESSORS[source]}_docs")())
