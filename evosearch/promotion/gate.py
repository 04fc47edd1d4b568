"""The gate: decides on the test split whether a model is promoted. Pure: scores in, decision out.

The finalist must beat base, every parent, the best baseline, the placebo and the champion, each by a one-sided paired
bound above zero. Every comparison must succeed, so the bounds are not corrected for multiple comparisons. If the
finalist does not beat the best baseline, that baseline, which is the simpler recipe, replaces it and must beat the
others by the same bounds. The model judged last must also pass the suite's guards (see `non_inferiority`).

The placebo is the winner of the same search over random task vectors. A fine-tuned model (`trained`) is compared with
the model judged last, for the record alone: it is no recipe, and does not affect the decision.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from evosearch.errors import SuiteError
from evosearch.evaluation.statistics.bootstrap import bootstrap
from evosearch.evaluation.statistics.intervals import CONFIDENCE, difference
from evosearch.evaluation.statistics.sign_test import sign_test
from evosearch.evaluation.statistics.units import Groups, paired_units, scales
from evosearch.evaluation.types import Column
from evosearch.promotion import non_inferiority
from evosearch.promotion.non_inferiority import GuardCheck, GuardedTask, broken_guards, check_guard

Role = Literal["finalist", "base", "parent", "baseline", "placebo", "champion", "trained"]
ORDER: tuple[Role, ...] = ("base", "parent", "baseline", "placebo", "champion")  # of the models to beat


@dataclass(frozen=True)
class Contender:
    """One model with its scores on the test split.

    `title` names it in sentences. `set_digests` identifies the items of each task (`ScoreCard.set_digests`); it must be
    equal for all contenders.
    """

    candidate: str
    role: Role
    columns: Mapping[str, Column]  # task → (items,) the suite's metric, including guarded tasks
    recipe_id: str = ""
    set_digests: Mapping[str, str] = field(default_factory=dict)
    title: str = ""

    @property
    def shown(self) -> str:
        """What people read: the title, or the name without one."""
        return self.title or self.candidate


@dataclass(frozen=True)
class Measure:
    """Definition of the score, 100 · Σ w (m - c) / (1 - c), and of the gate's bounds."""

    weights: Mapping[str, float]  # task → w, summing to one
    chances: Mapping[str, float]  # task → c
    groups: Groups | None = None  # task → group of each item
    confidence: float = CONFIDENCE  # of each one-sided bound
    cross_checks: bool = True  # report the sign test and the bootstrap interval, which do not affect the decision


@dataclass(frozen=True)
class Comparison:
    """One paired comparison on the test split; differences are challenger minus comparator, in points.

    `difference` refers to the score, `raw` to the weighted mean metric without chance levels. Only the bound `lower`
    decides. The sign test's p-value and the two-sided bootstrap interval are cross-checks by other methods; they are
    None if the measure leaves them out.
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
    p_value: float | None = None  # one-sided, of `difference`, see `statistics.sign_test`
    p_exact: bool | None = None  # p_value enumerates all sign patterns instead of sampling them
    interval_lower: float | None = None  # two-sided 95% interval of `difference`, see `statistics.bootstrap`
    interval_upper: float | None = None


@dataclass(frozen=True)
class GateDecision:
    """Outcome of the gate; also the payload of a `gated` event."""

    finalist: str
    winner: str  # the model judged last: the finalist, or the baseline that replaced it
    promoted: str | None  # the winner if it passed, otherwise None
    reasons: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    guards: tuple[GuardCheck, ...] = ()  # of the winner
    notes: tuple[str, ...] = ()  # caveats of the run, such as a skipped champion
    trained: Comparison | None = None  # of the model judged last with the fine-tuned one
    unverified: bool = False  # chosen without a test: the suite has no right answers

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Restore a decision from the payload of a `gated` event."""
        return cls(
            finalist=data["finalist"],
            winner=data["winner"],
            promoted=data["promoted"],
            reasons=tuple(data["reasons"]),
            comparisons=tuple(Comparison(**row) for row in data["comparisons"]),
            guards=tuple(GuardCheck(**row) for row in data["guards"]),
            notes=tuple(data["notes"]),
            trained=Comparison(**data["trained"]) if data["trained"] else None,
            unverified=data["unverified"],
        )


