"""Lineage from inner products: definitions, thresholds, and models whose relation is known."""

import math

import pytest
import torch

from evosearch.analysis.inner_products import Gram, change, cosine, cosine_to_base, gram, relative_change
from evosearch.analysis.lineage import LEAST_CHANGE, MOST_COSINE, Group, is_related, lineage

SHAPE = (40, 60)


def drawn(seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def grams(base: list[torch.Tensor], *models: list[torch.Tensor]) -> dict[str, tuple[Group, Gram]]:
    pairs = zip(base, *models, strict=True)
    return {
        f"w{index}": ("matrices", gram(theta, [change(each, theta) for each in others]))
        for index, (theta, *others) in enumerate(pairs)
    }


def test_figures_are_those_of_their_definitions() -> None:
    theta, one, other = drawn(0), drawn(1), drawn(2)
    found = gram(theta, [one - theta, other - theta])
    assert relative_change(found, 0) == pytest.approx(float((one - theta).norm() / theta.norm()), rel=1e-6)
    assert cosine_to_base(found, 1) == pytest.approx(
        float(torch.nn.functional.cosine_similarity(other.flatten(), theta.flatten(), dim=0)), abs=1e-6
    )
    between = torch.nn.functional.cosine_similarity((one - theta).flatten(), (other - theta).flatten(), dim=0)
    assert cosine(found, 0, 1) == pytest.approx(float(between), abs=1e-6)


def test_a_fine_tune_is_related_and_a_stranger_is_not() -> None:
    base = [drawn(seed) for seed in range(5)]
    tuned = [theta + drawn(10 + seed, 0.3) for seed, theta in enumerate(base)]
    stranger = [drawn(20 + seed) for seed in range(5)]
    near, far = lineage(grams(base, tuned, stranger))
    assert near.related
    assert near.relative["matrices"] == pytest.approx(0.3, abs=0.02)
    assert not far.related
    assert far.relative["matrices"] == pytest.approx(math.sqrt(2), abs=0.03)
    assert abs(far.cosine["matrices"] or 0.0) < 0.05
    assert not far.another_base


@pytest.mark.parametrize("scale", [0.1, 0.5, 2.0, 10.0])
def test_a_stranger_is_found_at_any_scale_of_its_weights(scale: float) -> None:
    (found,) = lineage(grams([drawn(0)], [drawn(1, scale)]))
    assert not found.related


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_a_fine_tune_that_only_changed_its_norm_is_related(scale: float) -> None:
    (found,) = lineage(grams([drawn(0)], [scale * drawn(0) + drawn(1, 0.1)]))
    assert found.related


def test_a_wrong_base_is_told_from_two_strangers() -> None:
    wrong, right = [drawn(0)], drawn(1)
    first, second = lineage(grams(wrong, [right + drawn(2, 0.1)], [right + drawn(3, 0.1)]))
    assert not first.related
    assert first.another_base
    assert second.another_base
    (one, _) = lineage(grams(wrong, [drawn(4)], [drawn(5)]))
    assert one.others[0] == pytest.approx(0.5, abs=0.05)
    assert not one.another_base


def test_norms_and_embeddings_decide_nothing() -> None:
    ones = torch.ones(60)
    figures = grams([drawn(0)], [drawn(0) + drawn(1, 0.1)])
    figures["norm"] = ("norms", gram(ones, [-2 * ones]))
    figures["embeddings"] = ("embeddings", gram(drawn(3), [drawn(4) - drawn(3)]))
    (found,) = lineage(figures)
    assert found.related
    assert found.relative["norms"] == pytest.approx(2.0)
    assert found.overall["embeddings"].relative > 1


def test_an_equal_model_has_no_change_and_zero_tensors_have_no_cosine() -> None:
    (found,) = lineage(grams([drawn(0), torch.zeros(SHAPE)], [drawn(0), torch.zeros(SHAPE)]))
    assert found.related
    assert found.relative["matrices"] == 0.0
    assert found.tensors["w1"].cosine is None
    assert lineage({}) == ()


def test_both_thresholds_must_be_passed() -> None:
    assert is_related(LEAST_CHANGE - 0.01, 0.0)
    assert is_related(5.0, MOST_COSINE + 0.01)
    assert not is_related(LEAST_CHANGE, MOST_COSINE)
    assert is_related(None, None)
