"""End of a search whose suite has no right answers: no score, no test split, and no gate.

The best model by the teachers' fitness on `validation`, whose prompts the optimizer never saw, is promoted only if that
is asked for (`--unverified`), and is marked as unverified wherever it appears.
"""

from dataclasses import dataclass

from evosearch.promotion.finalists import Standing
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
        allowed: Promote the best model.
    """

    allowed: bool

    def run(self) -> GateDecision:
        """Validate, decide, and record the decision.

        Raises:
            SearchError: No candidate was scored, or no finalist could be validated.
        """
        finalist = self.finalist()
        found = self._better_of(finalist)
        decision = GateDecision(
            finalist=finalist,
            winner=found.candidate,
            promoted=found.candidate if self.allowed else None,
            reasons=tuple(self._reasons(finalist, found)),
            comparisons=(),
            unverified=True,
        )
        self.recorder.record([("gated", decision.to_dict())])
        return decision

    def _reasons(self, finalist: str, found: Standing) -> list[str]:
        value = f"{found.fitness['validation']:.4f}"
        reasons = [UNVERIFIED, f"{found.candidate} has the best fitness on validation: {value}."]
        if found.candidate != finalist:
            reasons.append(f"The baseline {found.candidate} is better there than every candidate.")
        verdict = f"{found.candidate} is promoted by --unverified." if self.allowed else "Nothing is promoted."
        return [*reasons, verdict if self.allowed else f"{verdict} Run again with --unverified to export it."]
