"""fANOVA of recorded genomes."""

import numpy as np
import pytest

from evosearch.search.optimizers._importance import fanova


def test_shares_follow_the_variance_and_sum_to_one() -> None:
    rng = np.random.default_rng(0)
    genomes = [{"big": float(a), "small": float(b), "idle": float(c)} for a, b, c in rng.random((120, 3))]
    found = fanova(genomes, [3 * one["big"] + one["small"] for one in genomes])
    assert next(iter(found)) == "big"
    assert sum(found.values()) == pytest.approx(1.0)
    assert found["big"] > 0.7  # 9 of 10 parts of the variance
    assert found["small"] > found["idle"]
    assert found == fanova(genomes, [3 * one["big"] + one["small"] for one in genomes]), "one seed, one forest"


def test_choices_and_counts_have_shares_and_constants_have_none() -> None:
    rng = np.random.default_rng(0)
    genomes = [
        {"choice": str(rng.choice(["a", "b", "c"])), "count": int(rng.integers(1, 9)), "flag": True, "fixed": 0.5}
        for _ in range(80)
    ]
    found = fanova(genomes, [float(one["choice"] == "b") for one in genomes])
    assert set(found) == {"choice", "count"}
    assert found["choice"] > 0.9
    assert fanova([{"fixed": 1.0}] * 3, [1.0, 2.0, 3.0]) == {}
