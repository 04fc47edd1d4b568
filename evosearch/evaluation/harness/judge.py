"""A task's own verdict on answers: lm-eval's filters and `process_results`, on real or on supposed answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np


def process_results(
    task: Any, ensemble: Any, documents: Sequence[tuple[Any, Sequence[Any]]], answers: Sequence[Sequence[Any]]
) -> list[Mapping[str, Any]]:
    """Return each document's metrics, computed by lm-eval; the instances are reset afterwards.

    Args:
        task: lm_eval.api.task.Task.
        ensemble: lm_eval.api.filter.FilterEnsemble.
        documents: Each document with its lm-eval instances.
        answers: Each document's answers, one for each instance.
    """
    instances = [instance for _, own in documents for instance in own]
    try:
        for (_, own), given in zip(documents, answers, strict=True):
            for instance, answer in zip(own, given, strict=True):
                instance.resps = [answer] * (instance.repeats or 1)
        ensemble.apply(instances)
        key = ensemble.name
        return [task.process_results(document, [one.filtered_resps[key] for one in own]) for document, own in documents]
    finally:
        for instance in instances:
            instance.resps, instance.filtered_resps = [], {}


@dataclass(frozen=True)
class Judge:
    """Verdicts on answers to one document, by the suite's metric."""

    task: Any  # lm_eval.api.task.Task
    ensemble: Any  # lm_eval.api.filter.FilterEnsemble
    metric: str
    document: Any
    instances: Sequence[Any]

    def right(self, answers: Sequence[Any]) -> bool:
        """Whether the metric of these answers, one for each instance, is 1."""
        try:
            (row,) = process_results(self.task, self.ensemble, [(self.document, self.instances)], [answers])
        except Exception:  # the task's own code, on an answer that no model gave
            return False
        return self._is_one(row)

    def right_conclusion(self, text: str) -> bool:
        """Whether the metric is 1 if the filters give this text."""
        try:
            row = self.task.process_results(self.document, [text])
        except Exception:  # as above
            return False
        return self._is_one(row)

    def _is_one(self, row: Mapping[str, Any]) -> bool:
        value = row.get(self.metric)
        return isinstance(value, Real | np.number | np.bool_) and float(value) >= 1 - 1e-9
