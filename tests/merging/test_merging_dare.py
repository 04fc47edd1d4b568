"""DARE: what the masks depend on, their distribution, and agreement with mergekit under equal masks."""

from collections.abc import Sequence
from dataclasses import replace

import mergekit.sparsify as mergekit_sparsify
import pytest
import torch
from mergekit.merge_methods import registry as mergekit_methods
from mergekit.merge_methods.base import TensorGroup
from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.merging import kernels, philox
from evosearch.merging.method_parameters import Origin, Parameters
from evosearch.merging.registry import method
from evosearch.recipe.checks import check
from evosearch.recipe.schema import Recipe

torch.set_num_threads(1)
BOTH = ("dare_linear", "dare_ties")
SHARED = {"normalize": False, "rescale": True, "lambda": 1.0, "sign_method": "magnitude"}


def parameters(
    weights: Sequence[float], densities: Sequence[float], *, seed: int = 0, tensor: str = "t", **shared: object
) -> Parameters:
    if "lam" in shared:
        shared["lambda"] = shared.pop("lam")
    assert shared.keys() <= SHARED.keys()
    parents = tuple(Origin(f"{index + 1:064x}", tensor) for index in range(len(weights)))
    own = {"weight": tuple(weights), "density": tuple(densities), "trim": (1.0,) * len(weights)}
    return Parameters(SHARED | shared, own, seed=seed, base=Origin("0" * 64, tensor), parents=parents)  # type: ignore[arg-type]


def models(shape: tuple[int, ...] = (40, 30), count: int = 3) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(2)
    base = torch.randn(shape, generator=generator)
    return base, [base + 0.1 * torch.randn(shape, generator=generator) for _ in range(count)]


def mask(p: Parameters, i: int, shape: torch.Size) -> Tensor:
    key = philox.key_of(p.seed, p.parents[i].content_sha256, p.parents[i].tensor)
    return philox.kept(key, p.each("density")[i], 0, shape.numel()).view(shape)


