"""Cost of gradient jobs, on models of a few thousand weights: the figures are there, not their values."""

import json
from pathlib import Path

import pytest

from benchmarks import gradient_cost
from benchmarks._gradient_cost import step
from benchmarks._gradient_cost.case import Row
from benchmarks._random_models.llama import PROJECTIONS, Shape

TINY = Shape("tiny", 4, 64, 96, 4, 2, 128, "float32")
HALF = Shape("half", 4, 64, 96, 4, 2, 128, "bfloat16")


@pytest.mark.parametrize("part", ["small", "adapters"])
def test_times_in_few_and_many_coefficients(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_cost, "SMALL", TINY)
    row = gradient_cost.PARTS[part](tmp_path, 1, 4)
    assert isinstance(row, Row)
    assert (row.items, row.few, row.many) == (4, 12, 3 * len(PROJECTIONS) * TINY.layers)
    assert row.parameters == TINY.parameters
    assert row.cost > 0.5
    assert row.many_to_few == pytest.approx(row.cost_of_many / row.cost, rel=0.01), "one round"
    assert gradient_cost.table([row]).count("\n") == 2


def test_memory_of_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_cost, "BILLION", HALF)
    found = gradient_cost.memory(tmp_path, 1, 4)
    assert isinstance(found, step.Memory)
    assert (found.parameters, found.items, found.coefficients) == (HALF.parameters, 4, 8)
    assert 0.1 < found.resident < 4
    assert found.start > found.resident - 0.1
    assert 0.1 < found.gradient < 4
    assert "gradient step" in gradient_cost.described(found)
    json.dumps(vars(found))
