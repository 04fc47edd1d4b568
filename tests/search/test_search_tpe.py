"""tpe's densities by matrix products agree with Optuna's."""

from collections.abc import Mapping

import numpy as np
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.samplers._tpe import _truncnorm
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator

from evosearch.search.optimizers._parzen import Parzen, log_ndtr

Space = Mapping[str, BaseDistribution]
FLOATS: Space = {f"x{i}": FloatDistribution(0.0, 1.5) for i in range(60)}
FAR: Space = {"far": FloatDistribution(1e6, 1e6 + 1e-3), "wide": FloatDistribution(-1e9, 1e9)}
EVERY: Space = {
    "float": FloatDistribution(-1.0, 2.0),
    "log": FloatDistribution(1e-6, 1.0, log=True),
    "steps": FloatDistribution(0.0, 1.0, step=0.25),
    "count": IntDistribution(1, 9),
    "large": IntDistribution(1, 1000, log=True),
    "kind": CategoricalDistribution(("a", "b", "c")),
}
WHOLE: Space = {name: EVERY[name] for name in ("count", "large", "kind")}


def drawn(space: Space, count: int, seed: int) -> dict[str, np.ndarray]:
    """Values of the estimator: spread over the range, at both ends, and some of them twice."""
    draw, found = np.random.default_rng(seed), {}
    for name, distribution in space.items():
        if isinstance(distribution, CategoricalDistribution):
            values = draw.integers(len(distribution.choices), size=count).astype(float)
        else:
            assert isinstance(distribution, FloatDistribution | IntDistribution)
            low, high = distribution.low, distribution.high
            part = draw.beta(0.7, 3.0, size=count)
            values = low * (high / low) ** part if distribution.log else low + (high - low) * part
            values[:2] = low, high
            if distribution.step is not None:
                values = low + np.round((values - low) / distribution.step) * distribution.step
            values = np.clip(values, low, high)
        values[count // 2 : count // 2 + 3] = values[:3]
        found[name] = values
    return found


@pytest.mark.parametrize("trials", [0, 1, 7, 800])
@pytest.mark.parametrize("space", [FLOATS, FAR, EVERY, WHOLE], ids=["floats", "far", "every", "whole"])
def test_densities_are_optunas(space: Space, trials: int) -> None:
    parameters = TPESampler(multivariate=True)._parzen_estimator_parameters
    observed = drawn(space, trials, 1) if trials > 5 else {n: v[:trials] for n, v in drawn(space, 9, 1).items()}

    def made(kind: type[_ParzenEstimator]) -> _ParzenEstimator:
        return kind({name: values.copy() for name, values in observed.items()}, dict(space), parameters)

    ours, theirs = made(Parzen), made(_ParzenEstimator)
    samples = theirs.sample(np.random.RandomState(3), 40)
    assert {n: v.tolist() for n, v in ours.sample(np.random.RandomState(3), 40).items()} == {
        name: values.tolist() for name, values in samples.items()
    }
    for points in (samples, drawn(space, 40, 2)):
        found, expected = ours.log_pdf(points), theirs.log_pdf(points)
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


def test_the_normal_distribution_is_optunas_to_the_bit() -> None:
    draw = np.random.default_rng(4)
    around = np.array([-20.0, -1.0, 0.0, 1.0, 6.0])
    points = np.concatenate([draw.uniform(-45, 45, 4000), draw.normal(size=4000), around])
    points = np.concatenate([points, np.nextafter(around, -np.inf), np.nextafter(around, np.inf), -points])
    expected = np.array([_truncnorm._log_ndtr_single(float(point)) for point in points])
    np.testing.assert_array_equal(log_ndtr(points), expected)
    assert log_ndtr(points[:6].reshape(2, 3)).shape == (2, 3)
    assert log_ndtr(points[:0]).shape == (0,)
