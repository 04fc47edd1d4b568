"""tsv_m, iso_c, ace and actmat against their definitions in float64 numpy, and where matrices have no full rank."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.merging.method_parameters import Memory, Origin, Parameters
from evosearch.merging.registry import method, specs

torch.set_num_threads(1)
Matrix = NDArray[np.float64]
NAMES = ("tsv_m", "iso_c", "ace", "actmat")
ORIGINS = tuple(Origin(f"{index:064x}", "t") for index in range(6))


def merge(name: str, base: Tensor, parents: list[Tensor], memory: Memory | None = None, **given: float) -> Tensor:
    shared = {key: param.default for key, param in specs()[name].parameters.items()} | given
    p = Parameters(shared, {}, base.dtype, base=ORIGINS[0], parents=ORIGINS[1 : len(parents) + 1], memory=memory)
    return method(name).merge(base, parents, p)


def models(shape: tuple[int, ...], count: int, sizes: tuple[float, ...] = (1.0,) * 5) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(4)
    base = torch.randn(shape, generator=generator)
    return base, [base + size * torch.randn(shape, generator=generator) for size in sizes[:count]]


def taus_of(base: Tensor, parents: list[Tensor]) -> list[Matrix]:
    return [(parent.double() - base.double()).numpy() for parent in parents]


def tsv_m(taus: list[Matrix]) -> Matrix:
    share = max(1, min(taus[0].shape) // len(taus))
    us, ss, vs = [], [], []
    for tau in taus:
        u, s, v = np.linalg.svd(tau, full_matrices=False)
        us.append(u[:, :share])
        ss.append(s[:share])
        vs.append(v[:share].T)
    turned = []
    for side in (np.hstack(us), np.hstack(vs)):
        left, _, right = np.linalg.svd(side, full_matrices=False)
        turned.append(left @ right)
    return turned[0] @ np.diag(np.concatenate(ss)) @ turned[1].T


def iso_c(taus: list[Matrix]) -> Matrix:
    u, s, v = np.linalg.svd(sum(taus), full_matrices=False)
    return u @ np.diag(np.full(len(s), s.mean())) @ v


def ace(taus: list[Matrix], eps: float = 1e-2, threshold: float = 0.3, k_frac: float = 0.3) -> Matrix:
    count, width = len(taus), taus[0].shape[1]
    squares = np.array([np.trace(tau.T @ tau) for tau in taus])
    logs = np.log(squares)
    apart = np.var(logs, ddof=1) / np.mean(logs) ** 2 > threshold
    top, sigma, plain = np.zeros_like(taus[0]), np.zeros((width, width)), []
    for tau in taus:
        d = tau - tau.mean(axis=0)
        c = d.T @ d
        divisor = np.trace(c) if apart else 1.0
        plain.append(c / divisor)
        own = (c + eps * np.eye(width)) / divisor
        top += d @ own
        sigma += own
    prior = np.mean(sum(plain), axis=0) / (squares.mean() if apart else 1.0)
    w = top @ np.linalg.inv(sigma + np.outer(np.ones(width), prior))
    if not apart:
        return w
    fused = w + sum(tau @ (c - sigma / count) for tau, c in zip(taus, plain, strict=True))
    u, s, v = np.linalg.svd(fused, full_matrices=False)
    k = int(len(s) * k_frac)
    return w + s[:k].mean() * u[:, :k] @ v[:k]


def actmat(taus: list[Matrix], rtol: float) -> Matrix:
    """The least-squares problem Σ ‖(W − τᵢ)τᵢᵀ‖² of least norm, solved as one system instead of by covariances.

    Its singular values are the roots of the eigenvalues of the covariances' sum.
    """
    stacked, targets = np.vstack(taus), np.hstack([tau @ tau.T for tau in taus])
    return np.linalg.lstsq(stacked, targets.T, rcond=rtol**0.5 or None)[0].T


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (7, 7)])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize(("name", "plain"), [("tsv_m", tsv_m), ("iso_c", iso_c)])
def test_equals_the_definition(name, plain, shape, count):
    base, parents = models(shape, count)
    expected = base.double() + 0.7 * torch.from_numpy(plain(taus_of(base, parents)))
    torch.testing.assert_close(merge(name, base, parents, scale=0.7), expected.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (7, 7)])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_actmat_equals_its_definition(shape, count):
    base, parents = models(shape, count)
    taus, found = taus_of(base, parents), []
    for rtol in (0.0, 0.01, 0.2, 0.9):
        expected = base.double() + 0.7 * torch.from_numpy(actmat(taus, rtol))
        found.append(merge("actmat", base, parents, scale=0.7, rtol=rtol))
        torch.testing.assert_close(found[-1], expected.float(), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(found[0], found[-1], atol=1e-3), "rtol has an effect"
    assert torch.equal(merge("actmat", base, parents), merge("actmat", base, parents, rtol=0.01)), "the default"


@pytest.mark.parametrize("shape", [(12, 8), (8, 12)])
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("sizes", [(1.0, 1.1, 0.9, 1.2, 0.8), (0.01, 0.3, 2.0, 0.1, 0.7)])
@pytest.mark.parametrize("eps", [1e-2, 0.3])
@pytest.mark.parametrize("k_frac", [0.3, 0.6])
def test_ace_equals_its_definition(shape, count, sizes, eps, k_frac):
    base, parents = models(shape, count, sizes)
    for threshold in (0.0, 0.3, 1e9):  # without the condition, the authors', never
        given = {"eps": eps, "k_frac": k_frac, "threshold": threshold}
        expected = base.double() + torch.from_numpy(ace(taus_of(base, parents), **given))
        torch.testing.assert_close(merge("ace", base, parents, **given), expected.float(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(9,), (3, 4, 2)])
def test_other_tensors_are_averaged(name, shape):
    base, parents = models(shape, 3)
    expected = base + 0.5 * torch.stack([parent - base for parent in parents]).mean(dim=0)
    torch.testing.assert_close(merge(name, base, parents, scale=0.5), expected, rtol=1e-6, atol=1e-6)


def test_tsv_m_of_one_model_is_that_model_and_of_orthogonal_ones_their_sum():
    base, (parent, *_) = models((8, 5), 1)
    torch.testing.assert_close(merge("tsv_m", base, [parent]), parent, rtol=0, atol=1e-6)
    zero, a, b = torch.zeros(4, 4), torch.zeros(4, 4), torch.zeros(4, 4)
    a[0, 1], a[1, 0], b[2, 2], b[3, 3] = 3.0, 2.0, 5.0, 1.0
    torch.testing.assert_close(merge("tsv_m", zero, [a, b]), a + b, rtol=0, atol=1e-6)


def test_directions_that_nobody_changes_stay():
    zero, a, b = torch.zeros(5, 4), torch.zeros(5, 4), torch.zeros(5, 4)
    a[0, 1], b[2, 3] = 3.0, 5.0
    for name in ("tsv_m", "actmat"):
        torch.testing.assert_close(merge(name, zero, [a, b]), a + b, rtol=0, atol=1e-6)
    out = merge("iso_c", zero, [a, b])
    assert out[0, 1].item() == pytest.approx(2.0)  # mean of 5, 3, 0, 0
    assert out[2, 3].item() == pytest.approx(2.0)
    assert int((out.abs() > 1e-6).sum()) == 2
    for name in ("tsv_m", "actmat"):
        torch.testing.assert_close(merge(name, zero, [a, a.clone()]), a, rtol=0, atol=1e-6)  # not twice
        torch.testing.assert_close(merge(name, zero, [a, torch.zeros(5, 4)]), a, rtol=0, atol=1e-6)
    whole = merge("ace", zero, [a, torch.zeros(5, 4)])
    torch.testing.assert_close(whole, merge("ace", zero, [a]), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_bits_are_equal_on_1_and_4_threads_and_with_a_memory(name):
    base, parents = models((300, 200), 3)
    one = merge(name, base, parents)
    torch.set_num_threads(4)
    try:
        assert torch.equal(merge(name, base, parents), one)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(1)
    memory = Memory()
    for _ in range(2):
        assert torch.equal(merge(name, base, parents, memory), one)
    assert len(memory._facts) == 1
    assert torch.equal(merge(name, base, parents, Memory(100)), one)
    if name == "ace":
        assert torch.equal(merge(name, base, parents, memory, eps=0.2), merge(name, base, parents, eps=0.2))


@pytest.mark.parametrize("name", NAMES)
def test_a_matrix_that_is_not_finite_is_refused(name):
    base, parents = models((4, 5), 2)
    parents[1][2, 2] = torch.nan
    with pytest.raises(CandidateError, match="an input tensor is not finite"):
        merge(name, base, parents)
