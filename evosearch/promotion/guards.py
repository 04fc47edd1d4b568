"""Guards at the gate: the winner's drop on a guarded task must be shown not to exceed what is allowed. Pure.

A test of non-inferiority: the lower one-sided bound of (winner - reference), in points of that task alone, must not lie
below -max_drop. Like every condition of the gate it must hold together with all others, so no bound is corrected.
"""

from dataclasses import dataclass

from evosearch.evaluation.inference import CONFIDENCE, paired_difference
from evosearch.evaluation.types import Column
from evosearch.evaluation.units import Groups


@dataclass(frozen=True)
class Guarded:
    """One guarded task, with the items of the control that it is held against."""

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
    return GuardCheck(
        task=task,
        max_drop=guarded.max_drop,
        challenger=challenger,
        reference=guarded.reference,
        difference=found.value,
        stderr=found.stderr,
        lower=found.lower,
        upper=found.upper,
        holds=found.lower >= -guarded.max_drop,
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
