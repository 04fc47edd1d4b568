"""Dataset splits of an lm-eval task that a suite's splits draw from, and the check against benchmark contamination.

lm-eval evaluates a public benchmark on its test set, or on its validation set if the test answers are not public (as
with HellaSwag). Scores on those documents are biased for a model that was searched or selected on them, so tuning on
them is an error unless the suite sets `acknowledge_contamination`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evosearch.documents import join
from evosearch.errors import SuiteError
from evosearch.evaluation.suites.suite_task import SuiteTask

_ACCESSORS = {"train": "training", "validation": "validation", "test": "test"}  # → lm-eval's name
_LOADERS = ("json", "csv", "text", "parquet", "arrow", "pandas")  # file loaders of `datasets`


def source_of(where: str, spec: SuiteTask, split: str, name: str, task: Any) -> str:
    """Return the dataset split that a suite's split draws from, or "" for the one that lm-eval evaluates.

    Args:
        where: The task's key in the suite, for errors.
        spec: The task's entry in the suite.
        split: Split of the suite.
        name: Name of the lm-eval task, for errors.
        task: The lm-eval task.

    Raises:
        SuiteError: The task has no documents in the requested dataset split.
    """
    wanted = getattr(spec.documents_from, split)
    if wanted is None or wanted == evaluated_split(task):
        return ""
    available = [source for source in _ACCESSORS if _has(task, source)]
    if wanted not in available:
        what = f"'{name}' has no {_ACCESSORS[wanted]} documents"
        raise SuiteError(join(where, "documents_from", split), what, f"Available: {', '.join(available)}")
    return str(wanted)


def documents_of(task: Any, source: str) -> Sequence[Any]:
    """Return the documents of a dataset split as lm-eval processes them; "" is the split that it evaluates."""
    documents: Sequence[Any] = getattr(task, f"{_ACCESSORS[source]}_docs")() if source else task.eval_docs
    return documents


def dataset_split(task: Any, source: str) -> str:
    """Return the task's own name for a dataset split, e.g. dev for `validation_split: dev`."""
    return str(getattr(task.config, f"{_ACCESSORS[source]}_split", None) or source)


def hub_dataset(task: Any) -> str:
    """Return the name of a task's (public) dataset on the Hugging Face Hub, or "" if its data are files or code."""
    path = getattr(task, "DATASET_PATH", None)
    if not path or path in _LOADERS or callable(task.config.custom_dataset) or Path(path).exists():
        return ""
    return str(path)


def check_clean(where: str, spec: SuiteTask, split: str, name: str, task: Any) -> None:
    """Reject tuning on the documents that lm-eval evaluates a public task on.

    Raises:
        SuiteError: `split` is search or validation and would draw from these documents.
    """
    evaluated = evaluated_split(task)
    benchmark = dataset_split(task, evaluated)
    source = getattr(spec.documents_from, split) or evaluated
    if split == "test" or dataset_split(task, source) != benchmark:
        return
    key = join(where, "documents_from", split) if getattr(spec.documents_from, split) else join(where, "task")
    taken = "the test documents" if evaluated == "test" else "the validation documents, which lm-eval evaluates,"
    what = (
        f"the {split} split would draw from {taken} of '{name}', a public benchmark{_of_hub(task)}: "
        "the search would tune on the benchmark's evaluation data"
    )
    others = [each for each in ("train", "validation") if _has(task, each) and dataset_split(task, each) != benchmark]
    options = [f"`documents_from: {{search: {others[0]}, validation: {others[-1]}}}`"] if others else []
    options.append("a separate task for each split with `task: {search: …, validation: …, test: …}`")
    next_step = f"Set {', or '.join(options)}, or `acknowledge_contamination: true` to proceed and report it"
    raise SuiteError(key, what, next=next_step)


def evaluated_split(task: Any) -> str:
    """Return the dataset split that lm-eval evaluates the task on."""
    return "test" if task.has_test_docs() else "validation"


def _of_hub(task: Any) -> str:
    return f" ({hub_dataset(task)})" if hub_dataset(task) else ""


def _has(task: Any, source: str) -> bool:
    return bool(getattr(task, f"has_{_ACCESSORS[source]}_docs")())
