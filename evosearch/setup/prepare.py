"""A spec made ready to run: suite loaded and split, models opened, space laid out. Writes nothing but caches."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from evosearch.checkpoints.reader import CONFIG
from evosearch.checkpoints.references import default_cache
from evosearch.documents import join
from evosearch.errors import CheckpointError, InputError, Problems, RecipeError, SpecError, SuiteError, in_one
from evosearch.evaluation.harness.harness import Harness, max_length_of
from evosearch.evaluation.statistics.minibatches import Minibatches, partition
from evosearch.evaluation.suites.suite import Suite
from evosearch.evaluation.types import SPLITS, ItemBatch
from evosearch.execution.worker import load_tokenizer
from evosearch.materialize.forward import settings
from evosearch.materialize.inputs import Opener
from evosearch.materialize.layout import output
from evosearch.materialize.plan import donor_of
from evosearch.merging.registry import specs
from evosearch.recipe import checks
from evosearch.recipe.schema import Recipe
from evosearch.search.baselines import Baseline, averaged, baselines
from evosearch.search.controller import START_FROM
from evosearch.search.optimizers.registry import create
from evosearch.search.progress import Watcher
from evosearch.search.space.routes import is_route
from evosearch.search.space.space import SearchSpace
from evosearch.search.space.template import frame
from evosearch.setup.models import Models, open_models
from evosearch.setup.prompt_tokens import SplitTokens, count
from evosearch.setup.trackers import check_tracking
from evosearch.spec.diagnostics import Findings
from evosearch.spec.spec import SearchSpec


@dataclass(frozen=True)
class Prepared:
    """All that a search needs and that does not change while it runs."""

    spec: SearchSpec
    search_id: str
    models: Models
    space: SearchSpace
    example: Recipe  # the recipe with every hole at its start
    baselines: tuple[Baseline, ...]
    harness: Harness  # the suite, loaded: whatever scores in this process shares it
    batches: dict[str, ItemBatch]  # split → its items
    tokens: dict[str, SplitTokens]  # split → what it takes of a candidate
    fingerprint: dict[str, dict[str, str]]  # task → key of its lm-eval configuration → digest

    @property
    def suite(self) -> Suite:
        return self.spec.suite

    @property
    def largest(self) -> Recipe:
        """A candidate that takes as much memory as any: of routes one with as many hops as they may have."""
        filled = [self.example, *map(self.space.fill, self.space.corners() if self.example.routing else ())]
        return max(filled, key=lambda recipe: len(recipe.routing.hops) if recipe.routing else 0)

    @property
    def minibatches(self) -> Minibatches | None:
        """The search split in parts, where the spec asks for it."""
        count, seed = self.spec.config.search_minibatches, self.spec.config.optimizer.seed
        return None if count is None else partition(self.suite, self.batches["search"], count, seed)


def prepare(spec: SearchSpec, watcher: Watcher, allow_pickle: bool = False, harness: Harness | None = None) -> Prepared:
    """Load and check everything a search needs; cheap and telling checks first.

    Args:
        harness: of the spec's suite, where it is loaded already.

    Raises:
        InputError: what is wrong, all of it.
    """
    findings = Findings()
    prepared = prepare_with(findings, spec, watcher, allow_pickle, lambda: harness or Harness(spec.suite))
    findings.raise_all(str(spec.file))
    assert prepared is not None
    return prepared


def prepare_with(
    findings: Findings,
    spec: SearchSpec,
    watcher: Watcher,
    allow_pickle: bool = False,
    harness: Callable[[], Harness] | None = None,
    opened: bool = True,
) -> Prepared | None:
    """As `prepare`, with its problems on a list; None where there are any.

    Args:
        harness: of the spec's suite; None: there is none, so that what only a suite can tell is left out.
        opened: without it models are left out, and what only they can tell.
    """
    before = len(findings.problems)
    findings.attempt(lambda: check_tracking(spec))
    measured = findings.attempt(lambda: _measured(harness)) if harness else None
    if measured is not None:
        findings.attempt(lambda: _check_items(spec, measured[1]["search"]))
    models = findings.attempt(lambda: _models(spec, watcher, allow_pickle)) if opened else None
    if models is None:
        findings.attempt(lambda: _without_models(spec, allow_pickle, opened))
        return None
    found = findings.attempt(lambda: _baselines(spec, models))
    space = findings.attempt(lambda: _space(spec, models, watcher))
    if space is not None and found is not None:
        findings.attempt(lambda: _check_start(spec, space, found))
    tokens = None
    if measured is not None and found is not None:
        tokens = findings.attempt(lambda: _check_prompts(*measured, models, found))
    # Reads every byte of every model: damage is found before anything is written
    findings.attempt(lambda: _check_winners(spec, models.inputs))
    fingerprint = findings.attempt(measured[0].fingerprint) if measured is not None else None
    if len(findings.problems) > before or not (measured and space and found is not None and tokens):
        return None
    assert fingerprint is not None
    example, search_id = space.fill(space.initial()), spec.search_id()
    return Prepared(spec, search_id, models, space, example, tuple(found), *measured, tokens, fingerprint)


def _measured(harness: Callable[[], Harness]) -> tuple[Harness, dict[str, ItemBatch]]:
    loaded = harness()
    return loaded, {split: loaded.batch(split) for split in SPLITS}


def _space(spec: SearchSpec, models: Models, watcher: Watcher) -> SearchSpace:
    """Raises:
    RecipeError: the recipe makes no sense, or no tensor can follow it.
    SpecError: the optimizer does not take such a space.
    """
    space = SearchSpace.from_template(spec.template, models.shape, specs(), spec.where, models.depths)
    for text in checks.check(space.fill(space.initial()), specs(), spec.where):
        watcher.note(text)
    for genome in space.corners():
        models.plan(space.fill(genome), spec.where)
    objectives = len(spec.config.objectives or ()) or 1
    create(spec.config.optimizer, space.dimensions, space.initial(), spec.at("optimizer"), objectives)
    return space


def _without_models(spec: SearchSpec, allow_pickle: bool, opened: bool) -> None:
    """What can be said of a recipe whose models cannot all be had, by the layout of any of them.

    Raises:
        RecipeError: its holes or its parameters are wrong.
    """
    recipe = frame(spec.template, spec.where)
    if recipe.routing is not None or recipe.named_slices() or not opened:
        return  # how deep its models are decides
    opener = Opener(default_cache(), None, allow_pickle, spec.recipes)
    for reference in recipe.references():
        with suppress(InputError):  # which is said already
            shape = opener.open(reference).shape
            break
    else:
        return
    SearchSpace.from_template(spec.template, shape, specs(), spec.where)


def _check_items(spec: SearchSpec, batch: ItemBatch) -> None:
    """Raises:
    SpecError: a budget of items that not even one candidate fits.
    """
    items, count = spec.config.budget.items, spec.config.search_minibatches
    if items is None:
        return
    taken = batch if count is None else partition(spec.suite, batch, count, spec.config.optimizer.seed).batches[0]
    if items < len(taken):
        what = f"got {items}, and one candidate takes {len(taken)}"
        raise SpecError(spec.at("budget.items"), what, f"At least {len(taken)}", "Give more, or count candidates")


def _models(spec: SearchSpec, watcher: Watcher, allow_pickle: bool) -> Models:
    """Raises:
    InputError: see `open_models`; of a search over routes it names the key of its hole, not of the frame's hop.
    """
    recipe, config = frame(spec.template, spec.where), spec.baselines
    also = (*filter(None, [config.base_model]), *(config.models or ()))
    try:
        return open_models(recipe, spec.where, watcher, allow_pickle, also, spec.recipes)
    except (CheckpointError, RecipeError, Problems) as error:
        if not is_route(spec.template):
            raise
        raise in_one(str(spec.file), [_of_hole(problem, spec) for problem in error.problems]) from None


def _of_hole(error: InputError, spec: SearchSpec) -> InputError:
    """An error about a hop of the frame, with the key in the spec's hole."""
    hop = re.search(r"routing\.hops\[(\d+)\]\.\w+$", error.where)
    if hop is None:
        return error
    place = join(spec.where, "routing", "models", int(hop[1]))
    return type(error)(place, error.what, error.allowed, error.next)


