"""An lm-eval task loaded for a suite, with its documents."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from evosearch.evaluation.suites.suite_task import PromptOptions, SuiteTask


@dataclass(frozen=True)
class LoadedTask:
    """One lm-eval task as a suite uses it, with one pool of its documents."""

    spec: SuiteTask
    options: PromptOptions  # merged from the suite and the task
    where: str  # the task's key in the suite, for errors: `quickstart.yaml: tasks[1]`
    name: str  # the task's name in lm-eval
    task: Any  # lm_eval.api.task.Task
    documents: tuple[Any, ...]  # by doc id
    hashes: tuple[str, ...]  # document hash, by doc id
    ensemble: Any  # lm_eval.api.filter.FilterEnsemble
    source: str = ""  # dataset split of the documents; empty for the one that lm-eval evaluates
    # Document hash → positions of the few-shot examples that it must not see, as sets shared between documents.
    excluded: Mapping[str, Collection[frozenset[int]]] = field(default_factory=dict)
