"""Optuna's Parzen estimator, vectorized for many kernels in many dimensions.

A long search on many workers has thousands of kernels, and the density of Gaussians takes most of the time of an ask of
`tpe`. With u a sample, m and s a kernel's centre and width in units of the dimension's range,

    Σ_d ((u_d - m_d) / s_d)²  =  u² · (1/s²) - 2 u · (m/s²) + Σ_d m²/s²

is two products of (samples × dimensions) with (dimensions × kernels), while Optuna loops over an array of all three.
Widths are at least a hundredth of the range, which bounds the cancellation error: log-densities agree to 1e-8.

Samples are bit-identical. Drawing them takes the logarithm of the normal distribution at thousands of numbers, for each
of which Optuna calls a Python function.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from optuna.samplers._tpe import _truncnorm
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator
from optuna.samplers._tpe.probability_distributions import _BatchedCategoricalDistributions

LOG_ROOT_2_PI = 0.5 * float(np.log(2.0 * np.pi))


class Parzen(_ParzenEstimator):
    """Mixture of one kernel for each trial and a wide one, over all dimensions together."""

    def log_pdf(self, samples_dict: dict[str, np.ndarray]) -> np.ndarray:
        """Return the log-density of each sample, (samples,)."""
        x = self._transform(samples_dict)
        mixture = self._mixture_distribution
        parts = np.log(mixture.weights)[np.newaxis].repeat(len(x), axis=0)  # (samples, kernels)
        smooth: list[tuple[np.ndarray, Any]] = []
        for column, kernels in zip(x.T, mixture.distributions, strict=True):
            if isinstance(kernels, _BatchedCategoricalDistributions):
                parts += np.log(kernels.weights.T[column.astype(np.int64)])
            elif kernels.step:
                parts += _on_a_grid(column, kernels)
            else:
                smooth.append((np.log(column) if kernels.is_log else column, kernels))
        if smooth:
            parts += _smooth(smooth)
        most = parts.max(axis=1, keepdims=True)
        most[np.isneginf(most)] = 0.0
        with np.errstate(divide="ignore"):
            found: np.ndarray = np.log(np.exp(parts - most).sum(axis=1)) + most[:, 0]
        return found


def _smooth(dimensions: list[tuple[np.ndarray, Any]]) -> np.ndarray:
    """Return the log of Π_d of truncated Gaussians, (samples, kernels)."""
    low = np.array([kernels.adapted_low for _, kernels in dimensions])
    span = np.array([kernels.adapted_high for _, kernels in dimensions]) - low
    u = (np.array([column for column, _ in dimensions]).T - low) / span  # (samples, dimensions)
    mean = (np.array([kernels.mu for _, kernels in dimensions]).T - low) / span  # (kernels, dimensions)
    width = np.array([kernels.sigma for _, kernels in dimensions]).T / span
    sharp = width**-2
    own = (mean**2 * sharp).sum(axis=1)
    squares = u**2 @ sharp.T - 2.0 * (u @ (mean * sharp).T) + own
    # Normalization of each kernel, over its mass within the bounds
    norm = _truncnorm._log_gauss_mass(-mean / width, (1.0 - mean) / width) + np.log(width * span) + LOG_ROOT_2_PI
    found: np.ndarray = -0.5 * squares - norm.sum(axis=1)
    return found


def _on_a_grid(column: np.ndarray, kernels: Any) -> np.ndarray:
    """Return the log of the mass around each sample of one dimension with steps, (samples, kernels)."""
    values, back = np.unique(column, return_inverse=True)
    edges = values[:, np.newaxis] + 0.5 * kernels.step * np.array([-1.0, 1.0])
    left, right = (np.log(edges) if kernels.is_log else edges).T[..., np.newaxis]
    at = _truncnorm._log_gauss_mass((left - kernels.mu) / kernels.sigma, (right - kernels.mu) / kernels.sigma)
    total = _truncnorm._log_gauss_mass(
        (kernels.adapted_low - kernels.mu) / kernels.sigma, (kernels.adapted_high - kernels.mu) / kernels.sigma
    )
    found: np.ndarray = (at - total)[back]
    return found


def _each(function: Callable[[float], float]) -> Callable[[np.ndarray], np.ndarray]:
    """Apply a function of the C library to each number of an array."""
    called: Any = np.frompyfunc(function, 1, 1)
    return lambda values: np.asarray(called(values), dtype=float)


_erf, _erfc, _log = _each(math.erf), _each(math.erfc), _each(math.log)
_optunas_log_ndtr = _truncnorm._log_ndtr


def log_ndtr(a: np.ndarray) -> np.ndarray:
    """Return ln Φ(a), bit-identical to Optuna's: the same functions of the C library, in the same order."""
    a = np.asarray(a, dtype=float)
    x = a / 2**0.5
    far, tail = ~(a > -20), a > 6  # far ones by a series; they are few
    left, right = ~far & (x < -1 / 2**0.5), ~tail & (x >= 1 / 2**0.5)
    middle = ~(far | left | right | tail)
    phi = np.ones_like(a)
    phi[left] = 0.5 * _erfc(-x[left])
    phi[middle] = 0.5 + 0.5 * _erf(x[middle])
    phi[right] = 1.0 - 0.5 * _erfc(x[right])
    found: np.ndarray = _log(phi)
    found[tail] = -0.5 * _erfc(x[tail])
    if far.any():
        found[far] = _optunas_log_ndtr(a[far])
    return found


_truncnorm._log_ndtr = log_ndtr
