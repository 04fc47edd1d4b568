"""Choice of an optimizer for `auto`. Pure.

| first case that holds | optimizer |
|---|---|
| several objectives | nsga2 |
| choices (methods, routes, flags) among the dimensions | cat_cma |
| fitness and recipe are differentiable, and nothing below forbids it | gradient |
| more than `MANY` dimensions | cma_es with `diagonal` |
| everything else | cma_es |

A gradient shows neither guards nor the minibatches of `search_minibatches`, and needs the generational loop. The choice
depends on the spec and on nothing that may change when a search is resumed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evosearch.search.optimizer_config import OptimizerConfig
from evosearch.search.space.dimensions import Dimension

MANY = 100  # dimensions from which on a full covariance matrix needs more candidates than most searches have


@dataclass(frozen=True)
class Choice:
    """A chosen optimizer.

    Attributes:
        config: The configuration with the optimizer's name and options.
        why: Why it was chosen: `every searched number has a derivative (228 dimensions)`; empty for one that was named.
    """

    config: OptimizerConfig
    why: str = ""


@dataclass(frozen=True)
class Situation:
    """Everything that the choice depends on.

    Attributes:
        dimensions: The search space.
        objectives: Number of objectives.
        no_gradient: Why recipe or fitness have no derivative; None if they have.
        guards: Number of guarded tasks.
        minibatches: Whether `search_minibatches` is set.
    """

    dimensions: Sequence[Dimension]
    objectives: int = 1
    no_gradient: str | None = None
    guards: int = 0
    minibatches: bool = False


def choose(config: OptimizerConfig, situation: Situation, where: str = "optimizer") -> Choice:
    """Choose the optimizer of a configuration whose name is `auto`.

    Raises:
        SpecError: The optimizer does not support another key of the configuration, such as a small `population`;
            `where` is the prefix of the key.
    """
    name, options, why = _chosen(config, situation)
    return Choice(config.named(name, options, where), why)


def _chosen(config: OptimizerConfig, situation: Situation) -> tuple[str, dict[str, Any], str]:
    """Return name, options and reason."""
    found = situation.dimensions
    if situation.objectives > 1:
        return "nsga2", {}, f"there are {situation.objectives} objectives"
    choices = [dimension.name for dimension in found if dimension.kind == "categorical"]
    if choices:
        more = f" and {len(choices) - 1} more" if len(choices) > 1 else ""
        return "cat_cma", {}, f"'{choices[0]}'{more} {'have' if more else 'has'} choices"
    obstacle = _obstacle(config, situation)
    if obstacle is None:
        return "gradient", {}, f"every searched number has a derivative ({len(found)} dimensions)"
    if len(found) > MANY:
        return "cma_es", {"diagonal": True}, f"{obstacle}; variances alone for {len(found)} dimensions"
    return "cma_es", {}, obstacle


def _obstacle(config: OptimizerConfig, situation: Situation) -> str | None:
    """Return why a gradient is not used, if it is not."""
    if situation.no_gradient is not None:
        return situation.no_gradient
    if situation.guards:
        return f"a gradient does not see the suite's guards ({situation.guards})"
    if situation.minibatches:
        return "a gradient has its own minibatches, and search_minibatches is set"
    if config.asynchronous:
        return "a gradient does not support asynchronous mode"
    return None
