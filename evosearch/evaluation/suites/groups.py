"""Groups and tags of lm-eval in a suite, expanded to the leaf tasks that they stand for.

A group's weight is shared out as lm-eval's aggregation of the group's metric shares it: by the number of evaluation
documents where it says `weight_by_size`, which needs the tasks' data, and equally otherwise. Tags have no aggregation.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evosearch.documents import join
from evosearch.errors import SuiteError, did_you_mean
from evosearch.evaluation.harness.quiet import quiet
from evosearch.evaluation.suites.tasks import TaskLibrary, refusing


def expand(entry: dict[str, Any], folders: Sequence[Path], where: str) -> list[dict[str, Any]]:
    """One entry of a suite for each leaf task of the group that `entry` names, called `name/leaf`.

    Args:
        entry: the group's entry, as data; its `chance` is for all leaf tasks, or a mapping that names each.
        folders: with task YAMLs.
        where: the entry's key, for errors.

    Raises:
        SuiteError: the group is empty, names what is unknown, or `chance` does not name its leaf tasks.
    """
    group, name = entry["task"], entry["name"]
    with quiet():
        library = TaskLibrary(folders)
        leaves = library.leaves(join(where, "task"), group)
        if not leaves:
            raise SuiteError(join(where, "task"), f"the group '{group}' has no tasks", next="Mend the group's YAML")
        chances = _chances(entry["chance"], leaves, where)
        shares = dict.fromkeys(leaves, 1.0 / len(leaves))
        if not entry["report_only"] and library.weights_by_size(join(where, "task"), group, entry["metric"]):
            with refusing(join(where, "task"), f"the documents of '{group}' cannot be counted"):
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


def _chances(asked: float | dict[str, float], leaves: Sequence[str], where: str) -> dict[str, float]:
    if not isinstance(asked, dict):
        return dict.fromkeys(leaves, asked)
    for leaf in asked:
        if leaf not in leaves:
            what = "no leaf task of this group"
            allowed = f"Leaf tasks: {', '.join(leaves[:20])}"
            raise SuiteError(join(where, "chance", leaf), what, allowed, did_you_mean(leaf, leaves))
    for leaf in leaves:
        if leaf not in asked:
            raise SuiteError(join(where, "chance", leaf), "missing", next="Name every leaf task, or give one number")
    return asked
