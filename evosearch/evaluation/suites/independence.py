"""Check that scoring tasks share almost no documents within a split. Pure.

The score's standard error adds the variances of the tasks. Two tasks on the same documents are correlated, and ignoring
their covariance would raise the error rate of a one-sided 2.5% bound to 8-9%. A few shared sentences, or
near-duplicates across tasks, have a negligible effect and are accepted.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

from evosearch.errors import SuiteError
from evosearch.evaluation.suites.splits import ORDER, Selection
from evosearch.evaluation.suites.suite import Suite

_MAX_SHARED = 0.05  # fraction of a task's documents; the variance of two tasks is then underestimated by at most 1/20


def check_independent(
    suite: Suite, chosen: Mapping[str, Mapping[str, Selection]], links: Mapping[str, Sequence[str]]
) -> None:
    """Reject scoring tasks that share more than a few documents or `group_by` groups within a split.

    Args:
        suite: The suite.
        chosen: Task → split → selected documents.
        links: Document hash → keys of its group (`group:…`) and of its near-duplicates.

    Raises:
        SuiteError: Two scoring tasks share too many documents.
    """
    scoring = [(index, task) for index, task in enumerate(suite.tasks) if not task.report_only]
    for split in ORDER:
        keys = {task.name: [_keys(h, links) for h in chosen[task.name][split].doc_hashes] for _, task in scoring}
        for (one, first), (other, second) in combinations(scoring, 2):
            for mine, theirs in ((keys[first.name], keys[second.name]), (keys[second.name], keys[first.name])):
                known = set().union(*theirs)
                shared = sum(not known.isdisjoint(own) for own in mine)
                if shared > _MAX_SHARED * len(mine):
                    _reject(suite, split, one, other, shared)


def _keys(doc_hash: str, links: Mapping[str, Sequence[str]]) -> set[str]:
    """A document and its groups."""
    return {doc_hash, *(key for key in links.get(doc_hash, ()) if key.startswith("group:"))}


def _reject(suite: Suite, split: str, one: int, other: int, shared: int) -> None:
    earlier = suite.where("tasks", one).removeprefix(f"{suite.source}: ")
    what = f"'{suite.tasks[other].name}' and '{suite.tasks[one].name}' ({earlier}) both score and share {shared} "
    what += f"documents or groups of the {split} split, so their errors are not independent"
    next_step = "Set `report_only: true` on one of them, list a second metric under `metrics`, or use other documents"
    raise SuiteError(suite.where("tasks", other), what, next=next_step)
