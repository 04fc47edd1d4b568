"""End of a search whose suite has no right answers: no score, no test split, and no gate.

The best merge by the teachers' fitness on `validation`, whose prompts the optimizer never saw, is promoted only if that
is asked for (`--unverified`) and it breaks no guard there, and is marked as unverified wherever it appears.
"""

from collections.abc import Callable
from dataclasses import dataclass

from evosearch.promotion.finalists import Standing, best, standings
from evosearch.promotion.gate import GateDecision
from evosearch.promotion.validate import Validation

UNVERIFIED = (
    "Unverified: the suite has no right answers, so no model was scored or tested; the choice follows the teachers' "
    "fitness on validation prompts alone."
)


@dataclass(kw_only=True)
class UnverifiedPromotion(Validation):
    """Validation by the teachers' fitness, without a gate.

    Args:
        allowed: Promote the best merge.
    """

    allowed: bool

    def run(self) -> GateDecision:
        """Validate, decide, and record the decision.

        Raises:
            SearchError: No candidate was scored, or no finalist could be validated.
        """
        finalist = self.finalist()
        found = self._better_of(finalist)
        single = best(standings(self.recorder.state), "validation", ("base", "parent"))
        decision = decide(finalist, found, single, self.allowed, self.recorder.state.title)
        self.recorder.record([("gated", decision.to_dict())])
        return decision


def decide(
    finalist: str, found: Standing, single: Standing | None, allowed: bool, title: Callable[[str], str] = str
) -> GateDecision:
    """Promote the best merge if that is allowed and it breaks no guard on validation.

    Args:
        finalist: The best candidate.
        found: The finalist, or the baseline that is better.
        single: The best of base and parents, which is named if it is better; None if none was scored.
        allowed: Whether promotion without a test was asked for.
        title: Name → what to call it.
    """
    name, broken = title(found.candidate), found.violation.get("validation", 0.0)
    reasons = [UNVERIFIED, f"{name} is the best merge on validation, with fitness {_fitness(found):.4f}."]
    if found.candidate != finalist:
        reasons.append(f"The baseline {name} is better there than every candidate.")
    if single is not None and _fitness(single) > _fitness(found):
        reasons.append(f"{title(single.candidate)} alone has a better fitness there: {_fitness(single):.4f}.")
    if broken > 0:
        reasons.append(f"{name} exceeds its guards there by {broken:.2f} points: nothing is promoted.")
    elif allowed:
        reasons.append(f"{name} is promoted by --unverified.")
    else:
        reasons.append("Nothing is promoted. Run again with --unverified to export it.")
    return GateDecision(
        finalist=finalist,
        winner=found.candidate,
        promoted=found.candidate if allowed and broken == 0 else None,
        reasons=tuple(reasons),
        comparisons=(),
        unverified=True,
    )


def _fitness(entry: Standing) -> float:
    return entry.fitness["validation"]
