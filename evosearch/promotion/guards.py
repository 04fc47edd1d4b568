"""Guards at the gate: the winner's drop on a guarded task must be shown not to exceed what is allowed. Pure.

A test of non-inferiority: the lower one-sided bound of (winner - reference), in points of that task alone, must not lie
below -max_drop. Like every condition of the gate it must hold together with all others, so no bound is corrected.

Of right-or-wrong items that stand alone, the bound is that of Tango's score test, which asks what a drop of max_drop
would show (see inference.proportion_difference); of others, and where items have groups, Student's t. So `max_drop: 0`
asks for a gain that is shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evosearch.evaluation.statistics.intervals import CONFIDENCE, paired_difference, proportion_difference
from evosearch.evaluation.statistics.units import Groups
from evosearch.evaluation.types import Column


@dataclass(frozen=True)
class Guarded:
    """One guarded task, with the items of the baseline that it is held against."""

    task: str
    max_drop: float  # points, 100 (m - c) / (1 - c)
    chance: float  # c
    reference: str  # base, or the parent that is best at the task
    column: Column  # (items,) the reference's


@dataclass(frozen=True)
class GuardCheck:
    """What the test split says of one guard; differences are challenger minus reference, in points of the task."""

    task: str
    max_drop: float
    challenger: str
    reference: str
    difference: float
    stderr: float
    lower: float
    upper: float
    holds: bool
    n: int  # items


def hold(
    challenger: str, column: Column, guarded: Guarded, groups: Groups | None, confidence: float = CONFIDENCE
) -> GuardCheck:
    """Whether the challenger is shown to keep a guarded task.

    Args:
        column: (items,) the challenger's, on the items of the reference.

    Raises:
        SuiteError: the two were not scored on the same items.
    """
    task = guarded.task
    pair = ({task: column}, {task: guarded.column})
    found = paired_difference(*pair, {task: 1.0}, {task: guarded.chance}, groups, confidence)
    lower, upper = found.lower, found.upper
    if not (groups or {}).get(task) and np.isin([column, guarded.column], (0.0, 1.0)).all():
        gained, lost = int((column > guarded.column).sum()), int((column < guarded.column).sum())
        bounds = proportion_difference(gained, lost, found.n, confidence)
        lower, upper = (100 * bound / (1 - guarded.chance) for bound in bounds)
    return GuardCheck(
        task=task,
        max_drop=guarded.max_drop,
        challenger=challenger,
        reference=guarded.reference,
        difference=found.value,
        stderr=found.stderr,
        lower=lower,
        upper=upper,
        holds=lower >= -guarded.max_drop,
        n=found.n,
    )


def sentence(check: GuardCheck, confidence: float = CONFIDENCE) -> str:
    """`17 keeps sort: -1.20 points against base (lower bound -3.10 at 97.5% confidence, -5 allowed, 400 items).`"""
    verb = "keeps" if check.holds else "is not shown to keep"
    bound = f"lower bound {check.lower:+.2f} at {100 * confidence:g}% confidence, {-check.max_drop:g} allowed"
    return (
        f"{check.challenger} {verb} {check.task}: {check.difference:+.2f} points against {check.reference} "
        f"({bound}, {check.n} items)."
    )


def aside(columns: Mapping[str, Column], guards: Sequence[Guarded]) -> str:
    """` (breaks the guard on sort)` for one whose figures on the guarded tasks lie below what is allowed, else empty.

    Args:
        columns: task → (items,) its own, on the items of the references.
    """
    drops = {
        guard.task: 100 * float(np.mean(guard.column - columns[guard.task])) / (1 - guard.chance) - guard.max_drop
        for guard in guards
    }
    broken = [task for task, beyond in drops.items() if beyond > 0]
    return f" (breaks the guard on {' and '.join(broken)})" if broken else ""
