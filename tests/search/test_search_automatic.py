"""The choice of `optimizer: auto`."""

from typing import Any

import pytest

from evosearch.documents import validate
from evosearch.errors import SpecError
from evosearch.search.optimizer_config import OptimizerConfig
from evosearch.search.optimizers._automatic import MANY, Choice, Situation, choose
from evosearch.search.space.dimensions import Dimension

NUMBERS = tuple(Dimension(f"w{index}", "float", 0.5) for index in range(12))
METHOD = Dimension("merge_method", "categorical", "ties", choices=("ties", "linear"))
WHOLE = Dimension("count", "int", 3, low=1, high=9)


def chosen(config: OptimizerConfig | None = None, **situation: Any) -> Choice:
    found = choose(config or OptimizerConfig(), Situation(**{"dimensions": NUMBERS} | situation))
    found.config.check(situation.get("dimensions", NUMBERS), situation.get("objectives", 1))  # what is chosen fits
    return found


@pytest.mark.parametrize(
    ("situation", "name", "why"),
    [
        ({}, "gradient", "every searched number has a derivative (12 dimensions)"),
        ({"objectives": 2}, "nsga2", "there are 2 objectives"),
        ({"objectives": 2, "dimensions": (*NUMBERS, METHOD)}, "nsga2", "there are 2 objectives"),
        ({"dimensions": (*NUMBERS, METHOD)}, "cat_cma", "'merge_method' has choices"),
        ({"no_gradient": "'count' is a whole number", "dimensions": (WHOLE,)}, "cma_es", "'count' is a whole number"),
        ({"no_gradient": "fitness: score has none"}, "cma_es", "fitness: score has none"),
        ({"guards": 2}, "cma_es", "a gradient does not see the suite's guards (2)"),
        ({"minibatches": True}, "cma_es", "a gradient has its own minibatches, and search_minibatches is set"),
    ],
)
def test_the_first_case_that_holds_decides_and_is_named(situation: dict[str, Any], name: str, why: str) -> None:
    found = chosen(**situation)
    assert (found.config.name, found.why) == (name, why)


def test_many_dimensions_without_a_gradient_learn_variances_alone() -> None:
    many = tuple(Dimension(f"w{index}", "float", 0.5) for index in range(MANY + 1))
    found = chosen(dimensions=many, no_gradient="no derivative")
    assert (found.config.name, found.config.options["diagonal"]) == ("cma_es", True)
    assert chosen(dimensions=many[:MANY], no_gradient="no derivative").config.options["diagonal"] is False


def test_other_keys_are_kept_and_decide_too() -> None:
    found = chosen(OptimizerConfig(seed=7, population=5, start="init"))
    assert (found.config.seed, found.config.population, found.config.start) == (7, 5, "init")
    assert chosen(OptimizerConfig(asynchronous=True)).why == "a gradient does not support asynchronous mode"
    with pytest.raises(SpecError, match=r"optimizer.population: got 2. cma_es needs at least 4"):
        chosen(OptimizerConfig(population=2), guards=1)


def test_auto_has_no_options_of_single_optimizers() -> None:
    assert OptimizerConfig().name == "auto"
    assert OptimizerConfig().options == {}
    with pytest.raises(SpecError, match=r"night.yaml: optimizer.sigma: auto has no option 'sigma'"):
        validate(OptimizerConfig, {"sigma": 0.1}, "night.yaml: optimizer", SpecError)
