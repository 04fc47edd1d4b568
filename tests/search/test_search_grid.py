"""The grid: its points, their order, and refused spaces."""

import pytest

from evosearch.errors import SpecError
from evosearch.search.optimizer import Optimizer
from evosearch.search.optimizer_config import OptimizerConfig, create
from evosearch.search.space.dimensions import Dimension, Estimate, Genome, Observation

SCALE = Dimension("scale", "float", 0.3, low=0.0, high=1.0)
RATE = Dimension("rate", "float", 0.1, low=0.01, high=1.0, log=True)
COUNT = Dimension("count", "int", 2, low=1, high=4)
METHOD = Dimension("merge_method", "categorical", "ties", choices=("ties", "linear"))
DENSITY = Dimension("density", "float", 0.5, low=0.0, high=1.0, active_if=("merge_method", ("ties",)))


def make(*dimensions: Dimension, start: Genome | None = None, **options: object) -> Optimizer:
    config = OptimizerConfig.model_validate({"name": "grid", **options})
    return create(config, dimensions, start or {d.name: d.init for d in dimensions}, where="night.yaml: optimizer")


def everything(optimizer: Optimizer) -> list[Genome]:
    asked: list[Genome] = []
    while optimizer.stop_reason() is None:
        genomes = optimizer.ask(optimizer.population)
        optimizer.tell([Observation("0", genome, (Estimate(0.0, 0.1, 9),)) for genome in genomes])
        asked += genomes
    return asked


def test_one_number_from_bound_to_bound_coarse_first() -> None:
    asked = [genome["scale"] for genome in everything(make(SCALE, points=9))]
    assert asked == [0.3, 0.0, 1.0, 0.5, 0.25, 0.75, 0.125, 0.375, 0.625, 0.875]


def test_eleven_points_by_default_and_the_start_only_once() -> None:
    optimizer = make(SCALE, start={"scale": 0.5})
    assert sorted(genome["scale"] for genome in everything(optimizer)) == pytest.approx([i / 10 for i in range(11)])
    assert optimizer.stop_reason() == "grid: all 11 points are proposed"


def test_logarithms_are_spaced_evenly() -> None:
    asked = sorted(float(genome["rate"]) for genome in everything(make(RATE, points=5)))
    assert asked == pytest.approx([0.01, 0.01 * 10**0.5, 0.1, 10**-0.5, 1.0], rel=1e-12)


def test_whole_numbers_have_at_most_one_point_each() -> None:
    assert sorted(genome["count"] for genome in everything(make(COUNT, points=50))) == [1, 2, 3, 4]
    many = Dimension("many", "int", 1, low=1, high=1000)
    assert sorted(genome["many"] for genome in everything(make(many, points=3))) == [1, 500, 1000]


def test_every_combination_of_two_once_and_early_ones_span_the_space() -> None:
    asked = [(genome["scale"], genome["count"]) for genome in everything(make(SCALE, COUNT, points=5))]
    assert asked[0] == (0.3, 2)
    assert sorted(asked[1:]) == [(scale / 4, count) for scale in range(5) for count in range(1, 5)]
    assert set(asked[1:5]) == {(0.0, 1), (0.0, 4), (1.0, 1), (1.0, 4)}


def test_an_inactive_value_is_not_varied() -> None:
    asked = [(genome["merge_method"], genome["density"]) for genome in everything(make(METHOD, DENSITY, points=3))]
    assert sorted(asked) == [("linear", 0.5), ("ties", 0.0), ("ties", 0.5), ("ties", 1.0)]


def test_three_dimensions_are_refused() -> None:
    said = r"night.yaml: optimizer.name: grid takes one or two dimensions, but .* 3 \(scale, rate, count, ...\).*`per`"
    with pytest.raises(SpecError, match=said):
        make(SCALE, RATE, COUNT)


def test_too_many_combinations_are_refused() -> None:
    with pytest.raises(SpecError, match=r"night.yaml: optimizer.points: makes 1,000,000 combinations. At most 100,000"):
        make(SCALE, RATE, points=1000)
