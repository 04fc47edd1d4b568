"""The gate: who is promoted, decided on the test split. Pure: scores in, decision out.

The finalist must beat base, every parent, the best baseline and the champion, each by a one-sided paired bound above
zero. All of them must hold, so no bound is corrected for their number. Where the finalist does not beat the best
baseline, the baseline takes its place, being the simpler recipe, and must beat the others by the same bounds. Whoever is
judged last must also keep what the suite guards (see guards).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

from evosearch.errors import SuiteError
from evosearch.evaluation.statistics.bootstrap import RESAMPLES, bootstrap
from evosearch.evaluation.statistics.intervals import CONFIDENCE, difference
from evosearch.evaluation.statistics.sign_test import sign_flip
from evosearch.evaluation.statistics.units import Groups, paired_units, scales
from evosearch.evaluation.types import Column
from evosearch.promotion import guards as guard_checks
from evosearch.promotion.guards import GuardCheck, Guarded

Role = Literal["finalist", "base", "parent", "baseline", "champion"]
ORDER: tuple[Role, ...] = ("base", "parent", "baseline", "champion")


@dataclass(frozen=True)
class Contender:
    """One candidate with its scores on the test split.

    `set_digests` names the items of each task (`ScoreCard.set_digests`); where two have them, they must agree.
    """

    candidate: str
    role: Role
    columns: Mapping[str, Column]  # task → (items,) the suite's metric of each item; guarded tasks too
    recipe_id: str = ""
    set_digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measure:
    """How item metrics become a score: 100 · Σ w (m - c) / (1 - c)."""

    weights: Mapping[str, float]  # task → w, summing to one
    chances: Mapping[str, float]  # task → c
    groups: Groups | None = None  # task → the group of each item
    confidence: float = CONFIDENCE  # of each one-sided bound
    resamples: int = RESAMPLES  # of each comparison's two-sided interval; 0 leaves it out, and decides the same


@dataclass(frozen=True)
class Comparison:
    """One paired comparison on the test split; differences are challenger minus comparator, in points.

    `difference` is of the score; `raw` is of the weighted mean metric, without chance levels. The bound `lower` alone
    decides. The exact test's p-value and the bootstrap's two-sided interval stand beside it, for a reader who would
    have used another method; decisions recorded before there were any have none.
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
    p_value: float | None = None  # one-sided, of `difference`; see evaluation/exact.py
    p_exact: bool | None = None  # all signs were counted, not drawn
    interval_lower: float | None = None  # two-sided 95% interval of `difference`; see evaluation/resampling.py
    interval_upper: float | None = None


@dataclass(frozen=True)
class GateDecision:
    """What the gate found. `winner` is who was judged last: the finalist, or the baseline that took its place."""

    promoted: str | None
    winner: str
    reasons: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    guards: tuple[GuardCheck, ...] = ()  # of the winner, where the suite has guards

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data: the payload of a `gated` event."""
        data = asdict(self)
        checks = list(data.pop("guards"))
        data |= {"reasons": list(self.reasons), "comparisons": list(data["comparisons"])}
        return data | ({"guards": checks} if checks else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The decision that a `gated` event records."""
        known = [entry.name for entry in fields(Comparison)]
        comparisons = tuple(
            Comparison(**{name: row[name] for name in known if name in row}) for row in data["comparisons"]
        )
        names = [entry.name for entry in fields(GuardCheck)]
        checks = tuple(GuardCheck(**{name: row[name] for name in names}) for row in data.get("guards", ()))
        return cls(data["promoted"], data["winner"], tuple(data["reasons"]), comparisons, checks)


def decide(
    finalist: Contender, comparators: Sequence[Contender], measure: Measure, guards: Sequence[Guarded] = ()
) -> GateDecision:
    """Judge the finalist, and where it does not beat the best baseline, the baseline in its place.

    Args:
        finalist: chosen on the validation split; it may itself be the best baseline.
        comparators: at most one base, one baseline and one champion, and any number of parents. One that does not
            apply is left out, and the reasons say so.
        guards: what the winner must be shown to keep, besides.

    Raises:
        SuiteError: nothing to compare with, a role given twice, or contenders not scored on the same items.
    """
    _check(finalist, comparators)
    reasons = [f"There is no {role} to beat." for role in ("base", "baseline") if not _with_role(comparators, role)]
    baseline = next(iter(_with_role(comparators, "baseline")), None)
    if baseline is not None and _same(finalist, baseline):
        reasons.append(f"The finalist {finalist.candidate} is the best baseline.")
        baseline = None
    asides = {other.candidate: guard_checks.aside(other.columns, guards) for other in comparators}
    comparisons, texts = _face(finalist, comparators, measure, asides)
    reasons += texts
    winner = finalist
    against = next((c for c in comparisons if baseline is not None and c.role == "baseline"), None)
    if baseline is not None and against is not None and not against.beats:
        others = [entry for entry in comparators if entry.role != "baseline"]
        reasons.append(f"{baseline.candidate}, the simpler recipe, takes the place of {finalist.candidate}.")
        winner = baseline
        own, texts = _face(baseline, others, measure, asides)
        comparisons += own
        reasons += texts
    beaten = all(c.beats for c in comparisons if c.challenger == winner.candidate)
    checks, texts = _keep(winner, guards, measure)
    kept = all(check.holds for check in checks)
    reasons += [*texts, _verdict(winner.candidate, beaten, kept, bool(checks))]
    promoted = winner.candidate if beaten and kept else None
    return GateDecision(promoted, winner.candidate, tuple(reasons), tuple(comparisons), tuple(checks))


