"""Models that a soup includes or excludes: one weight each, shared by the optimizers `greedy_soup` and `soup`."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from evosearch.errors import SpecError
from evosearch.recipe.shapes import Scalar
from evosearch.search.space.dimensions import Dimension, Genome, Observation

Rank = tuple[float, float]  # (-violation, value): larger is better (Deb 2000)

EXAMPLE = "Give each model one hole: `weight: {low: 0, high: 1}`, or `weight: {choices: [0, 1]}`"


@dataclass(frozen=True)
class Model:
    """One model's dimension, with the values that exclude and include the model."""

    name: str
    absent: Scalar
    present: Scalar


def check(optimizer: str, dimensions: Sequence[Dimension]) -> None:
    """Check that each model has one weight, which can be 0.

    Raises:
        SpecError: A dimension is not such a weight, or a model has several.
    """
    scopes: dict[str, str] = {}
    for dimension in dimensions:
        if dimension.parameter not in (None, "weight"):
            raise _refused(optimizer, f"{dimension.name} is not a weight")
        if dimension.scope is not None and dimension.scope in scopes:
            several = f"{scopes[dimension.scope]}, {dimension.name}"
            raise _refused(optimizer, f"{dimension.scope} has several numbers ({several})")
        if dimension.scope is not None:
            scopes[dimension.scope] = dimension.name
    for dimension in dimensions:
        model_of(optimizer, dimension)


def model_of(optimizer: str, dimension: Dimension) -> Model:
    """Return the model of a weight.

    Raises:
        SpecError: See `check`.
    """
    name = dimension.name
    if dimension.active_if is not None:
        raise _refused(optimizer, f"{name} has an effect only under some choices of {dimension.active_if[0]}")
    if dimension.kind != "categorical":
        if dimension.low != 0 or dimension.high <= 0:
            raise _refused(optimizer, f"{name} is bounded to [{dimension.low:g}, {dimension.high:g}]")
        return Model(name, dimension.clip(0), dimension.clip(dimension.high))
    absent = [choice for choice in dimension.choices if not isinstance(choice, str) and choice == 0]
    present = [choice for choice in dimension.choices if choice not in absent]
    if len(absent) != 1 or len(present) != 1 or isinstance(present[0], str):
        raise _refused(optimizer, f"{name} has the choices {', '.join(map(str, dimension.choices))}")
    return Model(name, absent[0], present[0])


def _refused(optimizer: str, what: str) -> SpecError:
    return SpecError("name", f"{optimizer} includes or excludes each model (weight 0), but {what}", next=EXAMPLE)


def genome_of(models: Sequence[Model], taken: Collection[int]) -> Genome:
    """Return the genome that includes the models with these indices."""
    return {one.name: one.present if index in taken else one.absent for index, one in enumerate(models)}


def rank_of(observation: Observation) -> Rank | None:
    """Return the rank of a result; None for a failure."""
    return None if observation.value is None else (-observation.violation, observation.value)
