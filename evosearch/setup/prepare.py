"""Preparation of a search: suite loaded and split, models opened, search space built. Writes only to caches."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

from evosearch.documents import join
from evosearch.errors import CheckpointError, InputError, Problems, RecipeError, in_one
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.statistics.gradient_steps import GradientSteps
from evosearch.evaluation.statistics.minibatches import Minibatches
from evosearch.evaluation.suites.suite import Suite
from evosearch.evaluation.types import SPLITS, ItemBatch
from evosearch.merging.registry import specs
from evosearch.recipe import checks
from evosearch.recipe.files import STAGE
from evosearch.recipe.schema import Recipe
from evosearch.search.baselines import SCALES, Baseline, averaged, baselines, scale_name
from evosearch.search.optimizer_config import OptimizerConfig
from evosearch.search.optimizers._automatic import Choice
from evosearch.search.optimizers.registry import AUTO
from evosearch.search.optimizers.registry import load as load_optimizer
from evosearch.search.progress import Watcher
from evosearch.search.space import sources
from evosearch.search.space.space import SearchSpace
from evosearch.search.state import SearchState
from evosearch.setup.honest_checks import check_honest, check_training
from evosearch.setup.input_checks import check_holes, check_items, check_prompts, check_start, check_winners
from evosearch.setup.lineage import check_lineage
from evosearch.setup.models import Models, open_models
from evosearch.setup.optimizing import choose_optimizer, divided, recorded_choice
from evosearch.setup.prompt_tokens import SplitTokens
from evosearch.setup.sweep import scales_of, share_of_baselines
from evosearch.setup.teachers import check_teachers
from evosearch.setup.trackers import check_tracking
from evosearch.setup.unchanged_tensors import without_unchanged
from evosearch.spec.diagnostics import Diagnostics
from evosearch.spec.spec import SearchSpec


@dataclass(frozen=True)
class Prepared:
    """Everything that a search needs and that does not change while it runs.

    Attributes:
        example: The recipe with every search parameter at its start value.
        offered: All baselines, with the longest sweep of scales, including those that do not apply.
        harness: The loaded suite, shared by everything in this process that scores.
        batches: Split → its items.
        tokens: Split → tokens of one candidate.
        fingerprint: Task → key of its lm-eval configuration → digest.
        choice: The optimizer, and why `auto` chose it.
        recorded: Names of the baselines that the search was started with; empty if it has not started.
    """

    spec: SearchSpec
    search_id: str
    models: Models
    space: SearchSpace
    example: Recipe
    offered: tuple[Baseline, ...]
    harness: Harness
    batches: dict[str, ItemBatch]
    tokens: dict[str, SplitTokens]
    fingerprint: dict[str, dict[str, str]]
    choice: Choice
    recorded: frozenset[str] = frozenset()

    @property
    def suite(self) -> Suite:
        """The suite that candidates are scored on."""
        return self.spec.suite

    @property
    def largest(self) -> Recipe:
        """A candidate with the largest memory need: of routes, one with the most hops."""
        filled = [self.example, *map(self.space.fill, self.space.corners() if self.example.routing else ())]
        return max(filled, key=lambda recipe: len(recipe.routing.hops) if recipe.routing else 0)

    @property
    def optimizer(self) -> OptimizerConfig:
        """The configuration of the optimizer; its name is never `auto`."""
        return self.choice.config

    @cached_property
    def minibatches(self) -> Minibatches | GradientSteps | None:
        """Minibatches of the search split; None if candidates are scored on the full split."""
        return divided(self.spec, self.optimizer, self.space.dimensions, self.batches["search"])

    @cached_property
    def baselines(self) -> tuple[Baseline, ...]:
        """The baselines, including those that do not apply; of the default scales those that fit the budget.

        A search that has started keeps its own, since the optimizer's start follows from their scores.
        """
        kept = self.recorded or {
            scale_name(scale) for scale in scales_of(self.spec, self.batches["search"], self.minibatches)
        }
        return tuple(one for one in self.offered if one.kind != "scale" or one.name in kept)

    @property
    def share_of_baselines(self) -> str:
        """A sentence on the baselines' part of the search."""
        return share_of_baselines(self.spec, self.baselines, self.batches["search"], self.minibatches)

    @property
    def steps(self) -> GradientSteps | None:
        """The minibatches of an optimizer that asks for gradients; None for any other."""
        return self.minibatches if isinstance(self.minibatches, GradientSteps) else None

    @property
    def ranked(self) -> dict[str, ItemBatch]:
        """Split → the items that models are compared on: of `search`, the part that is held back from gradients."""
        return self.batches if self.steps is None else self.batches | {"search": self.steps.ranked}

    def resumed(self, state: SearchState | None) -> Self:
        """Return the same search with the baselines and the optimizer (chosen by `auto`) of its record."""
        choice = recorded_choice(self.spec.config.optimizer, state.optimizer if state else None)
        return replace(self, choice=choice or self.choice, recorded=frozenset(state.baselines if state else ()))


