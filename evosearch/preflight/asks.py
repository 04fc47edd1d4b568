"""Numbers of shards that a search differentiates and of candidates that it scores."""

from collections.abc import Callable
from dataclasses import dataclass

from evosearch.evaluation.statistics.gradient_steps import GradientSteps
from evosearch.evaluation.statistics.minibatches import Minibatches
from evosearch.search.optimizer import AsksForGradients
from evosearch.search.optimizer_config import OptimizerConfig, create
from evosearch.search.optimizers.registry import load
from evosearch.search.sampling import BACKWARD
from evosearch.search.space.dimensions import Evaluation
from evosearch.search.space.space import SearchSpace
from evosearch.setup.prepare import Prepared
from evosearch.spec.config import BudgetConfig

AHEAD = 1024  # asks whose mean stands for all
WITHOUT_HELD_BACK = 3  # averages that `gradient` recommends if nothing is held back


@dataclass(frozen=True)
class Asked:
    """A number of asks.

    Attributes:
        count: All of them.
        gradients: Those that are differentiated.
    """

    count: int
    gradients: int = 0


@dataclass(frozen=True)
class Asks:
    """The asks of an optimizer that asks for gradients.

    Attributes:
        steps: Its minibatches.
        evaluation: Ask index → how the candidate is evaluated.
    """

    steps: GradientSteps
    evaluation: Callable[[int], Evaluation]

    def first(self, count: int) -> Asked:
        """Return the first `count` asks."""
        return Asked(count, sum(self.evaluation(index).gradient for index in range(count)))

    def within(self, budget: BudgetConfig) -> Asked | None:
        """Return the asks that a budget of candidates or items allows; None if it has neither."""
        if budget.candidates is None and budget.items is None:
            return None
        left, count = float("inf") if budget.items is None else budget.items, 0
        while budget.candidates is None or count < budget.candidates:
            left -= self.cost(self.evaluation(count))
            if left < 0:
                break
            count += 1
        return self.first(count)

    def cost(self, evaluation: Evaluation) -> int:
        """Return the item evaluations that an evaluation counts as."""
        return self._items(evaluation) * (1 + BACKWARD if evaluation.gradient else 1)

    @property
    def gradient_share(self) -> float:
        """Fraction of the asks that are differentiated."""
        return self.first(AHEAD).gradients / AHEAD

    @property
    def shard(self) -> float:
        """Mean fraction of the search split's documents in a shard."""
        return sum(map(len, self.steps.batches)) / len(self.steps.batches) / len(self.steps.full)

    @property
    def ranked(self) -> float:
        """Fraction of the search split's documents that models are compared on: the held-back part, or all."""
        return len(self.steps.ranked) / len(self.steps.full)

    def _items(self, evaluation: Evaluation) -> int:
        return len(self.steps.ranked if evaluation.minibatch is None else self.steps.batches[evaluation.minibatch])


def asks_of(config: OptimizerConfig, space: SearchSpace, steps: Minibatches | None) -> Asks | None:
    """Return the asks of an optimizer; None if it asks for no gradients.

    Args:
        config: The chosen optimizer.
        space: The search space.
        steps: Its minibatches.
    """
    if not isinstance(steps, GradientSteps):
        return None
    built = create(
        config, space.dimensions, space.initial(), minibatches=steps.count, held_back=steps.held_back is not None
    )
    assert isinstance(built, AsksForGradients)
    return Asks(steps, built.evaluation)


def asks_in(prepared: Prepared) -> Asks | None:
    """Return the asks of a prepared search; None if it asks for no gradients."""
    return asks_of(prepared.optimizer, prepared.space, prepared.minibatches)


def answers_of(config: OptimizerConfig, asks: Asks | None) -> int:
    """Return how many candidates an optimizer recommends at the end, at most."""
    if not hasattr(load(config.name).factory, "answers"):
        return 0
    return 1 if asks is None or asks.steps.held_back is not None else WITHOUT_HELD_BACK