def test_the_formula():
    base, parents = models()
    p = parameters([0.5, -0.2, 1.0], [0.3, 0.6, 1.0], lam=0.7)
    kept = [mask(p, i, base.shape) * (parent - base) for i, parent in enumerate(parents)]
    plain = base + 0.7 * (0.5 * kept[0] / 0.3 - 0.2 * kept[1] / 0.6 + kept[2])
    torch.testing.assert_close(method("dare_linear").merge(base, parents, p), plain, rtol=1e-6, atol=1e-6)
    bare = replace(p, shared={**p.shared, "rescale": False})
    plain = base + 0.7 * (0.5 * kept[0] - 0.2 * kept[1] + kept[2])
    torch.testing.assert_close(method("dare_linear").merge(base, parents, bare), plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("shape", [(40, 30), (17,)])
def test_mergekit_agrees_under_the_same_masks(name, normalize, shape, monkeypatch):
    base, parents = models(shape)
    weights, densities = [0.5, 0.9, 0.7], [0.3, 0.6, 1.0]
    for rescale, theirs in (("l1", True), (False, False)):
        p = parameters(weights, densities, rescale=rescale, normalize=normalize, lam=0.8)
        drawn = iter([mask(p, 0, base.shape), mask(p, 1, base.shape)])  # none is drawn at density 1
        monkeypatch.setattr(mergekit_sparsify.torch, "bernoulli", lambda probability, it=drawn: next(it).float())
        oracle = mergekit_methods.get(name).merge_group(
            TensorGroup.from_tensors([base, *parents], base_index=0),
            weight=dict(enumerate([None, *weights])),
            density=dict(enumerate([None, *densities])),
            normalize=normalize,
            rescale=theirs,
            int8_mask=False,
            **{"lambda": 0.8},
        )
        torch.testing.assert_close(method(name).merge(base, parents, p), oracle, rtol=1e-6, atol=1e-6)


def test_masks_of_many_seeds_are_distributed_as_mergekits():
    base, (parent,) = torch.zeros(2000), [torch.randn(2000, generator=torch.Generator().manual_seed(3))]
    ours, theirs = [], []
    torch.manual_seed(0)
    for seed in range(200):
        p = parameters([1.0], [0.3], seed=seed, rescale="l1")
        ours.append(method("dare_linear").merge(base, [parent], p))
        theirs.append(
            mergekit_sparsify.sparsify(
                parent,
                0.3,
                mergekit_sparsify.SparsificationMethod.random,
                rescale_norm=mergekit_sparsify.RescaleNorm.l1,
            )
        )
    for samples in (torch.stack(ours), torch.stack(theirs)):
        kept = (samples != 0).float().mean(dim=1)  # (seeds,)
        assert kept.mean().item() == pytest.approx(0.3, abs=4 * (0.21 / 2000 / 200) ** 0.5)
        assert kept.std().item() == pytest.approx((0.21 / 2000) ** 0.5, rel=0.2)
        torch.testing.assert_close(samples.abs().sum(dim=1), parent.abs().sum().expand(200), rtol=1e-4, atol=0)
        assert (samples.mean(dim=0) - parent).norm() / parent.norm() < 0.15  # √(0.7 / 0.3 / 200) = 0.11 expected


def test_rescaling_by_density_keeps_the_mean():
    base, parent = torch.zeros(500), torch.randn(500, generator=torch.Generator().manual_seed(3))
    total = torch.zeros(500, dtype=torch.float64)
    for seed in range(400):
        total += method("dare_linear").merge(base, [parent], parameters([1.0], [0.5], seed=seed)).double()
    assert (total / 400 - parent).norm() / parent.norm() < 0.07  # √(1 / 400) = 0.05 expected


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("rescale", [True, "l1", False])
def test_neither_chunks_nor_order_nor_the_others_move_a_mask(name, rescale, monkeypatch):
    base, parents = models()
    p = parameters([0.5, 0.9, 0.7], [0.3, 0.6, 0.8], rescale=rescale)
    out = method(name).merge(base, parents, p)
    monkeypatch.setattr(kernels, "CHUNK", {"cpu": 24})
    assert torch.equal(method(name).merge(base, parents, p), out)
    own = {key: values[::-1] for key, values in p.own.items()}
    backwards = method(name).merge(base, parents[::-1], replace(p, own=own, parents=p.parents[::-1]))
    torch.testing.assert_close(backwards, out, rtol=0, atol=1e-6)
    moved = parameters([0.5, 0.0, 0.0], [0.3, 0.1, 0.2], rescale=rescale)
    alone = parameters([0.5], [0.3], rescale=rescale)
    assert torch.equal(method(name).merge(base, parents, moved), method(name).merge(base, parents[:1], alone))


@pytest.mark.parametrize("name", BOTH)
def test_seed_content_and_tensor_each_draw_another_mask(name):
    base, parents = models(count=1)
    p = parameters([1.0], [0.5])
    others = [replace(p, seed=1), replace(p, parents=(Origin("f" * 64, "t"),)), parameters([1.0], [0.5], tensor="u")]
    outs = [method(name).merge(base, parents, each) for each in (p, *others)]
    assert all(not torch.equal(outs[i], outs[j]) for i in range(4) for j in range(i))
    assert torch.equal(method(name).merge(base, parents, replace(p, base=Origin("e" * 64, "t"))), outs[0])


def test_density_one_is_task_arithmetic():
    base, parents = models()
    p = parameters([0.5, 0.9, 0.7], [1.0] * 3, rescale="l1")
    plain = Parameters({"normalize": False, "lambda": 1.0}, {"weight": p.own["weight"]})
    assert torch.equal(
        method("dare_linear").merge(base, parents, p), method("task_arithmetic").merge(base, parents, plain)
    )


def test_a_mask_that_leaves_nothing_leaves_the_base():
    base, parents = models((3,), count=1)
    for rescale in (True, "l1", False):
        p = parameters([1.0], [1e-9], rescale=rescale)
        assert torch.equal(method("dare_linear").merge(base, parents, p), base)


def test_weights_that_cancel_are_refused_under_normalize():
    base, parents = models(count=2)
    with pytest.raises(
        CandidateError, match=r"dare_linear: weights \[1.0, -1.0\] sum to 0, which normalize divides by"
    ):
        method("dare_linear").merge(base, parents, parameters([1.0, -1.0], [0.5, 0.5], normalize=True))


@pytest.mark.parametrize("given", [1, 0, "l2", "true"])
def test_rescale_is_true_false_or_l1(given):
    from evosearch.errors import RecipeError
    from evosearch.merging.registry import specs

    def recipe(rescale: object) -> Recipe:
        models = [{"model": "a", "parameters": {"weight": 1.0}}]
        return Recipe.model_validate(
            {"merge_method": "dare_ties", "base_model": "b", "models": models, "parameters": {"rescale": rescale}}
        )

    for allowed in (True, "l1", False):
        check(recipe(allowed), specs())
    with pytest.raises(RecipeError, match=r"recipe.parameters.rescale: got .*One of true, l1, false"):
        check(recipe(given), specs())


@pytest.mark.parametrize("scale", [None, 0.5, -1.0])
def test_passthrough_is_mergekits(scale):
    base, _ = models()
    oracle = mergekit_methods.get("passthrough").merge_group(TensorGroup.from_tensors([base]), scale={0: scale})
    ours = Parameters({}, {"scale": (1.0 if scale is None else scale,)})
    assert torch.equal(method("passthrough").merge(None, [base], ours), oracle)


@pytest.mark.parametrize("shares", [(0.5, 0.01, 1.0), (0.2, 0.9, 0.35)])
@pytest.mark.parametrize("rescale", [True, "l1", False])
@pytest.mark.parametrize("sign_method", ["magnitude", "count", "count_strict"])
def test_dare_ties_with_trim_equals_a_plain_implementation(shares, rescale, sign_method, monkeypatch):
    """Drop at random, keep the largest share of what is left, elect, merge: one entry at a time."""
    monkeypatch.setattr(kernels, "CHUNK", {"cpu": 64})
    base, parents = models((20, 13))
    parents = [base + ((parent - base) * 40).round() / 40 for parent in parents]  # with equal magnitudes and zeros
    weights, densities = [0.5, 1.0, 0.75], [0.6, 0.3, 1.0]
    p = parameters(weights, densities, rescale=rescale, sign_method=sign_method, normalize=True, lam=0.9)
    p = replace(p, own={**p.own, "trim": shares})
    deltas = []
    for i, (parent, share) in enumerate(zip(parents, shares, strict=True)):
        tau = (parent - base).flatten()
        thinned = tau * mask(p, i, base.shape).flatten()
        factor = {True: 1 / densities[i], False: 1.0}.get(rescale) or (tau.abs().sum() / thinned.abs().sum()).item()
        left = thinned.tolist()
        order = sorted((j for j, x in enumerate(left) if x), key=lambda j, left=left: (-abs(left[j]), j))
        stays = set(order[: max(1, int(share * len(order)))])
        deltas.append([weights[i] * factor * x if j in stays else 0.0 for j, x in enumerate(left)])
    expected = []
    for column in zip(*deltas, strict=True):
        vote = sum(x if sign_method == "magnitude" else (x > 0) - (x < 0) for x in column)
        sign = 0 if vote == 0 and sign_method == "count_strict" else 1 if vote >= 0 else -1
        agreeing = [(x, w) for x, w in zip(column, weights, strict=True) if x * sign > 0]
        expected.append(0.9 * sum(x for x, _ in agreeing) / (sum(w for _, w in agreeing) or 1.0))
    out = method("dare_ties").merge(base, parents, p)
    torch.testing.assert_close(out, base + torch.tensor(expected).view(base.shape), rtol=1e-6, atol=1e-6)


def test_a_trim_of_1_trims_nothing_and_one_entry_stays():
    base, parents = models((20, 13), 1)
    p = parameters([1.0], [0.4])
    one = method("dare_ties").merge(base, parents, replace(p, own={**p.own, "trim": (1e-9,)}))
    assert int((one != base).sum()) == 1
    whole = method("dare_ties").merge(base, parents, p)
    assert torch.equal(whole, method("dare_linear").merge(base, parents, p))
