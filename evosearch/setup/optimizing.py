"""Choice of a search's optimizer, and the minibatches that it needs."""

from collections.abc import Sequence

from evosearch.errors import SpecError
from evosearch.evaluation.harness.differentiable import differentiable
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.statistics.gradient_steps import GradientSteps, gradient_steps
from evosearch.evaluation.statistics.minibatches import Minibatches, partition
from evosearch.evaluation.types import ItemBatch
from evosearch.search.optimizer_config import OptimizerConfig
from evosearch.search.optimizers._automatic import Choice, Situation, choose
from evosearch.search.optimizers.registry import AUTO, load
from evosearch.search.records import OptimizerRecord
from evosearch.search.space.dimensions import Dimension
from evosearch.search.space.space import SearchSpace
from evosearch.spec.spec import SearchSpec


def choose_optimizer(spec: SearchSpec, space: SearchSpace, harness: Harness | None = None) -> Choice:
    """Return the optimizer of a search: the one that its spec names, or the choice of `auto`.

    Args:
        spec: The spec.
        space: Its search space.
        harness: The loaded suite; without it, tasks are not examined for what has no gradient.

    Raises:
        SpecError: The optimizer does not support the search space, the objectives, another key, or has no gradient.
    """
    config, where = spec.config.optimizer, spec.at("optimizer")
    recipe, fitness = space.not_differentiable(), differentiable(spec.suite, harness)
    choice = Choice(config)
    if config.name == AUTO:
        guards, minibatches = len(spec.suite.guards), spec.config.search_minibatches is not None
        situation = Situation(space.dimensions, spec.objective_count, recipe or fitness, guards, minibatches)
        choice = choose(config, situation, where)
    choice.config.check(space.dimensions, spec.objective_count, where)
    name = choice.config.name
    if load(name).gradients and (recipe or fitness):
        place, why = (spec.where, recipe) if recipe else (spec.at("suite"), fitness)
        what = f"{why}, and optimizer {name} needs a gradient"
        raise SpecError(place, what, next="Use optimizer auto or cma_es, which need none")
    return choice


def divided(
    spec: SearchSpec, config: OptimizerConfig, dimensions: Sequence[Dimension], batch: ItemBatch
) -> Minibatches | GradientSteps | None:
    """Return the minibatches of the search split for a chosen optimizer; None without any.

    Args:
        spec: The spec.
        config: The chosen optimizer, not `auto`.
        dimensions: The search space.
        batch: The search split.
    """
    if load(config.name).gradients:
        options, shards = config.options, config.population_for(dimensions)
        return gradient_steps(spec.suite, batch, options["batch"], shards, options["hold_back"], config.seed)
    count = spec.config.search_minibatches
    return None if count is None else partition(spec.suite, batch, count, config.seed)


def recorded_choice(config: OptimizerConfig, recorded: OptimizerRecord | None) -> Choice | None:
    """Return the choice that a search was started with; None if it has none on record."""
    if recorded is None or config.name != AUTO:
        return None
    return Choice(config.named(recorded.name, recorded.options), recorded.why)


def record_of(choice: Choice) -> OptimizerRecord:
    """Return a choice as `started` records it."""
    return OptimizerRecord(choice.config.name, dict(choice.config.options), choice.why)
