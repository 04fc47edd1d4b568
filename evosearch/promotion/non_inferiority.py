"""Guards at the gate: non-inferiority tests that bound the winner's drop on a guarded task. Pure.

The lower one-sided bound of (winner - reference), in points of that task alone, must be at least -max_drop. All
conditions of the gate must be met, so the bound is not corrected for multiple comparisons.

For independent right-or-wrong items the bound is Tango's score bound, which uses the variance under the hypothesis of a
drop of max_drop (see `intervals.proportion_difference`); for other metrics, and for grouped items, it is Student's t.
`max_drop: 0` therefore requires a demonstrated gain.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evosearch.evaluation.statistics.intervals import CONFIDENCE, paired_difference, proportion_difference
from evosearch.evaluation.statistics.units import Groups
from evosearch.evaluation.types import Column


@dataclass(frozen=True)
class GuardedTask:
    """One guarded task and the test scores of its reference baseline."""

    task: str
    max_drop: float  # points, 100 (m - c) / (1 - c)
    chance: float  # c
    reference: str  # base, or the parent that is best at the task
    column: Column  # (items,) the reference's metric


@dataclass(frozen=True)
class GuardCheck:
    """Result of one guard on the test split; differences are challenger minus reference, in points of the task."""

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


def check_guard(
    challenger: str, column: Column, guarded: GuardedTask, groups: Groups | None, confidence: float = CONFIDENCE
) -> GuardCheck:
    """Test whether the confidence bound of the challenger's drop on a guarded task is within its limit.

    Args:
        column: (items,) the challenger's metric on the items of the reference.
        groups: Task → group of each item; tasks with independent items may be omitted.
        confidence: Confidence of each one-sided bound.

    Raises:
        SuiteError: Challenger and reference were not scored on the same items.
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


def sentence(check: GuardCheck, name: str, confidence: float = CONFIDENCE) -> str:
    """Describe a guard's result in one sentence.

    `#17 passes the guard on sort: -1.20 points against base (lower bound -3.10 at 97.5% confidence, -5 allowed, 400
    items).`

    Args:
        check: The result.
        name: What to call the challenger.
        confidence: Confidence of the bound.
    """
    verb = "passes" if check.holds else "does not pass"
    bound = f"lower bound {check.lower:+.2f} at {100 * confidence:g}% confidence, {-check.max_drop:g} allowed"
    return (
        f"{name} {verb} the guard on {check.task}: {check.difference:+.2f} points against "
        f"{check.reference} ({bound}, {check.n} items)."
    )


def broken_guards(columns: Mapping[str, Column], guards: Sequence[GuardedTask]) -> str:
    """Return ` (breaks the guard on sort)` if the observed drop on a guarded task exceeds its limit, otherwise "".

    Args:
        columns: Task → (items,) metric of one model on the items of the references.
    """
    drops = {
        guard.task: 100 * float(np.mean(guard.column - columns[guard.task])) / (1 - guard.chance) - guard.max_drop
        for guard in guards
    }
    broken = [task for task, beyond in drops.items() if beyond > 0]
    return f" (breaks the guard on {' and '.join(broken)})" if broken else ""
