"""Checks of a spec that need its models, its suite or its search space."""

from collections.abc import Mapping, Sequence
from contextlib import suppress

from evosearch.checkpoints.reader import CONFIG
from evosearch.checkpoints.references import default_cache
from evosearch.checkpoints.tokenizers.loading import load_tokenizer
from evosearch.errors import InputError, SpecError, SuiteError
from evosearch.evaluation.harness.harness import Harness, max_length_of
from evosearch.evaluation.statistics.gradient_steps import GradientSteps
from evosearch.evaluation.types import ItemBatch
from evosearch.materialize.forward import settings
from evosearch.materialize.inputs import Opener
from evosearch.materialize.plan import donor_of
from evosearch.merging.registry import specs
from evosearch.search.baselines import Baseline
from evosearch.search.controller import START_FROM
from evosearch.search.optimizer_config import OptimizerConfig
from evosearch.search.optimizers.registry import load
from evosearch.search.sampling import BACKWARD
from evosearch.search.space.dimensions import Dimension
from evosearch.search.space.space import SearchSpace
from evosearch.setup.models import Models
from evosearch.setup.optimizing import divided
from evosearch.setup.prompt_tokens import SplitTokens, count
from evosearch.spec.spec import SearchSpec


def check_holes(spec: SearchSpec, allow_pickle: bool) -> None:
    """Check the search parameters of a merge if some models cannot be opened, with the shape of one that can.

    Raises:
        RecipeError: A search parameter is invalid.
    """
    recipe = spec.frame
    if recipe.routing is not None or recipe.named_slices():
        return  # the check would need the depth of every model
    opener = Opener(default_cache(), None, allow_pickle, spec.recipes)
    for reference in recipe.references():
        with suppress(InputError):  # already reported
            shape = opener.open(reference).shape
            break
    else:
        return
    SearchSpace.from_template(spec.template, shape, specs(), spec.where)


def check_items(
    spec: SearchSpec, batch: ItemBatch, optimizer: OptimizerConfig, dimensions: Sequence[Dimension] = ()
) -> None:
    """Check that the budget covers at least one candidate, or one gradient step.

    Args:
        spec: The spec.
        batch: The search split.
        optimizer: The chosen optimizer.
        dimensions: The search space; only needed for gradients.

    Raises:
        SpecError: The budget is too small.
    """
    items, candidates = spec.config.budget.items, spec.config.budget.candidates
    gradients = load(optimizer.name).gradients
    if gradients and candidates is not None and candidates < (shards := optimizer.population_for(dimensions)):
        what = f"got {candidates}, and one gradient step takes {shards}: one for each of its shards"
        advice = "Raise it, or lower optimizer.population"
        raise SpecError(spec.at("budget.candidates"), what, f"At least {shards}", advice)
    if items is None:
        return
    minibatches = divided(spec, optimizer, dimensions, batch)
    if isinstance(minibatches, GradientSteps):
        least = (1 + BACKWARD) * sum(map(len, minibatches.batches[: minibatches.shards]))
        taken = f"one gradient step takes {least}: {1 + BACKWARD} for each of its items"
    else:
        least = len(batch if minibatches is None else minibatches.batches[0])
        taken = f"one candidate takes {least}"
    if items < least:
        what = f"got {items}, and {taken}"
        raise SpecError(spec.at("budget.items"), what, f"At least {least}", "Raise it, or limit candidates")


def check_winners(spec: SearchSpec, inputs: Mapping[str, str]) -> None:
    """Check that winners of earlier stages are still made of the same models.

    Args:
        spec: The spec of a stage.
        inputs: Reference → content, as of now.

    Raises:
        SpecError: A winner's recipe id changed.
    """
    for name, winner in spec.stage.winners.items() if spec.stage else ():
        then, now = winner.recipe_id, inputs.get(winner.reference(name), winner.recipe_id)
        if winner.place is None and now != then:
            what = f"'{winner.reference(name)}' is now another model (recipe_id {then[:12]} then, {now[:12]} now)"
            raise SpecError(spec.where, what, next="One of the models it is made of changed: restore it")


def check_start(spec: SearchSpec, space: SearchSpace, baselines: Sequence[Baseline]) -> None:
    """Check that the search can start from the baselines that `optimizer.start` names.

    Raises:
        SpecError: There are no such baselines, or no search parameter is a weight of a parent.
    """
    config = spec.config.optimizer
    if config.start == "init" or "start" not in config.model_fields_set:
        return
    kinds, where = START_FROM[config.start], spec.at("optimizer.start")
    advice = "Remove it: search parameters then start at their own init"
    if not space.has_weights:
        what = f"got '{config.start}', which sets weights of parents, and no weight is searched"
        raise SpecError(where, what, "init", advice)
    candidates = [baseline for baseline in baselines if baseline.kind in kinds]
    if not any(baseline.recipe is not None and baseline.weights for baseline in candidates):
        why = next((f": {baseline.skipped or 'it is made of other models'}" for baseline in candidates), "")
        what = f"got '{config.start}', and this search has no such baseline{why}"
        raise SpecError(where, what, "init", advice)


def check_prompts(
    harness: Harness, batches: Mapping[str, ItemBatch], models: Models, baselines: Sequence[Baseline]
) -> dict[str, SplitTokens]:
    """Check that all prompts fit the context of candidates and baselines, once for each context length.

    Returns:
        Split → tokens of one candidate.

    Raises:
        CheckpointError: transformers rejects a model's config.
        SuiteError: A prompt does not fit, or needs a chat template that the tokenizer does not have.
    """
    tokenizer = load_tokenizer(models.checkpoints[models.donor].tokenizer_folder)
    lengths: dict[int, str] = {}  # context length in tokens → the first donor that has it
    recipes = [baseline.recipe for baseline in baselines if baseline.recipe is not None]
    outputs = [(donor_of(recipe), models.layout(recipe)) for recipe in recipes]
    for donor, laid in [(models.donor, models.output), *outputs]:
        config = settings(laid.config, f"{models.checkpoints[donor].folder}/{CONFIG}")
        lengths.setdefault(max_length_of(config, tokenizer), donor)
    tokens: dict[str, SplitTokens] = {}
    for length, donor in lengths.items():
        for batch in batches.values():
            try:
                frozen = harness.freeze(batch, tokenizer, length)
            except SuiteError as error:
                if donor == models.donor:
                    raise
                what = f"{error.what} (with the context of {donor}, {length} tokens)"
                raise SuiteError(error.where, what, error.allowed, error.next) from error
            if donor == models.donor:
                tokens[batch.split] = count(frozen)
    return tokens
