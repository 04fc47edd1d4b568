"""The gate: who is promoted, decided on the test split. Pure: scores in, decision out.

The finalist must beat base, every parent, the best control and the champion, each by a one-sided paired bound above
zero. All of them must hold, so no bound is corrected for their number. Where the finalist does not beat the best
control, the control takes its place, being the simpler recipe, and must beat the others by the same bounds.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

from evosearch.errors import SuiteError
from evosearch.evaluation.inference import CONFIDENCE, Groups, paired_difference
from evosearch.evaluation.types import Column

Role = Literal["finalist", "base", "parent", "control", "champion"]
ORDER: tuple[Role, ...] = ("base", "parent", "control", "champion")


@dataclass(frozen=True)
class Contender:
    """One candidate with its scores on the test split.

    `set_digests` names the items of each task (`ScoreCard.set_digests`); where two have them, they must agree.
    """

    candidate: str
    role: Role
    columns: Mapping[str, Column]  # task → (items,) the suite's metric of each item
    recipe_id: str = ""
    set_digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measure:
    """How item metrics become a score: 100 · Σ w (m - c) / (1 - c)."""

    weights: Mapping[str, float]  # task → w, summing to one
    chances: Mapping[str, float]  # task → c
    groups: Groups | None = None  # task → the group of each item
    confidence: float = CONFIDENCE  # of each one-sided bound


@dataclass(frozen=True)
class Comparison:
    """One paired comparison on the test split; differences are challenger minus comparator, in points.

    `difference` is of the score; `raw` is of the weighted mean metric, without chance levels.
    """

    challenger: str
    comparator: str
    role: Role  # the comparator's
    difference: float
    stderr: float
    lower: float
    upper: float
    beats: bool
    raw: float
    raw_lower: float
    raw_upper: float
    n: int  # items


@dataclass(frozen=True)
class GateDecision:
    """What the gate found. `winner` is who was judged last: the finalist, or the control that took its place."""

    promoted: str | None
    winner: str
    reasons: tuple[str, ...]
    comparisons: tuple[Comparison, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data: the payload of a `gated` event."""
        data = asdict(self)
        return data | {"reasons": list(self.reasons), "comparisons": list(data["comparisons"])}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The decision that a `gated` event records."""
        known = [entry.name for entry in fields(Comparison)]
        comparisons = tuple(Comparison(**{name: row[name] for name in known}) for row in data["comparisons"])
        return cls(data["promoted"], data["winner"], tuple(data["reasons"]), comparisons)


def decide(finalist: Contender, comparators: Sequence[Contender], measure: Measure) -> GateDecision:
    """Judge the finalist, and where it does not beat the best control, the control in its place.

    Args:
        finalist: chosen on the validation split; it may itself be the best control.
        comparators: at most one base, one control and one champion, and any number of parents. One that does not
            apply is left out, and the reasons say so.

    Raises:
        SuiteError: nothing to compare with, a role given twice, or contenders not scored on the same items.
    """
    _check(finalist, comparators)
    reasons = [f"There is no {role} to beat." for role in ("base", "control") if not _with_role(comparators, role)]
    control = next(iter(_with_role(comparators, "control")), None)
    if control is not None and _same(finalist, control):
        reasons.append(f"The finalist {finalist.candidate} is the best control.")
        control = None
    comparisons, texts = _face(finalist, comparators, measure)
    reasons += texts
    winner = finalist
    against = next((c for c in comparisons if control is not None and c.role == "control"), None)
    if control is not None and against is not None and not against.beats:
        others = [entry for entry in comparators if entry.role != "control"]
        reasons.append(f"{control.candidate}, the simpler recipe, takes the place of {finalist.candidate}.")
        winner = control
        own, texts = _face(control, others, measure)
        comparisons += own
        reasons += texts
    promoted = all(c.beats for c in comparisons if c.challenger == winner.candidate)
    verdict = "beats all it must beat" if promoted else "does not beat all it must beat: nothing is promoted"
    reasons.append(f"{winner.candidate} {verdict}.")
    return GateDecision(winner.candidate if promoted else None, winner.candidate, tuple(reasons), tuple(comparisons))


def _face(challenger: Contender, others: Iterable[Contender], measure: Measure) -> tuple[list[Comparison], list[str]]:
    """The challenger against each of the others, in the order base, parents, control, champion."""
    comparisons, texts = [], []
    for other in sorted(others, key=lambda entry: ORDER.index(entry.role)):
        if not _same(challenger, other):
            comparison = compare(challenger, other, measure)
            comparisons.append(comparison)
            texts.append(sentence(comparison, measure.confidence))
        elif other.role == "champion":
            texts.append(f"{challenger.candidate} is the present champion and need not beat itself.")
        elif other.role != "control":
            # A finalist equal to a parent or to the base has found nothing: it is compared, and ties.
            comparison = compare(challenger, other, measure)
            comparisons.append(comparison)
            texts.append(f"{challenger.candidate} is the same model as the {other.role} {other.candidate}.")
    return comparisons, texts


def compare(challenger: Contender, comparator: Contender, measure: Measure) -> Comparison:
    """One paired comparison, by score and by raw metrics."""
    both = (challenger.columns, comparator.columns, measure.weights)
    score = paired_difference(*both, measure.chances, measure.groups, measure.confidence)
    raw = paired_difference(*both, dict.fromkeys(measure.weights, 0.0), measure.groups, measure.confidence)
    return Comparison(
        challenger=challenger.candidate,
        comparator=comparator.candidate,
        role=comparator.role,
        difference=score.value,
        stderr=score.stderr,
        lower=score.lower,
        upper=score.upper,
        beats=score.beats,
        raw=raw.value,
        raw_lower=raw.lower,
        raw_upper=raw.upper,
        n=score.n,
    )


def sentence(comparison: Comparison, confidence: float = CONFIDENCE) -> str:
    """`17 beats the champion 4: +3.20 points of score (lower bound +1.05 at 97.5% confidence, 400 items).`"""
    c = comparison
    name = c.comparator if c.comparator.startswith(c.role) else f"{c.role} {c.comparator}"
    verb = "beats" if c.beats else "does not beat"
    bound = f"lower bound {c.lower:+.2f} at {100 * confidence:g}% confidence, {c.n} items"
    return f"{c.challenger} {verb} the {name}: {c.difference:+.2f} points of score ({bound})."


def _same(one: Contender, other: Contender) -> bool:
    return one.candidate == other.candidate or bool(one.recipe_id and one.recipe_id == other.recipe_id)


def _with_role(contenders: Iterable[Contender], role: str) -> list[Contender]:
    return [entry for entry in contenders if entry.role == role]


def _check(finalist: Contender, comparators: Sequence[Contender]) -> None:
    if not comparators:
        raise SuiteError("promotion", "the finalist has nothing to beat", "A base or at least one parent")
    for role in ("base", "control", "champion"):
        if len(_with_role(comparators, role)) > 1:
            raise SuiteError("promotion", f"more than one {role} was given", f"At most one {role}")
    for other in comparators:
        if other.role not in ORDER:
            raise SuiteError("promotion", f"{other.candidate} has the role {other.role}", f"One of {', '.join(ORDER)}")
        for task in finalist.set_digests.keys() & other.set_digests.keys():
            if finalist.set_digests[task] != other.set_digests[task]:
                got = f"{finalist.candidate} and {other.candidate} were scored on different items"
                raise SuiteError(
                    f"task '{task}'", got, "The same items for all", "Score both on this suite's test split"
                )
