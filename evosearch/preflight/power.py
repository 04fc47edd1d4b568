"""Power warnings: test splits that are too small for the gate ever to promote."""

import math
from collections.abc import Iterator

from scipy.special import ndtri

from evosearch.evaluation.statistics.intervals import CONFIDENCE, proportion_difference
from evosearch.evaluation.suites.suite import Suite
from evosearch.evaluation.types import ItemBatch, ItemSet

MIN_UNITS = 5  # independent units of a task; with fewer, not even a win on all of them is significant


def power_warnings(suite: Suite, test: ItemBatch) -> list[str]:
    """A warning for each scoring task and each guard for which the test split has too few items."""
    sets = {items.task: items for items in test.sets}
    return [*_few_units(suite, sets), *_narrow_guards(suite, sets)]


def _few_units(suite: Suite, sets: dict[str, ItemSet]) -> Iterator[str]:
    for index, task in enumerate(suite.tasks):
        if not task.labelled:
            continue
        items = sets[task.name]
        count = len(set(items.groups)) if items.groups else len(items)
        if task.report_only or count >= MIN_UNITS:
            continue
        units = "independent groups" if items.groups else "items"
        where = suite.where("tasks", index, "documents", "test")
        yield (
            f"{where}: '{task.name}' has {count} {units} on test, too few for any gain to be significant. "
            f"Use documents that give at least {MIN_UNITS}, better 100"
        )


def _narrow_guards(suite: Suite, sets: dict[str, ItemSet]) -> Iterator[str]:
    """Guards of tasks without groups; with groups, the gate's bound depends on the scores."""
    z2 = float(ndtri(CONFIDENCE)) ** 2
    for index, (guard, task) in enumerate(zip(suite.guards, suite.guarded, strict=True)):
        items, points = sets[task.name], 100 / (1 - task.chance)  # a mean of 1 in points
        if items.groups:
            continue
        lowest = -points * proportion_difference(0, 0, len(items))[0]  # with no change at all: points · z² / (n + z²)
        if lowest <= guard.max_drop:
            continue
        where = suite.where("guards", index)
        enough = f"at least {math.ceil(z2 * (points / guard.max_drop - 1))} items or " if guard.max_drop else ""
        yield (
            f"{where}: guard on '{task.name}': even if no answer changed, {len(items)} right-or-wrong test items "
            f"could not exclude a drop of {lowest:.1f} points, and max_drop is {guard.max_drop:g}. "
            f"Use {enough}max_drop {math.ceil(10 * lowest) / 10:g}"
        )