def _baselines(spec: SearchSpec, models: Models) -> list[Baseline]:
    """Raises:
    CheckpointError: a model that only baselines name does not fit the others.
    """
    base, mixed, recipe = spec.baselines.base_model, spec.baselines.models, models.recipe
    whole = (*filter(None, [base or recipe.base_model]), *averaged(recipe, base, mixed))
    made = baselines(recipe, spec.baselines.scales, models.alike(whole), base, mixed)
    found = [_of_stage(baseline, spec) for baseline in made]
    for baseline in found:
        if baseline.recipe is not None and set(baseline.recipe.references()) & set(models.also):
            models.check_beside(baseline.recipe, spec.at("baselines"))
    return found


def _of_stage(baseline: Baseline, spec: SearchSpec) -> Baseline:
    """A parent that is the winner of an earlier stage: what the search must beat, and what may stand in its place."""
    named = {winner.reference(name): name for name, winner in spec.stage.winners.items()} if spec.stage else {}
    if baseline.kind != "parent" or baseline.recipe is None or baseline.recipe.models[0].model not in named:
        return baseline
    return replace(baseline, name=f"stage:{named[baseline.recipe.models[0].model]}", kind="stage")


def _check_winners(spec: SearchSpec, inputs: Mapping[str, str]) -> None:
    """Raises:
    SpecError: what an earlier stage found is not what its recipe makes now: something it is made of has changed.
    """
    for name, winner in spec.stage.winners.items() if spec.stage else ():
        now = inputs.get(winner.reference(name), winner.recipe_id)
        if winner.place is None and now != winner.recipe_id:
            then = winner.recipe_id
            what = f"'{winner.reference(name)}' is another model now (recipe_id {then[:12]} then, {now[:12]} now)"
            raise SpecError(spec.where, what, next="A model that it is made of changed since: restore it")


