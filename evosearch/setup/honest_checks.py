"""Checks of a spec's honest baselines, `trained` and `placebo`, before anything is scored."""

from collections.abc import Sequence

from evosearch.checkpoints.reader import CONFIG
from evosearch.checkpoints.tokenizers.loading import load_tokenizer
from evosearch.errors import SpecError, SuiteError
from evosearch.evaluation.harness.fine_tuning import trained_on
from evosearch.evaluation.harness.harness import Harness, max_length_of
from evosearch.evaluation.types import ItemBatch
from evosearch.materialize.forward import settings
from evosearch.recipe.files import STAGE
from evosearch.recipe.placebo_reference import PlaceboReference
from evosearch.search.baselines import Baseline
from evosearch.setup.models import Models
from evosearch.spec.placebo_spec import base_of
from evosearch.spec.spec import SearchSpec


def check_honest(spec: SearchSpec, models: Models, found: Sequence[Baseline]) -> None:
    """Check that the honest baselines that a spec asks for can be made.

    Args:
        spec: The spec.
        models: Its models.
        found: The other baselines.

    Raises:
        SpecError: The search has no task vectors, no scale sweep, or no right answers to train on.
        CheckpointError: A model has other tensors than the base.
    """
    wanted = spec.config.baselines
    if wanted.trained and spec.ends_at_gate:
        _check_trained(spec, found)
    if wanted.placebo:
        _check_placebo(spec, models)


def check_training(spec: SearchSpec, harness: Harness, batch: ItemBatch, models: Models) -> None:
    """Check that every document has a right answer to train on, which the fitness itself may not need.

    Args:
        spec: The spec.
        harness: Its suite.
        batch: The search split.
        models: Its models.

    Raises:
        SpecError: A document has none.
    """
    if not (spec.config.baselines.trained and spec.ends_at_gate) or spec.suite.told == "teachers":
        return
    tokenizer = load_tokenizer(models.checkpoints[models.donor].tokenizer_folder)
    config = settings(models.output.config, f"{models.checkpoints[models.donor].folder}/{CONFIG}")
    try:
        harness.freeze(trained_on(spec.suite, batch), tokenizer, max_length_of(config, tokenizer), "gold_logprob")
    except SuiteError as error:
        what = f"needs the right answer of every search document, and {error.where} {error.what}"
        raise SpecError(spec.at("baselines.trained"), what, next="Remove it, or fix the task") from error


def _check_trained(spec: SearchSpec, found: Sequence[Baseline]) -> None:
    where = spec.at("baselines.trained")
    if spec.suite.told == "teachers":
        what = "the suite's fitness has teachers, so no right answers of the search documents are read"
        raise SpecError(where, what, "A suite whose fitness has right answers", "Remove it")
    scales = [baseline for baseline in found if baseline.kind == "scale"]
    if not any(baseline.recipe is not None for baseline in scales):
        reason = next((baseline.skipped for baseline in scales if baseline.skipped), "baselines.scales is empty")
        what = f"training starts from the best single scale, and there is none: {reason}"
        raise SpecError(where, what, next="Remove it, or set baselines.base_model or baselines.scales")


def _check_placebo(spec: SearchSpec, models: Models) -> None:
    first = spec.stage is None or spec.stage.index == 0
    unknown = "?"  # later stages may have the base of the first
    base = base_of(spec, None if first else unknown)
    if spec.suite.told == "teachers":
        what = "the suite's fitness has teachers, which a placebo would choose among its own random models"
        raise SpecError(spec.at("baselines.placebo"), what, "A suite whose fitness has no teachers", "Remove it")
    if base == unknown:
        return
    for reference in spec.frame.references():
        if reference != base and not reference.startswith(STAGE):
            models.opener.open(str(PlaceboReference(reference, base, spec.config.optimizer.seed)))
