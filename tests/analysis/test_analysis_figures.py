"""Sign conflicts, subspaces, calibration and barriers against their definitions."""

import math

import numpy as np
import pytest
import torch

from evosearch.analysis.calibration import Answered, calibration, expected_error
from evosearch.analysis.conflicts import Counts
from evosearch.analysis.paths import barrier, lowest
from evosearch.analysis.subspaces import EXACT, overlap, subspace


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_conflicts_of_a_table_by_hand() -> None:
    #                conflict  agree  one only  none  three, one against
    first = torch.tensor([1.0, 2.0, 3.0, 0.0, -1.0])
    second = torch.tensor([-2.0, 1.0, 0.0, 0.0, 2.0])
    third = torch.tensor([0.0, 0.0, 0.0, 0.0, 4.0])
    counts = Counts(3)
    counts.add([first, second, third])
    assert (counts.elements, counts.shared, counts.conflicting) == (5, 3, 2)
    assert counts.conflict == pytest.approx(2 / 3)
    assert counts.weighted_conflict == pytest.approx((3 + 7) / (3 + 3 + 7))
    assert counts.zeros == pytest.approx([0.2, 0.4, 0.8])
    assert counts.spread[2] == pytest.approx(16 / (5 * 16))


def test_counts_are_sums_over_chunks_and_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = [drawn(7, 11, seed=seed) for seed in range(3)]
    whole = Counts(3)
    whole.add(changes)
    monkeypatch.setattr("evosearch.analysis.conflicts.CHUNK", 10)
    parts = [Counts(3), Counts(3)]
    parts[0].add([each[:3] for each in changes])
    parts[1].add([each[3:] for each in changes])
    added = parts[0].plus(parts[1])
    assert (added.shared, added.conflicting, added.zero) == (whole.shared, whole.conflicting, whole.zero)
    assert added.weighted_conflict == pytest.approx(whole.weighted_conflict)
    assert added.spread == pytest.approx(whole.spread)


def test_figures_without_changes() -> None:
    counts = Counts(2)
    counts.add([torch.zeros(4), torch.zeros(4)])
    assert counts.conflict is None
    assert counts.weighted_conflict is None
    assert counts.zeros == [1.0, 1.0]
    assert counts.spread == [None, None]


def test_a_normal_change_has_the_spread_of_its_distribution() -> None:
    counts = Counts(1)
    counts.add([drawn(200_000)])
    assert counts.spread[0] == pytest.approx(2 / math.pi, abs=0.005)


@pytest.mark.parametrize("shape", [(60, 90), (EXACT + 40, EXACT + 90)])
def test_singular_vectors_are_those_of_a_full_decomposition(shape: tuple[int, int]) -> None:
    left, right = drawn(shape[0], 12, seed=1), drawn(12, shape[1], seed=2)
    matrix = (left * torch.logspace(1, -1, 12)) @ right  # of rank 12: within reach of the sketch
    found = subspace(matrix, 5)
    exact = torch.linalg.svd(matrix.double(), full_matrices=False)
    assert found.method == ("exact" if min(shape) <= EXACT else "randomized")
    torch.testing.assert_close(found.values, exact.S[:5], rtol=1e-5, atol=1e-6)
    assert overlap(found.left, exact.U[:, :5]) == pytest.approx(1.0, abs=1e-5)
    assert overlap(found.right, exact.Vh[:5].T) == pytest.approx(1.0, abs=1e-5)
    again = subspace(matrix, 5)
    assert torch.equal(found.left, again.left)


def test_a_subspace_has_no_more_vectors_than_the_rank() -> None:
    found = subspace(drawn(40, 2, seed=1) @ drawn(2, 30, seed=2), 8)
    assert found.left.shape == (40, 2)
    assert found.right.shape == (30, 2)
    assert subspace(torch.zeros(40, 30), 8).left.shape == (40, 0)


def test_overlaps_of_equal_orthogonal_and_random_subspaces() -> None:
    basis = torch.eye(50, dtype=torch.float64)
    assert overlap(basis[:, :4], basis[:, :4]) == pytest.approx(1.0)
    assert overlap(basis[:, :4], basis[:, 4:8]) == pytest.approx(0.0)
    assert overlap(basis[:, :2], basis[:, :8]) == pytest.approx(1.0)
    assert overlap(basis[:, :0], basis[:, :4]) is None
    random = [torch.linalg.qr(drawn(400, 20, seed=seed).double()).Q for seed in range(2)]
    assert overlap(*random) == pytest.approx(20 / 400, abs=0.02)


def test_calibration_of_a_table_by_hand() -> None:
    """Two items with probabilities (3/4, 1/4), one right and one wrong, and a certain one that is right."""
    items = [
        Answered(np.log([0.75, 0.25]), (0,)),
        Answered(np.log([0.75, 0.25]), (1,)),
        Answered(np.array([0.0, -np.inf]), (0,)),
    ]
    found = calibration(items)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.confidence == pytest.approx((0.75 + 0.75 + 1.0) / 3)
    assert found.ece == pytest.approx(2 / 3 * abs(0.5 - 0.75))
    assert found.brier == pytest.approx((2 * 0.25**2 + 2 * 0.75**2 + 0.0) / 3)


def test_several_right_choices_count_as_one() -> None:
    found = calibration([Answered(np.log([0.5, 0.3, 0.2]), (0, 1))])
    assert found.brier == pytest.approx(0.2**2 + 0.2**2)
    assert found.accuracy == 1.0


def test_a_calibrated_model_has_no_error_and_a_certain_one_has_its_error_rate() -> None:
    draw = np.random.default_rng(0)
    confidence = draw.uniform(0.5, 1.0, 200_000)
    right = (draw.uniform(size=confidence.size) < confidence).astype(float)
    assert expected_error(confidence, right) < 0.005
    assert expected_error(np.ones(10), np.array([1.0] * 7 + [0.0] * 3)) == pytest.approx(0.3)


def test_barriers() -> None:
    assert barrier([(0.0, 1.0), (0.5, 4.0), (1.0, 3.0)]) == pytest.approx(2.0)
    assert barrier([(0.0, 1.0), (0.5, 1.0), (1.0, 3.0)]) == 0.0
    assert lowest([(0.0, 1.0), (0.5, 0.5), (1.0, 0.5)]) == (0.5, 0.5)