def _keep(winner: Contender, guards: Sequence[Guarded], measure: Measure) -> tuple[list[GuardCheck], list[str]]:
    """The winner on each guarded task, against the task's reference."""
    checks = [
        guard_checks.hold(winner.candidate, winner.columns[guard.task], guard, measure.groups, measure.confidence)
        for guard in guards
    ]
    return checks, [guard_checks.sentence(check, measure.confidence) for check in checks]


def _verdict(name: str, beaten: bool, kept: bool, guarded: bool) -> str:
    found = [f"{name} beats all it must beat" if beaten else f"{name} does not beat all it must beat"]
    if guarded:
        found.append("keeps all it must keep" if kept else "is not shown to keep all it must keep")
    return f"{' and '.join(found)}{'.' if beaten and kept else ': nothing is promoted.'}"


def _face(
    challenger: Contender, others: Iterable[Contender], measure: Measure, asides: Mapping[str, str]
) -> tuple[list[Comparison], list[str]]:
    """The challenger against each of the others, in the order base, parents, baseline, champion.

    Args:
        asides: comparator → what is said behind its name; who breaks a guard must be beaten all the same.
    """
    comparisons, texts = [], []
    for other in sorted(others, key=lambda entry: ORDER.index(entry.role)):
        if not _same(challenger, other):
            comparison = compare(challenger, other, measure)
            comparisons.append(comparison)
            texts.append(sentence(comparison, measure.confidence, asides[other.candidate]))
        elif other.role == "champion":
            texts.append(f"{challenger.candidate} is the present champion and need not beat itself.")
        elif other.role != "baseline":
            # A finalist equal to a parent or to the base has found nothing: it is compared, and ties.
            comparison = compare(challenger, other, measure)
            comparisons.append(comparison)
            texts.append(f"{challenger.candidate} is the same model as the {other.role} {other.candidate}.")
    return comparisons, texts


def compare(challenger: Contender, comparator: Contender, measure: Measure) -> Comparison:
    """One paired comparison, by score and by raw metrics, by the gate's bound, the exact test and the bootstrap."""
    found = paired_units(challenger.columns, comparator.columns, measure.weights, measure.groups)
    scale = scales(measure.weights, measure.chances)
    score = difference(found, scale, measure.confidence)
    raw = difference(found, scales(measure.weights, dict.fromkeys(measure.weights, 0.0)), measure.confidence)
    test = sign_flip(found, scale)
    within = bootstrap(found, scale, resamples=measure.resamples) if measure.resamples else None
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
        p_value=test.p_value,
        p_exact=test.exact,
        interval_lower=within.lower if within else None,
        interval_upper=within.upper if within else None,
    )


def sentence(comparison: Comparison, confidence: float = CONFIDENCE, aside: str = "") -> str:
    """`17 beats the base: +3.20 points of score (lower bound +1.05 at 97.5% confidence, exact p 0.0012, 400 items).`"""
    c = comparison
    name = c.comparator if c.comparator.startswith(c.role) else f"{c.role} {c.comparator}"
    verb = "beats" if c.beats else "does not beat"
    p = "" if c.p_value is None else f", {'exact ' if c.p_exact else ''}p {_shown(c.p_value)}"
    bound = f"lower bound {c.lower:+.2f} at {100 * confidence:g}% confidence{p}, {c.n} items"
    return f"{c.challenger} {verb} the {name}{aside}: {c.difference:+.2f} points of score ({bound})."


def _shown(p: float) -> str:
    return "below 0.0001" if p < 0.0001 else f"{p:.4f}"


def _same(one: Contender, other: Contender) -> bool:
    return one.candidate == other.candidate or bool(one.recipe_id and one.recipe_id == other.recipe_id)


def _with_role(contenders: Iterable[Contender], role: str) -> list[Contender]:
    return [entry for entry in contenders if entry.role == role]


def _check(finalist: Contender, comparators: Sequence[Contender]) -> None:
    if not comparators:
        raise SuiteError("promotion", "the finalist has nothing to beat", "A base or at least one parent")
    for role in ("base", "baseline", "champion"):
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