def prepare(spec: SearchSpec, watcher: Watcher, allow_pickle: bool = False, harness: Harness | None = None) -> Prepared:
    """Load and check everything that a search needs.

    Args:
        spec: The spec.
        watcher: Shows what is being prepared.
        allow_pickle: Read pickled weights of models without safetensors.
        harness: The spec's suite, if it is loaded already.

    Raises:
        InputError: All problems that were found.
    """
    diagnostics = Diagnostics()
    prepared = prepare_with(diagnostics, spec, watcher, allow_pickle, lambda: harness or Harness(spec.suite))
    diagnostics.raise_all(str(spec.file))
    assert prepared is not None
    return prepared


def prepare_with(
    diagnostics: Diagnostics,
    spec: SearchSpec,
    watcher: Watcher,
    allow_pickle: bool = False,
    harness: Callable[[], Harness] | None = None,
    opened: bool = True,
    allow_unrelated: bool = True,
) -> Prepared | None:
    """Prepare a search, recording its problems; return None if there are any. Cheap checks come first.

    Args:
        diagnostics: Where problems are recorded.
        spec: The spec.
        watcher: Shows what is being prepared.
        allow_pickle: Read pickled weights of models without safetensors.
        harness: Loads the spec's suite; None skips all checks that need the suite.
        opened: False skips opening the models, and all checks that need them.
        allow_unrelated: False checks that the models share a base; later stages and placebos need no second check.
    """
    before = len(diagnostics.problems)
    diagnostics.attempt(lambda: check_tracking(spec))
    measured = diagnostics.attempt(lambda: _measured(harness)) if harness else None
    named = spec.config.optimizer
    plain = named.name != AUTO and not load_optimizer(named.name).gradients  # its minibatches need no search space
    if measured is not None and plain:
        diagnostics.attempt(lambda: check_items(spec, measured[1]["search"], named))
    models = diagnostics.attempt(lambda: _models(spec, watcher, allow_pickle)) if opened else None
    if models is None:
        if opened:
            diagnostics.attempt(lambda: check_holes(spec, allow_pickle))
        return None
    if not allow_unrelated:
        diagnostics.attempt(lambda: check_lineage(models, spec.where))
    found = diagnostics.attempt(lambda: _baselines(spec, models))
    space = diagnostics.attempt(lambda: _space(spec, models, watcher))
    suite = measured[0] if measured is not None else None
    choice = diagnostics.attempt(lambda: choose_optimizer(spec, space, suite)) if space is not None else None
    if measured is not None and space is not None and choice is not None and not plain:
        diagnostics.attempt(lambda: check_items(spec, measured[1]["search"], choice.config, space.dimensions))
    if space is not None and found is not None:
        diagnostics.attempt(lambda: check_start(spec, space, found))
    if found is not None:
        diagnostics.attempt(lambda: check_honest(spec, models, found))
        diagnostics.attempt(lambda: check_teachers(spec, found))
    tokens = None
    if measured is not None and found is not None:
        tokens = diagnostics.attempt(lambda: check_prompts(*measured, models, found))
        if tokens is not None:
            diagnostics.attempt(lambda: check_training(spec, measured[0], measured[1]["search"], models))
    # Reads every byte of every model: damage is found before anything is written
    diagnostics.attempt(lambda: check_winners(spec, models.inputs))
    fingerprint = diagnostics.attempt(measured[0].fingerprint) if measured is not None else None
    if len(diagnostics.problems) > before or not (measured and space and found is not None and tokens):
        return None
    assert fingerprint is not None
    assert choice is not None
    if choice.why:
        watcher.note(f"optimizer: {choice.config.name}, because {choice.why}")
    example, search_id = space.fill(space.initial()), spec.search_id()
    return Prepared(spec, search_id, models, space, example, tuple(found), *measured, tokens, fingerprint, choice)


