"""Methods compared with mergekit's, tensor by tensor in float32, over shapes and parameter values."""

from typing import Any

import mergekit.sparsify as mergekit_sparsify
import pytest
import torch
from mergekit.merge_methods import registry as mergekit_methods
from mergekit.merge_methods.base import PerInputValues, TensorGroup
from torch import Tensor

from evosearch.merging import philox
from evosearch.merging.method_parameters import Origin, Parameters
from evosearch.merging.registry import method, specs

torch.set_num_threads(1)
SHAPES = [(40, 30), (17,), (6, 5, 4)]
CLOSE = 2.0**-22  # two units in the last place of numbers near 1, the largest in these tensors being below 8


def models(shape: tuple[int, ...], count: int = 3, spread: float = 0.3, seed: int = 2) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    return base, [base + spread * torch.randn(shape, generator=generator) for _ in range(count)]


def ours(name: str, base: Tensor | None, parents: list[Tensor], **given: Any) -> Tensor:
    """Merge with parameters by name: lists are per parent, scalars shared, others default."""
    spec = specs()[name]
    assert given.keys() <= spec.parameters.keys()
    shared, own = {}, {}
    for key, param in spec.parameters.items():
        value = given.get(key, param.default)
        if param.per_model:
            own[key] = tuple(value) if isinstance(value, list) else (value,) * len(parents)
        else:
            shared[key] = value
    return method(name).merge(base, parents, Parameters(shared, own))


def oracle(name: str, base: Tensor | None, parents: list[Tensor], **given: Any) -> Tensor:
    """Merge by mergekit; lists are per parent."""
    form = specs()[name].mergekit
    assert form is not None
    tensors = [one.clone() for one in ([] if base is None else [base]) + parents]
    first = 0 if base is None else 1  # the base is input 0
    own = {k: PerInputValues(list(enumerate(v, start=first))) for k, v in given.items() if isinstance(v, list)}
    group = TensorGroup.from_tensors(tensors, base_index=None if base is None else 0)
    merged: Tensor = mergekit_methods.get(form.name).merge_group(group, **{**given, **own})
    return merged


def assert_same(name: str, base: Tensor | None, parents: list[Tensor], atol: float = CLOSE, **given: Any) -> None:
    torch.testing.assert_close(
        ours(name, base, parents, **given), oracle(name, base, parents, **given), rtol=atol, atol=atol
    )


# --- methods on the sphere ---


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("weights", [[0.5, 0.9], [1.0, 0.0], [-0.2, 0.9]])
@pytest.mark.parametrize(("flatten", "row_wise"), [(True, False), (False, False), (False, True)])
def test_nuslerp(shape, with_base, weights, flatten, row_wise):
    base, parents = models(shape, 2)
    switches = {"nuslerp_flatten": flatten, "nuslerp_row_wise": row_wise}
    assert_same("nuslerp", base if with_base else None, parents, 4 * CLOSE, weight=weights, **switches)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("weights", [[0.5, 0.9, 0.7], [1.0, 0.0, 0.2], [-0.2, 0.9, 0.4]])
@pytest.mark.parametrize("normalize", [True, False])
def test_multislerp(shape, with_base, weights, normalize):
    base, parents = models(shape)
    given = {"weight": weights, "normalize_weights": normalize, "eps": 1e-8}
    assert_same("multislerp", base if with_base else None, parents, 4 * CLOSE, **given)


