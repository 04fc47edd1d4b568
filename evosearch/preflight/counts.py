"""Numbers of evaluations that a search makes on each split."""

from collections.abc import Sequence
from dataclasses import dataclass

from evosearch.merging.registry import specs
from evosearch.preflight.asks import Asked, Asks
from evosearch.promotion.honest import TRAINED_CHECKPOINTS
from evosearch.promotion.mask_seeds import drawing, may_draw
from evosearch.promotion.validate import RESCORED, SCALES_TO_VALIDATE
from evosearch.search.baselines import SCALES, Baseline, baselines
from evosearch.spec.spec import SearchSpec


@dataclass(frozen=True)
class Counts:
    """Upper bounds on the evaluations of a search.

    Attributes:
        candidates: Candidates, each scored on the search split or on a minibatch of it, or differentiated there.
        search: Baselines and rescored candidates on the full search split, also those of the placebo.
        validation: Evaluations on the validation split, also those of the honest baselines, and of finalists with
            other seeds of their masks.
        test: Evaluations on the test split, also those of the honest baselines.
        placebo: Candidates of the placebo search.
        training: Candidates that would take as many item evaluations as the fine-tuning, which uses one worker.
        gradients: How many of the candidates are differentiated.
    """

    candidates: int
    search: int
    validation: int
    test: int
    placebo: int = 0
    training: int = 0
    gradients: int = 0


def counts_of(
    spec: SearchSpec, scored: Sequence[Baseline], items: int, asks: Asks | None = None, answers: int = 0
) -> Counts | None:
    """Counts of a search whose candidates are limited by its budget; None if only hours limit it.

    Args:
        spec: The spec.
        scored: The baselines; those without a recipe are not scored.
        items: Items that one candidate is scored on, without gradients.
        asks: What an optimizer that asks for gradients asks for.
        answers: Candidates that the optimizer recommends at the end.
    """
    budget = spec.config.budget
    if asks is not None:
        found = asks.within(budget)
        return counts_for(spec, scored, found, answers) if found else None
    limits = [budget.candidates] if budget.candidates else []
    limits += [budget.items // items] if budget.items else []
    return counts_for(spec, scored, Asked(min(limits)), answers) if limits else None


def counts_for(spec: SearchSpec, scored: Sequence[Baseline], asked: Asked, answers: int = 0) -> Counts:
    """Counts of a search with this many candidates; the test split opens only at the gate.

    Args:
        spec: The spec.
        scored: The baselines; those without a recipe are not scored.
        asked: The candidates.
        answers: Candidates that the optimizer recommends at the end.
    """
    kinds = [baseline.kind for baseline in scored if baseline.recipe is not None]
    candidates, compared = asked.count, asked.count - asked.gradients
    scales, finalists = kinds.count("scale"), min(spec.config.promotion.finalists, compared)
    plain, last, wanted = len(kinds) - scales, spec.ends_at_gate, spec.config.baselines
    searches, trained = 1 + wanted.placebo, wanted.trained and last
    rescored = answers + (RESCORED * finalists if spec.config.search_minibatches else 0)
    validated = finalists + answers + plain + min(scales, SCALES_TO_VALIDATE)
    drawn = may_draw(spec.template, drawing(specs()))
    reseeded = (finalists + answers) * (spec.config.promotion.mask_seeds - 1) * drawn
    honest = (wanted.placebo and last) + trained  # models opened on test
    return Counts(
        candidates=candidates,
        search=searches * (len(kinds) + rescored),
        validation=searches * validated + reseeded + (wanted.placebo and last) + TRAINED_CHECKPOINTS * trained,
        test=1 + plain + min(scales, 1) + honest if last else 0,
        placebo=candidates * wanted.placebo,
        training=candidates * trained,
        gradients=asked.gradients,
    )


def planned_baselines(spec: SearchSpec, scales: tuple[float, ...] = SCALES) -> Sequence[Baseline]:
    """The baselines of a spec, assuming that its models have the same layers.

    Args:
        spec: The spec.
        scales: Those that fit its budget; `baselines.scales` comes before them.
    """
    own = spec.baselines
    found = scales if own.scales is None else own.scales
    return baselines(spec.frame, found, True, own.base_model, own.models)
