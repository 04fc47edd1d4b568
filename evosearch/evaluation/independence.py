"""Tasks that score are independent of each other: they share no documents within a split. Pure.

The score's standard error adds the tasks' variances. Two tasks that ask the same documents move together: their
covariance would be left out, and a one-sided bound at 2.5% would err in 8 to 9% of cases. Near-duplicates across tasks
are not looked at: they are a handful, where the same documents are all of them.
"""

from collections.abc import Mapping, Sequence

from evosearch.errors import SuiteError
from evosearch.evaluation.splits import ORDER, Selection
from evosearch.evaluation.suite import Suite


def check_independent(
    suite: Suite, chosen: Mapping[str, Mapping[str, Selection]], ties: Mapping[str, Sequence[str]]
) -> None:
    """Refuse tasks that score and share documents, or groups of `group_by`, in a split.

    Args:
        chosen: task → split → its documents.
        ties: document hash → keys of its group (`group:…`) and of its near-duplicates.

    Raises:
        SuiteError: two tasks do.
    """
    for split in ORDER:
        first: dict[str, int] = {}  # document or group → the task that has it
        for index, task in enumerate(suite.tasks):
            if task.report_only:
                continue
            documents = chosen[task.name][split].doc_hashes
            groups = (key for doc_hash in documents for key in ties.get(doc_hash, ()) if key.startswith("group:"))
            for key in dict.fromkeys((*documents, *groups)):
                other = first.setdefault(key, index)
                if other != index:
                    _refuse(suite, split, other, index, "a group" if key.startswith("group:") else "documents")


def _refuse(suite: Suite, split: str, one: int, other: int, shared: str) -> None:
    earlier = suite.where("tasks", one).removeprefix(f"{suite.source}: ")
    what = f"'{suite.tasks[other].name}' and '{suite.tasks[one].name}' ({earlier}) both score, and share {shared} of "
    what += f"{split}: their errors are not independent"
    next_step = "Set `report_only: true` on one of them, name a second metric under `metrics`, or take other documents"
    raise SuiteError(suite.where("tasks", other), what, next=next_step)