def _check_start(spec: SearchSpec, space: SearchSpace, baselines: Sequence[Baseline]) -> None:
    """Raises:
    SpecError: the spec asks to start from baselines, and there are none of the kind, or nothing that they could set.
    """
    config = spec.config.optimizer
    if config.start == "init" or "start" not in config.model_fields_set:
        return
    kinds, where = START_FROM[config.start], spec.at("optimizer.start")
    if not space.has_weights:
        what = f"got '{config.start}', which sets weights of parents, and none is searched"
        raise SpecError(where, what, "init", "Leave it out: holes start at their own init")
    asked = [baseline for baseline in baselines if baseline.kind in kinds]
    if not any(baseline.recipe is not None and baseline.weights for baseline in asked):
        why = next((f": {baseline.skipped or 'it is made of other models'}" for baseline in asked), "")
        what = f"got '{config.start}', and this search has no such baseline{why}"
        raise SpecError(where, what, "init", "Leave it out: holes start at their own init")


def _check_prompts(
    harness: Harness, batches: Mapping[str, ItemBatch], models: Models, baselines: Sequence[Baseline]
) -> dict[str, SplitTokens]:
    """What only a tokenizer can tell: a chat template, prompts that fit, and how long they are (split → tokens).

    Each context length is tried once.

    Raises:
        CheckpointError: transformers does not take a model's config.
        SuiteError: a prompt does not fit.
    """
    tokenizer = load_tokenizer(models.checkpoints[models.donor].tokenizer_folder)
    lengths: dict[int, str] = {}  # context in tokens → the first model whose config has it
    recipes = [baseline.recipe for baseline in baselines if baseline.recipe is not None]
    outputs = [(donor_of(recipe), output(recipe, models.checkpoints)) for recipe in recipes]
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
