"""The soup by threshold: candidates, chosen models, and refused spaces."""

from collections.abc import Callable, Mapping, Sequence

import pytest

from evosearch.errors import SpecError
from evosearch.search.optimizer import Optimizer
from evosearch.search.optimizer_config import OptimizerConfig, create
from evosearch.search.space.dimensions import Dimension, Estimate, Observation

Scores = Mapping[str, float | None]


def weight(name: str, low: float = 0.0) -> Dimension:
    return Dimension(name, "float", 0.5, low=low, high=1.0, parameter="weight", scope=f"models[{name}]")


FOUR = tuple(weight(name) for name in "abcd")


def make(dimensions: Sequence[Dimension] = FOUR, **options: object) -> Optimizer:
    config = OptimizerConfig.model_validate({"name": "soup", **options})
    return create(config, dimensions, {d.name: d.init for d in dimensions}, where="night.yaml: optimizer")


def run(
    optimizer: Optimizer, scores: Scores, violation: Callable[[str], float] = lambda _: 0.0
) -> tuple[list[list[str]], str]:
    """Return the groups of candidates as texts of included models, without the start, and why it stopped."""
    groups: list[list[str]] = []
    while (reason := optimizer.stop_reason()) is None:
        told, group = [], []
        for genome in optimizer.ask(optimizer.population):
            taken = "".join(name for name, value in genome.items() if value == 1)
            value = scores.get(taken, -50.0)
            objectives = () if value is None else (Estimate(value, 0.1, 9),)
            violations = (violation(taken),) if objectives else ()
            told.append(Observation("0", genome, objectives, violations, "scored" if objectives else "failed"))
            if set(genome.values()) <= {0, 1}:
                group.append(taken)
        groups.append(group)
        optimizer.tell(told)
    return groups, reason


SCORES: Scores = {"a": 3.0, "b": 9.0, "c": 7.0, "d": 6.9}


@pytest.mark.parametrize(
    ("options", "soup"),
    [({}, "bc"), ({"within": 2.2}, "bcd"), ({"within": 100}, "abcd"), ({"within": 100, "threshold": 6.95}, "bc")],
)
def test_the_soup_has_all_models_that_are_good_enough(options: dict[str, object], soup: str) -> None:
    groups, reason = run(make(**options), SCORES)
    assert groups == [["a", "b", "c", "d"], [soup]]
    assert reason == f"soup: {len(soup)} of 4 models are good enough ({', '.join(soup)})"


def test_a_soup_of_one_model_is_not_proposed_again() -> None:
    groups, reason = run(make(within=0), SCORES)
    assert groups == [["a", "b", "c", "d"]]
    assert reason == "soup: 1 of 4 models are good enough (b)"
    assert run(make(threshold=10), SCORES)[1] == "soup: 0 of 4 models are good enough (none)"


def test_failures_and_broken_constraints_are_left_out() -> None:
    assert run(make(within=100), {**SCORES, "b": None})[0][1] == ["acd"]
    assert run(make(), dict.fromkeys("abcd"))[1] == "soup: no model could be scored alone"
    groups, _ = run(make(within=100), SCORES, lambda taken: 1.0 if taken == "b" else 0.0)
    assert groups[1] == ["acd"]


def test_population_limits_what_is_asked_together() -> None:
    groups, _ = run(make(population=2), SCORES)
    assert groups == [["a"], ["b", "c"], ["d"], ["bc"]]  # the start is with a


def test_a_weight_that_cannot_be_zero_is_refused() -> None:
    with pytest.raises(SpecError, match=r"soup includes or excludes each model \(weight 0\), but a is bounded"):
        make((weight("a", 0.5), *FOUR[1:]))
