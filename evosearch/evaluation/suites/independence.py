"""Tasks that score are independent of each other: they share no documents within a split. Pure.

The score's standard error adds the tasks' variances. Two tasks that ask the same documents move together: their
covariance would be left out, and a one-sided bound at 2.5% would err in 8 to 9% of cases. A few sentences
that two corpora both hold change next to nothing, and near-duplicates across tasks are as few: neither is refused.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

from evosearch.errors import SuiteError
from evosearch.evaluation.suites.splits import ORDER, Selection
from evosearch.evaluation.suites.suite import Suite

_FEW = 0.05  # of a task's documents: so many shared, two tasks' variance is at most a twentieth too small


def check_independent(
    suite: Suite, chosen: Mapping[str, Mapping[str, Selection]], ties: Mapping[str, Sequence[str]]
) -> None:
    """Refuse tasks that score and share more than a few documents, or groups of `group_by`, in a split.

    Args:
        chosen: task → split → its documents.
        ties: document hash → keys of its group (`group:…`) and of its near-duplicates.

    Raises:
        SuiteError: two tasks do.
    """
    scoring = [(index, task) for index, task in enumerate(suite.tasks) if not task.report_only]
    for split in ORDER:
        of = {task.name: [_keys(h, ties) for h in chosen[task.name][split].doc_hashes] for _, task in scoring}
        for (one, first), (other, second) in combinations(scoring, 2):
            for mine, theirs in ((of[first.name], of[second.name]), (of[second.name], of[first.name])):
                known = set().union(*theirs)
                shared = sum(not known.isdisjoint(keys) for keys in mine)
                if shared > _FEW * len(mine):
                    _refuse(suite, split, one, other, shared)


def _keys(doc_hash: str, ties: Mapping[str, Sequence[str]]) -> set[str]:
    """A document and its groups."""
    return {doc_hash, *(key for key in ties.get(doc_hash, ()) if key.startswith("group:"))}


def _refuse(suite: Suite, split: str, one: int, other: int, shared: int) -> None:
    earlier = suite.where("tasks", one).removeprefix(f"{suite.source}: ")
    what = f"'{suite.tasks[other].name}' and '{suite.tasks[one].name}' ({earlier}) both score, and share {shared} "
    what += f"documents of {split}, or their groups: their errors are not independent"
    next_step = "Set `report_only: true` on one of them, name a second metric under `metrics`, or take other documents"
    raise SuiteError(suite.where("tasks", other), what, next=next_step)