def decide(
    finalist: Contender,
    comparators: Sequence[Contender],
    measure: Measure,
    guards: Sequence[GuardedTask] = (),
    trained: Contender | None = None,
) -> GateDecision:
    """Judge the finalist, or the best baseline instead if the finalist does not beat that baseline.

    Args:
        finalist: The candidate chosen on the validation split; it may itself be the best baseline.
        comparators: At most one base, one baseline, one placebo and one champion, and any number of parents. A missing
            base or baseline is mentioned in the reasons.
        measure: Definition of score and bounds.
        guards: Guarded tasks, each of which the winner must pass.
        trained: A fine-tuned model to compare the winner with, without an effect on the decision.

    Raises:
        SuiteError: There are no comparators, a role is given twice, or contenders were scored on different items.
    """
    _check(finalist, comparators)
    reasons = [f"There is no {role} to beat." for role in ("base", "baseline") if not _with_role(comparators, role)]
    baseline = next(iter(_with_role(comparators, "baseline")), None)
    if baseline is not None and _same(finalist, baseline):
        reasons.append(f"The finalist {finalist.shown} is the best baseline.")
        baseline = None
    broken = {other.candidate: broken_guards(other.columns, guards) for other in comparators}
    comparisons, texts = _compare_all(finalist, comparators, measure, broken)
    reasons += texts
    winner = finalist
    against = next((c for c in comparisons if baseline is not None and c.role == "baseline"), None)
    if baseline is not None and against is not None and not against.beats:
        others = [entry for entry in comparators if entry.role != "baseline"]
        reasons.append(f"{baseline.shown}, the simpler recipe, replaces {finalist.shown}.")
        winner = baseline
        own, texts = _compare_all(baseline, others, measure, broken)
        comparisons += own
        reasons += texts
    beaten = all(c.beats for c in comparisons if c.challenger == winner.candidate)
    checks, texts = _check_guards(winner, guards, measure)
    kept = all(check.holds for check in checks)
    reasons += [*texts, _verdict(winner.shown, beaten, kept, bool(checks))]
    promoted = winner.candidate if beaten and kept else None
    beside = compare(winner, trained, measure) if trained is not None else None
    reasons += [trained_sentence(beside, winner.shown)] if beside is not None else []
    return GateDecision(
        finalist=finalist.candidate,
        winner=winner.candidate,
        promoted=promoted,
        reasons=tuple(reasons),
        comparisons=tuple(comparisons),
        guards=tuple(checks),
        trained=beside,
    )


def _check_guards(
    winner: Contender, guards: Sequence[GuardedTask], measure: Measure
) -> tuple[list[GuardCheck], list[str]]:
    """Check the winner on each guarded task against the task's reference."""
    checks = [
        check_guard(winner.candidate, winner.columns[guard.task], guard, measure.groups, measure.confidence)
        for guard in guards
    ]
    return checks, [non_inferiority.sentence(check, winner.shown, measure.confidence) for check in checks]


def _verdict(name: str, beaten: bool, kept: bool, guarded: bool) -> str:
    text = f"{name} beats every comparator" if beaten else f"{name} does not beat every comparator"
    if guarded:
        text += " and " if beaten == kept else " but "
        text += "passes every guard" if kept else "does not pass every guard"
    return f"{text}{'.' if beaten and kept else ': nothing is promoted.'}"


def _compare_all(
    challenger: Contender, others: Iterable[Contender], measure: Measure, broken: Mapping[str, str]
) -> tuple[list[Comparison], list[str]]:
    """Compare the challenger with each of the others, in the order base, parents, baseline, champion.

    Args:
        broken: Comparator → note on the guards that it breaks itself; it must be beaten nevertheless.
    """
    comparisons, texts = [], []
    for other in sorted(others, key=lambda entry: ORDER.index(entry.role)):
        if not _same(challenger, other):
            comparison = compare(challenger, other, measure)
            comparisons.append(comparison)
            names = (challenger.shown, other.shown)
            texts.append(sentence(comparison, names, measure.confidence, broken[other.candidate]))
        elif other.role == "champion":
            texts.append(f"{challenger.shown} is the current champion and need not beat itself.")
        elif other.role != "baseline":
            # A finalist equal to the base or a parent is nothing new: the comparison is a tie, so it is not promoted.
            comparison = compare(challenger, other, measure)
            comparisons.append(comparison)
            texts.append(f"{challenger.shown} is the same model as {_with_article(other.role, other.shown)}.")
    return comparisons, texts


