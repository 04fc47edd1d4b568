"""The greedy soup: order of candidates, kept models and refused spaces, against the published loop."""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence

import pytest

from evosearch.errors import SpecError
from evosearch.search.optimizer import Optimizer
from evosearch.search.optimizer_config import OptimizerConfig, create
from evosearch.search.space.dimensions import Dimension, Estimate, Genome, Observation

Fitness = Callable[[frozenset[str]], float | None]


def weight(name: str, **changes: object) -> Dimension:
    scope = f"models[{name}]"
    plain: dict[str, object] = {"low": 0.0, "high": 1.0, "parameter": "weight", "scope": scope}
    return Dimension(name, "float", 0.5, **plain | changes)  # type: ignore[arg-type]


def make(dimensions: Sequence[Dimension], **options: object) -> Optimizer:
    config = OptimizerConfig.model_validate({"name": "greedy_soup", **options})
    return create(config, dimensions, {d.name: d.init for d in dimensions}, where="night.yaml: optimizer")


def run(
    optimizer: Optimizer, fitness: Fitness, violation: Callable[[frozenset[str]], float] = lambda _: 0.0
) -> tuple[list[list[frozenset[str]]], str]:
    """Return the groups of candidates as sets of included models, without the start, and why it stopped."""
    groups: list[list[frozenset[str]]] = []
    while (reason := optimizer.stop_reason()) is None:
        genomes = optimizer.ask(optimizer.population)
        groups.append([])
        told = []
        for genome in genomes:
            taken = frozenset(name for name, value in genome.items() if value == 1)
            value = fitness(taken)
            objectives = () if value is None else (Estimate(value, 0.1, 9),)
            state = "scored" if objectives else "failed"
            violations = (violation(taken),) if objectives else ()
            told.append(Observation("0", genome, objectives, violations, state))  # type: ignore[arg-type]
            if set(genome.values()) <= {0, 1}:
                groups[-1].append(taken)
        optimizer.tell(told)
    return groups, reason


def names(*groups: str) -> list[list[frozenset[str]]]:
    return [[frozenset(one) for one in group.split()] for group in groups]


FOUR = tuple(weight(name) for name in "abcd")


def table(scores: Mapping[str, float | None]) -> Fitness:
    return lambda taken: scores.get("".join(sorted(taken)), -99.0)


def test_every_model_alone_and_then_additions_in_the_order_of_their_scores() -> None:
    scores = {"a": 3.0, "b": 9.0, "c": 5.0, "d": 4.0, "bc": 8.0, "bd": 9.0, "abd": 9.5}
    groups, reason = run(make(FOUR), table(scores))
    assert groups == names("a b c d", "bc", "bd", "abd")  # bc hurts, bd is as good, abd is better
    assert reason == "greedy_soup: tried every model, 3 of 4 kept (a, b, d)"


def test_the_start_is_asked_first_and_is_not_in_the_soup() -> None:
    optimizer = make(FOUR)
    assert optimizer.population == 5
    assert optimizer.ask(1) == [{"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5}]
    one = [weight("a", low=0.0, high=0.5), weight("b", low=0.0, high=0.5)]
    start = {"a": 0.5, "b": 0.0}
    same = create(OptimizerConfig(name="greedy_soup"), one, start)
    assert same.population == 2  # the start is the first model alone, and is not asked twice
    assert same.ask(2) == [start, {"a": 0.0, "b": 0.5}]


def test_population_limits_what_is_asked_together() -> None:
    groups, _ = run(make(FOUR, population=2), table({}))
    assert [len(group) for group in groups] == [1, 2, 1, 1, 1, 1]  # the omitted start is in the first


def test_a_failure_is_not_kept_and_what_fails_alone_is_not_tried() -> None:
    scores = {"a": 3.0, "b": 9.0, "c": None, "d": 4.0, "bd": None, "ab": 9.0}
    groups, reason = run(make(FOUR), table(scores))
    assert groups == names("a b c d", "bd", "ab")
    assert "2 of 4 kept (a, b)" in reason


def test_keeping_a_constraint_comes_before_the_score() -> None:
    scores = {"a": 3.0, "b": 9.0, "c": 2.0, "ac": 9.0, "ab": 1.0}
    broken = {"b": 5.0, "ac": 0.5, "c": 0.0, "ab": 0.0}
    fitness, dimensions = table(scores), FOUR[:3]
    groups, reason = run(make(dimensions), fitness, lambda taken: broken.get("".join(sorted(taken)), 0.0))
    assert groups == names("a b c", "ac", "ab")  # b breaks a guard and is tried last; ac breaks one and is not kept
    assert "1 of 3 kept (a)" in reason


@pytest.mark.parametrize("seed", range(20))
def test_is_the_published_loop(seed: int) -> None:
    draw = random.Random(seed)
    count = draw.randint(1, 6)
    dimensions = [weight(name) for name in "abcdef"[:count]]
    subsets = itertools.chain.from_iterable(itertools.combinations("abcdef"[:count], k) for k in range(1, count + 1))
    scores = {frozenset(taken): float(draw.randint(0, 4)) for taken in subsets}
    # Wortsman et al. 2022, recipe 1
    ranked = sorted((dimension.name for dimension in dimensions), key=lambda name: -scores[frozenset(name)])
    soup = frozenset(ranked[0])
    for name in ranked[1:]:
        soup = soup | {name} if scores[soup | {name}] >= scores[soup] else soup
    groups, reason = run(make(dimensions), lambda taken: scores.get(taken, 0.0))
    assert f"({', '.join(sorted(soup))})" in reason
    assert sum(map(len, groups)) == 2 * count - 1


def test_choices_and_whole_numbers_can_include_a_model() -> None:
    dimensions = [
        Dimension("a", "categorical", True, choices=(True, False)),
        Dimension("b", "categorical", 0.0, choices=(0.0, 0.7)),
        Dimension("c", "int", 0, low=0, high=2),
    ]
    start: Genome = {"a": True, "b": 0.0, "c": 0}
    optimizer = create(OptimizerConfig(name="greedy_soup"), dimensions, start)
    assert optimizer.ask(3) == [start, {"a": False, "b": 0.7, "c": 0}, {"a": False, "b": 0.0, "c": 2}]


@pytest.mark.parametrize(
    ("dimension", "said"),
    [
        (weight("a", low=0.1), r"a is bounded to \[0.1, 1\]"),
        (weight("a", low=-1.0), r"a is bounded to \[-1, 1\]"),
        (weight("a", parameter="density"), "a is not a weight"),
        (weight("a", scope="models[b]"), r"models\[b\] has several numbers \(b, a\)"),
        (weight("a", active_if=("merge_method", ("ties",))), "a has an effect only under some choices of merge_method"),
        (Dimension("a", "categorical", 0.0, choices=(0.0, 0.5, 1.0)), "a has the choices 0.0, 0.5, 1.0"),
        (Dimension("a", "categorical", "ties", choices=("ties", "linear")), "a has the choices ties, linear"),
    ],
)
def test_dimensions_that_are_not_weights_from_zero_are_refused(dimension: Dimension, said: str) -> None:
    with pytest.raises(SpecError, match=rf"night.yaml: optimizer.name: greedy_soup .*, but {said}. Give each model"):
        make([weight("b"), dimension])
