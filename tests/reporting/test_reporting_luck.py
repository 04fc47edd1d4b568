"""The worth of picking the best of many models by few items."""

import numpy as np
import pytest

from evosearch.reporting.page.luck import selection_luck

WEIGHTS, CHANCES = {"t": 1.0}, {"t": 0.0}


def drawn(models: int, items: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"t": (rng.random(items) < 0.5).astype(float)} for _ in range(models)]


def test_independent_models_have_the_luck_of_normal_draws() -> None:
    found = selection_luck(drawn(100, 400), WEIGHTS, CHANCES)
    assert found == pytest.approx(2.5076 * 100 * 0.5 / 400**0.5, rel=0.1)  # E max of 100 standard normals = 2.5076


def test_models_that_err_alike_have_none() -> None:
    (one,) = drawn(1, 400)
    assert selection_luck([one] * 100, WEIGHTS, CHANCES) == pytest.approx(0.0, abs=0.2)


def test_more_models_are_worth_more_and_more_items_less() -> None:
    few, many = (selection_luck(drawn(models, 200), WEIGHTS, CHANCES) for models in (5, 200))
    assert few < many
    assert selection_luck(drawn(50, 3200), WEIGHTS, CHANCES) < 0.4 * selection_luck(drawn(50, 200), WEIGHTS, CHANCES)


def test_groups_are_units_and_quality_does_not_count() -> None:
    base = drawn(20, 100)
    grouped = [{"t": np.repeat(one["t"], 4)} for one in base]
    groups = {"t": [f"{index // 4:03}" for index in range(400)]}  # sorted as the items are, for equal draws
    alone, units = (selection_luck(grouped, WEIGHTS, CHANCES, known) for known in (None, groups))
    assert units == pytest.approx(2 * alone, rel=0.15)
    assert units == pytest.approx(selection_luck(base, WEIGHTS, CHANCES), rel=1e-9)
    better = [{"t": one["t"] + 0.1 * index} for index, one in enumerate(base)]
    assert selection_luck(better, WEIGHTS, CHANCES) == pytest.approx(selection_luck(base, WEIGHTS, CHANCES))