def compare(challenger: Contender, comparator: Contender, measure: Measure) -> Comparison:
    """Compare two contenders item by item: the gate's bound on score and raw metric, and the cross-checks."""
    found = paired_units(challenger.columns, comparator.columns, measure.weights, measure.groups)
    scale = scales(measure.weights, measure.chances)
    score = difference(found, scale, measure.confidence)
    raw = difference(found, scales(measure.weights, dict.fromkeys(measure.weights, 0.0)), measure.confidence)
    test = sign_test(found, scale) if measure.cross_checks else None
    within = bootstrap(found, scale) if measure.cross_checks else None
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
        p_value=test.p_value if test else None,
        p_exact=test.exact if test else None,
        interval_lower=within.lower if within else None,
        interval_upper=within.upper if within else None,
    )


def sentence(comparison: Comparison, names: tuple[str, str], confidence: float = CONFIDENCE, broken: str = "") -> str:
    """Describe a comparison in one sentence.

    `#17 beats the base: +3.20 points of score (lower bound +1.05 at 97.5% confidence, exact p 0.0012, 400 items).`

    Args:
        comparison: The comparison.
        names: What to call challenger and comparator.
        confidence: Confidence of the bound.
        broken: Note on the guards that the comparator breaks itself.
    """
    c = comparison
    against = _with_article(c.role, names[1])
    verb = "beats" if c.beats else "does not beat"
    p = "" if c.p_value is None else f", {'exact ' if c.p_exact else ''}p {_shown(c.p_value)}"
    bound = f"lower bound {c.lower:+.2f} at {100 * confidence:g}% confidence{p}, {c.n} items"
    return f"{names[0]} {verb} {against}{broken}: {c.difference:+.2f} points of score ({bound})."


def _with_article(role: Role, name: str) -> str:
    """Return `the parent sort`, `the baseline scale 0.6`."""
    return f"the {name}" if name.startswith(role) else f"the {role} {name}"


def trained_sentence(comparison: Comparison, winner: str) -> str:
    """Describe the comparison of the winner, as it is called, with the fine-tuned model, by the two-sided bounds."""
    c, low, high = comparison, comparison.lower, comparison.upper
    if comparison.interval_lower is not None and comparison.interval_upper is not None:
        low, high = comparison.interval_lower, comparison.interval_upper
    start, names = "Fine-tuning with the budget of the search", (winner, "the fine-tuned model")
    if high < 0:
        lead, low, high, names = -c.difference, -high, -low, names[::-1]
        text = f"{start} would have been better"
    else:
        lead, text = (
            c.difference,
            f"{start} would {'have been worse' if low > 0 else 'not have been clearly different'}",
        )
    within = f"{low:+.2f} to {high:+.2f} at 95% confidence, {c.n} items"
    return f"{text}: {names[0]} leads {names[1]} by {lead:+.2f} points of score ({within})."


def _shown(p: float) -> str:
    return "below 0.0001" if p < 0.0001 else f"{p:.4f}"


def _same(one: Contender, other: Contender) -> bool:
    return one.candidate == other.candidate or bool(one.recipe_id and one.recipe_id == other.recipe_id)


def _with_role(contenders: Iterable[Contender], role: str) -> list[Contender]:
    return [entry for entry in contenders if entry.role == role]


def _check(finalist: Contender, comparators: Sequence[Contender]) -> None:
    if not comparators:
        raise SuiteError("promotion", "the finalist has no comparators", "A base or at least one parent")
    for role in ("base", "baseline", "placebo", "champion"):
        if len(_with_role(comparators, role)) > 1:
            raise SuiteError("promotion", f"more than one {role} was given", f"At most one {role}")
    for other in comparators:
        if other.role not in ORDER:
            raise SuiteError("promotion", f"{other.candidate} has the role {other.role}", f"One of {', '.join(ORDER)}")
        for task in finalist.set_digests.keys() & other.set_digests.keys():
            if finalist.set_digests[task] != other.set_digests[task]:
                got = f"{finalist.shown} and {other.shown} were scored on different items"
                raise SuiteError(
                    f"task '{task}'", got, "The same items for all", "Score both on this suite's test split"
                )
