"""Expansion of lm-eval groups and tags into the leaf tasks that a suite scores.

A group's weight is divided among its leaf tasks as lm-eval aggregates the group's metric: in proportion to the number
of evaluation documents if the aggregation sets `weight_by_size` (which requires loading the data), otherwise equally. A
tag has no aggregation, so its weight is divided equally.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evosearch.documents import join
from evosearch.errors import SuiteError, did_you_mean
from evosearch.evaluation.suites.lm_eval_logs import quiet
from evosearch.evaluation.suites.tasks import TaskLibrary, wrap_errors


def expand(entry: dict[str, Any], folders: Sequence[Path], where: str) -> list[dict[str, Any]]:
    """Return one suite entry, named `name/leaf`, for each leaf task of an entry's group.

    Args:
        entry: The group's entry as plain data; `chance` is one number for all leaf tasks, or a mapping by leaf task.
        folders: Folders with task YAMLs.
        where: The entry's key, for errors.

    Raises:
        SuiteError: The group is empty, refers to an unknown task, or `chance` does not match its leaf tasks.
    """
    group, name = entry["task"], entry["name"]
    with quiet():
        library = TaskLibrary(folders)
        leaves = library.leaves(join(where, "task"), group)
        if not leaves:
            raise SuiteError(join(where, "task"), f"the group '{group}' has no tasks", next="Fix the group's YAML")
        chances = _chances(entry["chance"], leaves, where)
        shares = dict.fromkeys(leaves, 1.0 / len(leaves))
        if not entry["report_only"] and library.weights_by_size(join(where, "task"), group, entry["metric"]):
            with wrap_errors(join(where, "task"), f"cannot count the documents of '{group}'"):
                sizes = {leaf: len(task.eval_docs) for leaf, task in library.members(where, group).items()}
            shares = {leaf: sizes[leaf] / sum(sizes.values()) for leaf in leaves}
    return [
        {
            **entry,
            "task": leaf,
            "group": group,
            "name": f"{name}/{leaf}",
            "chance": chances[leaf],
            "weight": entry["weight"] * shares[leaf],
        }
        for leaf in leaves
    ]


def _chances(given: float | dict[str, float], leaves: Sequence[str], where: str) -> dict[str, float]:
    if not isinstance(given, dict):
        return dict.fromkeys(leaves, given)
    for leaf in given:
        if leaf not in leaves:
            what = "not a leaf task of this group"
            allowed = f"Leaf tasks: {', '.join(leaves[:20])}"
            raise SuiteError(join(where, "chance", leaf), what, allowed, did_you_mean(leaf, leaves))
    for leaf in leaves:
        if leaf not in given:
            raise SuiteError(join(where, "chance", leaf), "missing", next="List every leaf task, or give one number")
    return given
