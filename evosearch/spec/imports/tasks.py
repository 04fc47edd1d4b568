"""Suites from lists of lm-eval tasks: chance levels, and documents that a search may see."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from evosearch.spec.imports.imported import SEARCH, TEST, VALIDATION

# Beginning of a task's name → chance level of its accuracy, dataset split of search and validation documents
FROM_TRAIN, FROM_VALIDATION = "train", "validation"
BENCHMARKS: dict[str, tuple[float, str | None]] = {
    "gsm8k": (0.0, FROM_TRAIN),
    "arc_easy": (0.25, FROM_TRAIN),
    "arc_challenge": (0.25, FROM_TRAIN),
    "hellaswag": (0.25, FROM_TRAIN),
    "winogrande": (0.5, FROM_TRAIN),
    "piqa": (0.5, FROM_TRAIN),
    "boolq": (0.5, FROM_TRAIN),
    "openbookqa": (0.25, FROM_TRAIN),
    "sciq": (0.25, FROM_TRAIN),
    "commonsense_qa": (0.2, FROM_TRAIN),
    "mmlu": (0.25, FROM_VALIDATION),
    "truthfulqa": (0.25, None),
}
COUNTED = ("exact_match", "pass", "f1", "em")  # metrics of generated text, whose chance level is 0


@dataclass(frozen=True)
class Task:
    """One task of another tool.

    Attributes:
        name: lm-eval's name on the search split.
        metric: lm-eval's metric, with or without a filter: `acc,none`.
        weight: Its weight; negative for a task that is to get worse.
        test: lm-eval's name on the test split, if it is another.
        label: Its name in the suite; empty for lm-eval's.
    """

    name: str
    metric: str
    weight: float = 1.0
    test: str | None = None
    label: str = ""


def suite_of(
    name: str, tasks: Sequence[Task], search: int | None, changes: list[str], **options: Any
) -> dict[str, Any]:
    """Return a suite with these tasks.

    Args:
        name: Its name.
        tasks: The tasks.
        search: Documents of the search split; None if the file limits none.
        changes: Receives what changes and why.
        options: Further keys of the suite; None is left out.
    """
    count = search or SEARCH
    suite: dict[str, Any] = {"name": name}
    suite |= {key: value for key, value in options.items() if value is not None}
    suite["tasks"] = [_entry(task, changes) for task in tasks]
    suite["documents"] = {"search": count, "validation": VALIDATION, "test": TEST}
    if search is None:
        changes.append(f"limit: no number of documents is given; {SEARCH} of each task are searched on")
    return suite


def _entry(task: Task, changes: list[str]) -> dict[str, Any]:
    metric, _, filter_name = task.metric.partition(",")
    chance, source = _benchmark(task, metric, changes)
    named: Any = task.name
    if task.test and task.test != task.name:
        named = {"search": task.name, "validation": task.name, "test": task.test}
    entry: dict[str, Any] = {"task": named} | ({"name": task.label} if task.label else {}) | {"metric": metric}
    if filter_name not in ("", "none"):
        entry["filter"] = filter_name
    if task.weight < 0:
        entry |= {"unlearn": True}
        changes.append(f"{task.name}: a negative weight is an unlearning target here, which scores 1 - {metric}")
    else:
        entry["chance"] = chance
    if abs(task.weight) != 1.0:
        entry["weight"] = abs(task.weight)
    if source is not None and isinstance(named, str):
        entry["documents_from"] = {"search": source, "validation": source}
        changes.append(
            f"{task.name}: search and validation use its `{source}` documents; tuning on the documents that others "
            "are compared on would be contamination"
        )
    return entry


def _benchmark(task: Task, metric: str, changes: list[str]) -> tuple[float, str | None]:
    """Return chance level and dataset split of a task."""
    known = next((BENCHMARKS[name] for name in BENCHMARKS if task.name.startswith(name)), None)
    if metric.startswith(COUNTED):
        return 0.0, known[1] if known else None
    if known is not None:
        return known
    changes.append(f"{task.name}: its chance level is not known and taken as 0: set `chance` to 1 / number of choices")
    return 0.0, None


def names(tasks: Iterable[Task]) -> list[str]:
    """Return the tasks' names in the suite."""
    return [task.label or task.name for task in tasks]