def test_multislerp_of_two_models_that_cancel_each_other():
    _, (parent, *_) = models((40, 30))
    assert_same("multislerp", None, [parent, -parent], weight=[0.5, 0.5], normalize_weights=True, eps=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("spread", [0.01, 0.3, 3.0])
@pytest.mark.parametrize("max_iter", [1, 10])
def test_karcher(shape, count, spread, max_iter):
    _, parents = models(shape, count, spread)
    name, given = "karcher", {"max_iter": max_iter, "tol": 1e-5}
    assert_same(name, None, parents, 2e-5, **given)  # tol: the oracle's rounding may decide on another step


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("filter_wise", [False, True])
def test_model_stock(shape, count, filter_wise):
    base, parents = models(shape, count)
    together = torch.randn(shape, generator=torch.Generator().manual_seed(9))
    parents = [parent + 0.4 * together for parent in parents]
    assert_same("model_stock", base, parents, 4 * CLOSE, filter_wise=filter_wise)


# --- breadcrumbs ---


@pytest.mark.parametrize("name", ["breadcrumbs", "breadcrumbs_ties"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("densities", [[0.3, 0.6, 1.0], [0.99, 0.9, 0.5]])
@pytest.mark.parametrize("gammas", [[0.1, 0.01, 0.2], [0.0, 0.5, 0.3]])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
def test_breadcrumbs(name, shape, densities, gammas, normalize, rescale):
    base, parents = models(shape)
    given = {"weight": [0.5, 0.9, -0.7], "density": densities, "gamma": gammas, "normalize": normalize, "lambda": 0.8}
    found = ours(name, base, parents, **given, rescale="l1" if rescale else False)
    theirs = oracle(name, base, parents, **given, rescale=rescale, int8_mask=False)
    torch.testing.assert_close(found, theirs, rtol=4 * CLOSE, atol=4 * CLOSE)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("densities", [[0.3, 0.6, 1.0], [0.99, 0.01, 0.5]])
@pytest.mark.parametrize("weights", [[0.5, 0.9, 0.7], [0.5, 0.9, -0.7]])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
def test_ties(shape, densities, weights, normalize, rescale):
    base, parents = models(shape)
    given = {"weight": weights, "density": densities, "normalize": normalize, "lambda": 0.8}
    found = ours("ties", base, parents, **given, rescale="l1" if rescale else False)
    theirs = oracle("ties", base, parents, **given, rescale=rescale, int8_mask=False)
    torch.testing.assert_close(found, theirs, rtol=4 * CLOSE, atol=4 * CLOSE)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weights", [[0.5, 0.9, 0.7], [0.5, 0.9, -0.7], [0.0, 1.0, 0.0]])
@pytest.mark.parametrize("normalize", [True, False])
def test_task_arithmetic(shape, weights, normalize):
    base, parents = models(shape)
    given = {"weight": weights, "normalize": normalize, "lambda": 1.7}
    theirs = oracle("task_arithmetic", base, parents, **given, density=[1.0] * 3, rescale=False, int8_mask=False)
    torch.testing.assert_close(ours("task_arithmetic", base, parents, **given), theirs, rtol=4 * CLOSE, atol=4 * CLOSE)


# --- della ---


@pytest.mark.parametrize("name", ["della", "della_linear"])
@pytest.mark.parametrize("shape", [(40, 30), (17,)])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rescale", ["l1", False])
def test_della_under_the_same_masks(name, shape, normalize, rescale, monkeypatch):
    """The oracle computes the probabilities; its draws are replaced by our lanes."""
    base, parents = models(shape)
    origins = tuple(Origin(f"{index:064x}", "t") for index in range(4))
    own = {"weight": (0.5, 0.9, 0.7), "density": (0.3, 0.6, 1.0), "epsilon": (0.2, 0.1, 0.15)}
    shared = {"normalize": normalize, "rescale": rescale, "lambda": 0.8}
    p = Parameters({**shared, "sign_method": "magnitude"}, own, seed=3, base=origins[0], parents=origins[1:])
    drawn = iter(origins[1:3])  # none is drawn at density 1

    def draw(probabilities: Tensor) -> Tensor:
        key = philox.key_of(3, next(drawn).content_sha256, "t")
        lanes = philox.lanes(key, 0, probabilities.numel()).view_as(probabilities)
        return (lanes < probabilities.double() * 2**32).float()

    monkeypatch.setattr(mergekit_sparsify.torch, "bernoulli", draw)
    given = {key: list(values) for key, values in own.items()}
    theirs = oracle(name, base, parents, **given, **(shared | {"rescale": rescale == "l1"}), int8_mask=False)
    found = method(name).merge(base, parents, p)
    torch.testing.assert_close(found, theirs, rtol=4 * CLOSE, atol=4 * CLOSE)


# --- methods by entry ---


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("select_topk", [0.1, 0.5, 1.0])
def test_sce(shape, count, select_topk):
    base, parents = models(shape, count)
    assert_same("sce", base, parents, 4 * CLOSE, select_topk=select_topk)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("t", [0.0, 1e-4, 0.1, 10.0])
def test_nearswap(shape, t):
    base, parents = models(shape, 1)
    assert_same("nearswap", base, parents, t=t)


@pytest.mark.parametrize("shape", [*SHAPES, (300, 200)])
@pytest.mark.parametrize("spread", [0.1, 0.5])
def test_arcee_fusion(shape, spread):
    base, parents = models(shape, 1, spread)
    assert_same("arcee_fusion", base, parents)
    changed = (ours("arcee_fusion", base, parents) != base).float().mean().item()
    assert changed < 0.5
    assert changed > 0 or len(shape) == 1  # one row of 17 entries has none far above the quartiles


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("epsilon", [0.0, 1e-5, 0.3])
def test_ram_and_ramplus(shape, count, epsilon):
    base, parents = models(shape, count)
    sparse = torch.Generator().manual_seed(7)
    parents = [torch.where(torch.rand(shape, generator=sparse) < 0.4, one, base) for one in parents]
    assert_same("ram", base, parents, epsilon=epsilon)
    for r, alpha in ((0.1, 0.2), (0.5, 10.0), (0.3, 0.7)):
        assert_same("ramplus", base, parents, 2 * CLOSE, epsilon=epsilon, r=r, alpha=alpha)
