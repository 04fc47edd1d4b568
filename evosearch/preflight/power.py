"""What a test split is too small for, told before a search starts: it would run to its end, and promote nothing."""

import math
from collections.abc import Iterator

from scipy.special import ndtri

from evosearch.evaluation.statistics.intervals import CONFIDENCE, proportion_difference
from evosearch.evaluation.suites.suite import Suite
from evosearch.evaluation.types import ItemBatch, ItemSet

FEWEST = 5  # independent units of a task: with fewer, even a win on every one is not shown to be a gain


def hardly_decided(suite: Suite, test: ItemBatch) -> list[str]:
    """A sentence for each scoring task and each guard that the test split can hardly say anything of."""
    sets = {items.task: items for items in test.sets}
    return [*_few_units(suite, sets), *_narrow_guards(suite, sets)]


def _few_units(suite: Suite, sets: dict[str, ItemSet]) -> Iterator[str]:
    for index, task in enumerate(suite.tasks):
        items = sets[task.name]
        count = len(set(items.groups)) if items.groups else len(items)
        if task.report_only or count >= FEWEST:
            continue
        what = "independent groups" if items.groups else "items"
        where = suite.where("tasks", index, "documents", "test")
        yield (
            f"{where}: '{task.name}' has {count} {what} on test, and what so few say is too uncertain to promote by. "
            f"Ask for documents that make at least {FEWEST}, better 100"
        )


def _narrow_guards(suite: Suite, sets: dict[str, ItemSet]) -> Iterator[str]:
    """Of items that stand alone: the gate's bound for groups is by what they show, and is not known before."""
    z2 = float(ndtri(CONFIDENCE)) ** 2
    for index, (guard, task) in enumerate(zip(suite.guards, suite.guarded, strict=True)):
        items, points = sets[task.name], 100 / (1 - task.chance)  # points that a mean of one is worth
        if items.groups:
            continue
        lowest = -points * proportion_difference(0, 0, len(items))[0]  # of no change: points z² / (n + z²)
        if lowest <= guard.max_drop:
            continue
        where = suite.where("guards", index)
        enough = f"at least {math.ceil(z2 * (points / guard.max_drop - 1))} items or " if guard.max_drop else ""
        yield (
            f"{where}: guard on '{task.name}': {len(items)} right-or-wrong test items, even with no "
            f"answer changed, cannot exclude a drop of {lowest:.1f} points, and max_drop is {guard.max_drop:g}. "
            f"Ask for {enough}max_drop {math.ceil(10 * lowest) / 10:g}"
        )