def _measured(harness: Callable[[], Harness]) -> tuple[Harness, dict[str, ItemBatch]]:
    loaded = harness()
    return loaded, {split: loaded.batch(split) for split in SPLITS}


def _space(spec: SearchSpec, models: Models, watcher: Watcher) -> SearchSpace:
    """Build the search space and check its corners.

    Raises:
        RecipeError: The recipe is invalid, a tensor cannot be merged by it, or no search parameter has an effect.
    """
    space = SearchSpace.from_template(spec.template, models.shape, specs(), spec.where, models.depths)
    for text in checks.check(space.fill(space.initial()), specs(), spec.where):
        watcher.note(text)
    for genome in space.corners():
        models.plan(space.fill(genome), spec.where)
    return without_unchanged(space, models, spec.where, watcher)


def _models(spec: SearchSpec, watcher: Watcher, allow_pickle: bool) -> Models:
    """Open the models of a spec and of its baselines.

    Raises:
        InputError: See `open_models`; it names the key in the search parameter, not a hop or a source of the frame.
    """
    config = spec.baselines
    own = spec.frame.references()
    warm = [baseline.recipe.references() for baseline in _warm_baselines(spec) if baseline.recipe]
    further = [one for each in warm for one in each if one not in own]
    also = (*filter(None, [config.base_model]), *(config.models or ()), *further)
    try:
        return open_models(spec.frame, spec.where, watcher, allow_pickle, also, spec.recipes)
    except (CheckpointError, RecipeError, Problems) as error:
        raise in_one(str(spec.file), [_at_hole(problem, spec) for problem in error.problems]) from None


def _at_hole(error: InputError, spec: SearchSpec) -> InputError:
    """An error about a hop or a source of the frame, located at the key in the spec's search parameter."""
    hop = re.search(r"routing\.hops\[(\d+)\]\.\w+$", error.where) if spec.is_route else None
    if hop is not None:
        place = join(spec.where, "routing", "models", int(hop[1]))
    else:
        within = error.where.startswith("recipe.slices[")  # checks of layers know no file
        place = join(spec.where, error.where.removeprefix("recipe.")) if within else error.where
        place = sources.at_hole(place, () if spec.is_route else sources.find(spec.template, spec.where))
    return error if place == error.where else type(error)(place, error.what, error.allowed, error.next)


def _baselines(spec: SearchSpec, models: Models) -> list[Baseline]:
    """The baselines of a search.

    Raises:
        CheckpointError: A model that only baselines use does not fit the others.
    """
    base, mixed, recipe = spec.baselines.base_model, spec.baselines.models, models.recipe
    averaged_models = (*filter(None, [base or recipe.base_model]), *averaged(recipe, base, mixed))
    scales = SCALES if spec.baselines.scales is None else spec.baselines.scales
    made = baselines(recipe, scales, models.alike(averaged_models), base, mixed)
    found = [_of_stage(baseline, spec) for baseline in made] + _warm_baselines(spec)
    for baseline in found:
        if baseline.recipe is not None and set(baseline.recipe.references()) & set(models.also):
            models.check_baseline(baseline.recipe, spec.at("baselines"))
    return found


def _warm_baselines(spec: SearchSpec) -> list[Baseline]:
    """The winner that a stage starts from, unless its recipe is made of that winner, which makes it a parent."""
    name = spec.warm_stage
    if name is None or spec.stage is None or spec.stage.winners[name].place is not None:
        return []
    winner = spec.stage.winners[name]
    if winner.reference(name) in spec.frame.references():
        return []
    return [Baseline(f"{STAGE}{name}", "stage", Recipe.model_validate(winner.recipe))]


def _of_stage(baseline: Baseline, spec: SearchSpec) -> Baseline:
    """Mark a parent that is the winner of an earlier stage as a baseline of kind `stage`."""
    named = {winner.reference(name): name for name, winner in spec.stage.winners.items()} if spec.stage else {}
    if baseline.kind != "parent" or baseline.recipe is None or baseline.recipe.models[0].model not in named:
        return baseline
    return replace(baseline, name=f"stage:{named[baseline.recipe.models[0].model]}", kind="stage")
