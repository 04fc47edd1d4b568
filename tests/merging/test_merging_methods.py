"""Formulas of the merge methods, against hand-computed numbers, plain reference code and mergekit."""

import math

import pytest
import torch
from mergekit.merge_methods.slerp import slerp as mergekit_slerp
from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.merging import kernels
from evosearch.merging.kernels import dot
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import method, specs

torch.set_num_threads(1)


def run(name: str, base: list[float] | Tensor | None, *parents: list[float] | Tensor, **given: object) -> Tensor:
    """Merge with parameters by name: lists are per parent, scalars shared, others default; `lam` is `lambda`."""
    if "lam" in given:
        given["lambda"] = given.pop("lam")
    spec = specs()[name]
    shared, own = {}, {}
    for key, param in spec.parameters.items():
        value = given.get(key, param.default)
        if param.per_model:
            own[key] = tuple(value) if isinstance(value, list) else (value,) * len(parents)
        else:
            shared[key] = value
    assert given.keys() <= spec.parameters.keys()
    tensors = [torch.as_tensor(parent) for parent in parents]
    return method(name).merge(None if base is None else torch.as_tensor(base), tensors, Parameters(shared, own))


def test_linear():
    a, b = [1.0, 2.0, -4.0], [3.0, 0.0, 4.0]
    assert run("linear", None, a, b, weight=[1.0, 3.0]).tolist() == [2.5, 0.5, 2.0]
    assert run("linear", None, a, b, weight=[1.0, 3.0], normalize=False).tolist() == [10.0, 2.0, 8.0]
    assert run("linear", None, a, weight=[1.0]).tolist() == a


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [1.0, -1.0 + 1e-9]])
def test_linear_cannot_divide_by_nothing(weights):
    with pytest.raises(CandidateError, match=r"materialize: linear: weights .* sum to"):
        run("linear", None, [1.0], [2.0], weight=weights)
    assert run("linear", None, [1.0], [1.0], weight=[1e-9, 1e-9]).tolist() == [1.0]  # small is not nothing


def test_task_arithmetic():
    base, a, b = [1.0, 1.0], [2.0, 1.0], [1.0, 3.0]
    assert run("task_arithmetic", base, a, b, weight=[0.5, -1.0]).tolist() == [1.5, -1.0]
    assert run("task_arithmetic", base, a, b, weight=[0.5, 0.5], lam=2.0).tolist() == [2.0, 3.0]
    assert run("task_arithmetic", base, a, b, weight=[1.0, 3.0], normalize=True).tolist() == [1.25, 2.5]
    with pytest.raises(CandidateError, match="task_arithmetic: weights"):
        run("task_arithmetic", base, a, b, weight=[1.0, -1.0], normalize=True)


def test_slerp_at_its_ends_and_on_the_arc():
    a, b = [1.0, 0.0], [0.0, 1.0]
    assert run("slerp", a, b, t=0.0).tolist() == a
    assert run("slerp", a, b, t=1.0).tolist() == pytest.approx(b)
    assert run("slerp", a, b, t=0.5).tolist() == pytest.approx([math.sqrt(0.5)] * 2)
    assert run("slerp", [2.0, 0.0], [0.0, 4.0], t=1 / 3).tolist() == pytest.approx([2 * math.cos(math.pi / 6), 4 * 0.5])


def test_slerp_takes_the_chord_where_ends_are_nearly_parallel_or_opposite():
    near = [1.0, 0.01]
    assert run("slerp", [1.0, 0.0], near, t=0.25).tolist() == pytest.approx([1.0, 0.0025])
    assert run("slerp", [1.0, 0.0], [-1.0, 0.0], t=0.25).tolist() == pytest.approx([0.5, 0.0])


@pytest.mark.parametrize("cosine", [0.9994, 0.9996, -0.9994, -0.9996])
def test_slerp_switches_to_the_chord_where_mergekit_does(cosine):
    generator = torch.Generator().manual_seed(4)
    q = torch.linalg.qr(torch.randn(60, 2, generator=generator, dtype=torch.float64)).Q  # (60, 2) orthonormal
    a, b = q[:, 0] * 2, 3 * (cosine * q[:, 0] + math.sqrt(1 - cosine**2) * q[:, 1])
    theirs = mergekit_slerp(torch.tensor([0.25]), a.float()[None], b.float()[None])[0]
    chord = 0.75 * a + 0.25 * b
    angle = math.acos(cosine)
    arc = math.sin(0.75 * angle) / math.sin(angle) * a + math.sin(0.25 * angle) / math.sin(angle) * b
    expected, other = (chord, arc) if abs(cosine) > 0.9995 else (arc, chord)
    out, atol = run("slerp", a.float(), b.float(), t=0.25), 4e-6 if cosine > 0 else 1e-3  # 1 / sinΩ is 29 near -1
    torch.testing.assert_close(out, theirs, rtol=0, atol=atol)
    torch.testing.assert_close(out, expected.float(), rtol=0, atol=atol)
    assert (out - other).abs().max() > 5 * atol


def test_slerp_matches_norms_on_request():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, generator=generator), 3 * torch.randn(50, generator=generator)
    for t in (0.0, 0.3, 1.0):
        kept, matched = run("slerp", a, b, t=t), run("slerp", a, b, t=t, norm="match")
        assert matched.norm().item() == pytest.approx((1 - t) * a.norm().item() + t * b.norm().item(), rel=1e-5)
        assert torch.nn.functional.cosine_similarity(kept, matched, dim=0).item() == pytest.approx(1.0, abs=1e-6)


def test_slerp_of_zeros():
    zero = [0.0, 0.0]
    assert run("slerp", zero, zero, t=0.3, norm="match").tolist() == zero
    assert run("slerp", zero, [1.0, 0.0], t=1.0).tolist() == [1.0, 0.0]


def plain_ties(
    base: Tensor, parents: list[Tensor], weights: list[float], density: float, normalize: bool, sign_method: str
) -> Tensor:
    """Reference implementation of TIES, one entry at a time."""
    n, trimmed = base.numel(), []
    for parent, w in zip(parents, weights, strict=True):
        tau = (parent - base).tolist()
        kept = sorted(range(n), key=lambda i, tau=tau: (-abs(tau[i]), i))[: max(1, int(density * n))]
        trimmed.append([w * tau[i] if i in kept else 0.0 for i in range(n)])
    out = []
    for i in range(n):
        column = [delta[i] for delta in trimmed]
        vote = sum(x if sign_method == "magnitude" else (x > 0) - (x < 0) for x in column)
        sign = 0 if vote == 0 and sign_method == "count_strict" else 1 if vote >= 0 else -1
        agreeing = [(x, w) for x, w in zip(column, weights, strict=True) if x * sign > 0]
        total = sum(w for _, w in agreeing) if normalize else 1.0
        out.append(base[i].item() + sum(x for x, _ in agreeing) / (total or 1.0))
    return torch.tensor(out)


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("sign_method", ["magnitude", "count", "count_strict"])
@pytest.mark.parametrize("coarse", [False, True])
def test_ties_equals_a_plain_implementation(density, normalize, sign_method, coarse, monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK", {"cpu": 64})
    generator = torch.Generator().manual_seed(3)
    base = torch.zeros(200)
    parents = [torch.randn(200, generator=generator) for _ in range(3)]
    if coarse:  # many entries of equal magnitude, so that order of index decides
        parents = [(2 * parent).round() / 2 for parent in parents]
    weights = [0.5, 1.0, 0.75]
    expected = plain_ties(base, parents, weights, density, normalize, sign_method)
    out = run("ties", base, *parents, weight=weights, density=density, normalize=normalize, sign_method=sign_method)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


def test_ties_keeps_at_least_one_entry_and_of_equals_the_first():
    assert run("ties", [0.0] * 4, [1.0, -1.0, 1.0, 1.0], weight=1.0, density=0.01).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert run("ties", [0.0] * 4, [1.0, -1.0, 2.0, 1.0], weight=1.0, density=0.5).tolist() == [1.0, 0.0, 2.0, 0.0]


def test_ties_elects_plus_where_the_vote_is_even_and_applies_lambda():
    out = run("ties", [0.0, 0.0], [1.0, 2.0], [-1.0, 2.0], weight=1.0, lam=0.5)
    assert out.tolist() == [0.5, 1.0]
    even = [1.0, 2.0, -3.0], [-1.5, 2.0, 0.0]
    assert run("ties", [0.0] * 3, *even, weight=1.0, sign_method="count").tolist() == [1.0, 2.0, -3.0]
    assert run("ties", [0.0] * 3, *even, weight=1.0, sign_method="count_strict").tolist() == [0.0, 2.0, -3.0]


def test_ties_rescales_what_is_left_to_the_l1_norm():
    out = run("ties", [0.0] * 4, [4.0, -3.0, 2.0, 1.0], weight=1.0, density=0.5, rescale="l1")
    assert out.tolist() == pytest.approx([4 * 10 / 7, -3 * 10 / 7, 0.0, 0.0])


def test_ties_density_of_each_parent_is_its_own():
    out = run("ties", [0.0] * 4, [4.0, 3.0, 2.0, 1.0], [1.0, 1.0, 1.0, 5.0], weight=1.0, density=[0.5, 0.25])
    assert out.tolist() == [4.0, 3.0, 0.0, 5.0]


def test_dot_is_exact_to_float64_on_any_number_of_threads():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(70_000, generator=generator), torch.randn(70_000, generator=generator)
    one = dot(x, y)
    torch.set_num_threads(2)
    try:
        assert dot(x, y) == one
    finally:
        torch.set_num_threads(1)
    assert one == pytest.approx((x.double() * y.double()).sum().item(), abs=1e-4)
    assert math.isnan(dot(torch.tensor([math.inf]), torch.ones(1)))


def test_passthrough():
    assert run("passthrough", None, [1.0, -2.0]).tolist() == [1.0, -2.0]
    assert run("passthrough", None, [1.0, -2.0], scale=0.5).tolist() == [0.5, -1.0]


# --- methods on the sphere ---


@pytest.mark.parametrize(
    ("name", "divisor"), [("nuslerp", "divides"), ("multislerp", "normalize_weights"), ("karcher", "divided by")]
)
def test_weights_that_cancel_are_refused_on_the_sphere(name, divisor):
    with pytest.raises(CandidateError, match=rf"{name}: weights \[1.0, -1.0\] sum to 0.*{divisor}"):
        run(name, None, [1.0, 0.0], [0.0, 1.0], weight=[1.0, -1.0])


def test_nuslerp_on_the_arc_by_rows_and_columns():
    a, b = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 4.0], [0.0, 3.0]])
    root = math.sqrt(0.5)
    by_row = run("nuslerp", None, a, b, weight=1.0, nuslerp_flatten=False)
    torch.testing.assert_close(by_row, torch.tensor([[2 * root, 4 * root], [0.0, 2.0]]))  # the second row is parallel
    by_column = run("nuslerp", None, a.t(), b.t(), weight=1.0, nuslerp_flatten=False, nuslerp_row_wise=True)
    torch.testing.assert_close(by_column, by_row.t())
    with_base = run("nuslerp", torch.ones(2, 2), a + 1, b + 1, weight=1.0, nuslerp_flatten=False)
    torch.testing.assert_close(with_base, by_row + 1)


def test_multislerp_is_the_mean_direction_times_the_mean_norm():
    a, b, c = [3.0, 0.0, 0.0], [0.0, 6.0, 0.0], [0.0, 0.0, 9.0]
    out = run("multislerp", None, a, b, c, weight=[1.0, 2.0, 2.0])
    norm = (1 * 3 + 2 * 6 + 2 * 9) / 5
    assert out.tolist() == pytest.approx([norm / 3, norm * 2 / 3, norm * 2 / 3])


def test_multislerp_of_directions_that_cancel():
    assert run("multislerp", None, [1.0, 0.0], [-3.0, 0.0], weight=1.0).tolist() == [-1.0, 0.0]
    with pytest.raises(CandidateError, match="directions of the models cancel each other"):
        run("multislerp", None, [1.0, 0.0], [-1.0, 0.0], [0.0, 0.0], weight=1.0)
    assert run("multislerp", [1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0], weight=1.0).tolist() == [1.0, 2.0]


def test_karcher_of_two_models_is_slerp_by_their_weights():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    unit_a, unit_b = a / a.norm(), b / b.norm()
    spec = specs()["karcher"]
    shared = {name: param.default for name, param in spec.parameters.items() if not param.per_model} | {"tol": 1e-8}
    p = Parameters(shared, {"weight": (1.0, 3.0)}, torch.float64)
    angle = math.acos(float(unit_a @ unit_b))
    arc = math.sin(0.25 * angle) / math.sin(angle) * unit_a + math.sin(0.75 * angle) / math.sin(angle) * unit_b
    expected = arc * (0.25 * a.norm() + 0.75 * b.norm())
    torch.testing.assert_close(method("karcher").merge(None, [a, b], p), expected, rtol=1e-9, atol=1e-9)


def test_karcher_of_models_without_a_direction():
    assert run("karcher", None, [0.0, 0.0], [0.0, 0.0]).tolist() == [0.0, 0.0]
    assert run("karcher", None, [4.0, 0.0], [0.0, 0.0]).tolist() == [2.0, 0.0]  # half of the norm, its direction
    assert run("karcher", None, [1e-6, 0.0], [0.0, 1e-6]).tolist() == pytest.approx([5e-7, 5e-7])  # not zeros
    assert run("karcher", None, [4.0, 0.0], [-2.0, 0.0]).tolist() == pytest.approx([3.0, 0.0])  # the first one's


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_model_stock_moves_by_the_angle_and_not_by_the_size_of_changes(scale):
    """The floor of 1e-6 in mergekit under products of norms makes small changes orthogonal."""
    a, b = torch.tensor([1.0, 0.0]) * scale, torch.tensor([0.6, 0.8]) * scale
    t = 2 * 0.6 / 1.6
    torch.testing.assert_close(run("model_stock", [0.0, 0.0], a, b), t * (a + b) / 2, rtol=1e-6, atol=0)


def test_model_stock_of_changes_that_do_not_agree():
    assert run("model_stock", [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]).tolist() == [0.0, 0.0]
    assert run("model_stock", [0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]).tolist() == [0.0, 0.0]  # 1 + (N−1)cosφ = 0
    assert run("model_stock", [1.0, 2.0], [1.0, 2.0], [3.0, 3.0]).tolist() == [1.0, 2.0]  # an unchanged model


def test_gram_matrices_are_remembered_by_content():
    from evosearch.merging.method_parameters import Memory, Origin

    a, b, c = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    origins = tuple(Origin(str(i) * 64, "t") for i in range(3))
    memory = Memory()
    p = Parameters({"filter_wise": False}, {}, base=origins[0], parents=origins[1:], memory=memory)
    out = method("model_stock").merge(a, [b, c], p)
    assert torch.equal(method("model_stock").merge(a, [b, c], p), out)
    assert [key[0] for key in memory._facts] == ["gram"]
    nameless = Parameters({"filter_wise": False}, {}, parents=(Origin("", "t"),) * 2, memory=memory)
    assert not torch.equal(method("model_stock").merge(a, [c, c], nameless), out)
    assert len(memory._facts) == 1


# --- breadcrumbs and della ---


@pytest.mark.parametrize("density", [0.01, 0.3, 0.8, 0.99])
@pytest.mark.parametrize("gamma", [0.0, 0.004, 0.1, 0.7])
@pytest.mark.parametrize("coarse", [False, True])
def test_breadcrumbs_equals_sorting(density, gamma, coarse, monkeypatch):
    """Also where ⌊gamma·n⌋ is 0, and of equal magnitudes the first counts as larger."""
    monkeypatch.setattr(kernels, "CHUNK", {"cpu": 64})
    tau = torch.randn(200, generator=torch.Generator().manual_seed(3))
    tau = (2 * tau).round() / 2 if coarse else tau
    order = sorted(range(200), key=lambda i: (-abs(tau[i].item()), i))
    stay = max(1, int(density * 200))
    outliers = min(int(gamma * 200), 200 - stay)
    expected = torch.zeros(200)
    kept = order[outliers : outliers + stay]
    expected[kept] = tau[kept]
    out = run("breadcrumbs", torch.zeros(200), tau, weight=1.0, density=density, gamma=gamma)
    assert torch.equal(out, expected)


def test_breadcrumbs_of_a_tensor_with_few_entries_keeps_one():
    assert run("breadcrumbs", [0.0, 0.0], [3.0, -4.0], weight=1.0, density=0.1).tolist() == [0.0, -4.0]
    assert run("breadcrumbs_ties", [0.0], [3.0], weight=1.0, density=0.1, gamma=1.0).tolist() == [3.0]


def della(tau: Tensor, seed: int, density: float, epsilon: float, rescale: object, memory: object = None) -> Tensor:
    from evosearch.merging.method_parameters import Origin

    shared = {"normalize": False, "rescale": rescale, "lambda": 1.0}
    own = {"weight": (1.0,), "density": (density,), "epsilon": (epsilon,)}
    origins = Origin("0" * 64, "t"), (Origin("1" * 64, "t"),)
    p = Parameters(shared, own, seed=seed, base=origins[0], parents=origins[1], memory=memory)
    return method("della_linear").merge(torch.zeros_like(tau), [tau], p)


@pytest.mark.parametrize(("density", "epsilon", "within"), [(0.5, 0.3, 0.3), (0.9, 0.3, 0.1), (0.2, 0.5, 0.2)])
def test_della_keeps_by_rank_within_a_row_and_keeps_the_mean(density, epsilon, within):
    tau = torch.randn((40, 11), generator=torch.Generator().manual_seed(3)) * torch.arange(1.0, 41.0)[:, None]
    seeds = 400
    outs = torch.stack([della(tau, seed, density, epsilon, True) for seed in range(seeds)])
    rank = tau.abs().argsort(dim=1).argsort(dim=1)  # 0 for the smallest
    probability = density - within + 2 * within * rank / 10
    kept = (outs != 0).float().mean(dim=0)
    by_rank = torch.stack([kept[rank == r].mean() for r in range(11)])
    expected = torch.stack([probability[rank == r].mean() for r in range(11)])
    torch.testing.assert_close(by_rank, expected, rtol=0, atol=4 * (0.25 / seeds / 40) ** 0.5)
    stays = probability > 0.05
    assert ((outs.mean(dim=0) - tau)[stays].norm() / tau[stays].norm()) < 0.15


def test_della_without_epsilon_is_dare_and_a_memory_changes_nothing():
    from evosearch.merging.method_parameters import Memory, Origin

    tau = torch.randn((300, 7), generator=torch.Generator().manual_seed(3))
    origins = Origin("0" * 64, "t"), (Origin("1" * 64, "t"),)
    shared = {"normalize": False, "rescale": True, "lambda": 1.0}
    p = Parameters(shared, {"weight": (1.0,), "density": (0.4,)}, seed=1, base=origins[0], parents=origins[1])
    dare = method("dare_linear").merge(torch.zeros_like(tau), [tau], p)
    torch.testing.assert_close(della(tau, 1, 0.4, 0.0, True), dare, rtol=1e-6, atol=0)
    alone = della(tau, 1, 0.4, 0.2, "l1")
    for memory in (Memory(), Memory(0)):
        assert torch.equal(della(tau, 1, 0.4, 0.2, "l1", memory), alone)
        assert torch.equal(della(tau, 1, 0.4, 0.2, "l1", memory), alone)
    assert della(tau, 1, 1.0, 0.2, True).tolist() == tau.tolist()


# --- methods by entry ---


def test_nearswap_limits_the_difference():
    base, other = [1.0, 1.0, 1.0, 1.0], [1.5, 0.9, 1.0, 0.0]
    assert run("nearswap", base, other, t=0.25).tolist() == pytest.approx([1.25, 0.9, 1.0, 0.75])
    assert run("nearswap", base, other, t=-1.0).tolist() == base
    assert run("nearswap", [0.0], [5e-7], t=1e-7).tolist() == pytest.approx([1e-7])  # mergekit: 5e-8


def test_sce_by_hand():
    base, a, b = [0.0, 0.0, 0.0], [2.0, 1.0, 1.0], [4.0, -3.0, 1.0]
    w_a, w_b = 6 / 32, 26 / 32
    expected = [2 * w_a + 4 * w_b, -3.0, 1.0]
    assert run("sce", base, a, b).tolist() == pytest.approx(expected)
    assert run("sce", base, a, b, select_topk=0.5).tolist() == pytest.approx(
        [0.0, -3.0, 0.0]
    )  # variances 1, 4, 0: 1 of 2
    assert run("sce", base, [1.0] * 3, [1.0] * 3, select_topk=0.5).tolist() == base  # no variance


@pytest.mark.parametrize("scale", [1.0, 1e-5])
def test_sce_weighs_changes_of_any_size(scale):
    """The floor of 1e-6 under the sum of mean squares makes weights equal in mergekit."""
    out = run("sce", [0.0, 0.0], [1.0 * scale, 1.0 * scale], [3.0 * scale, 3.0 * scale])
    assert out.tolist() == pytest.approx([(0.1 * 1 + 0.9 * 3) * scale] * 2, rel=1e-5)


def test_ram_and_ramplus_by_hand():
    base, a, b = [0.0] * 4, [1.0, 2.0, 0.0, 3.0], [0.0, 4.0, 5.0, 5.0]
    assert run("ram", base, a, b).tolist() == [1.0, 3.0, 5.0, 4.0]
    # ρ is 2 shared to 1 alone for both
    out = run("ramplus", base, a, b, r=0.1, alpha=3.0)
    assert out.tolist() == pytest.approx([1.2, 3.0, 6.0, 4.0])
    assert run("ramplus", base, a, b, r=0.1, alpha=0.5).tolist() == pytest.approx([1.05, 3.0, 5.25, 4.0])


def test_ramplus_with_the_ratios_of_a_model():
    from evosearch.merging.registry import Site

    generator = torch.Generator().manual_seed(4)
    shared = {"r": 0.5, "alpha": 10.0, "epsilon": 1e-5, "ratio_scope": "model"}
    tensors = []
    for n in (40, 7, 90):
        base = torch.randn(n, generator=generator)
        tau = [torch.randn(n, generator=generator) * (torch.rand(n, generator=generator) < 0.4) for _ in range(2)]
        tensors.append((base, [base + one for one in tau]))
    p = Parameters(shared, {})
    sites = [Site(lambda b=b: b, tuple(lambda q=q: q for q in parents), p) for b, parents in tensors]
    merger = method("ramplus")
    facts = merger.survey(sites)
    merged = [merger.merge(b, q, Parameters(shared, {}, survey=f)) for (b, q), f in zip(tensors, facts, strict=True)]
    flat = [torch.cat([b for b, _ in tensors]), *(torch.cat([q[i] for _, q in tensors]) for i in range(2))]
    alone = Parameters(shared | {"ratio_scope": "tensor"}, {})
    torch.testing.assert_close(torch.cat(merged), merger.merge(flat[0], flat[1:], alone), rtol=1e-6, atol=1e-7)
    assert merger.survey([Site(sites[0].base, sites[0].parents, alone)]) is None


def test_ramplus_with_the_ratios_of_a_model_is_the_rule_of_its_authors():
    """Their merge mode arm-r-v2 with factor 1.2: ratios over all tensors, limited to 1; here r is 0.2 and alpha 1."""
    from evosearch.merging.registry import Site

    generator = torch.Generator().manual_seed(6)
    shared = {"r": 0.2, "alpha": 1.0, "epsilon": 1e-5, "ratio_scope": "model"}
    tensors = []
    for n, shares in ((400, (0.3, 0.1, 0.6)), (200, (0.1, 0.05, 0.0))):
        drawn = [torch.rand(n, generator=generator) < share for share in shares]
        taus = [torch.randn(n, generator=generator) * one for one in drawn]
        tensors.append((torch.randn(n, generator=generator, dtype=torch.float64), taus))
    columns = [column for _, taus in tensors for column in zip(*(tau.tolist() for tau in taus), strict=True)]
    factors = []
    for i in range(3):
        changed = [sum(x != 0 for x in column) for column in columns if column[i]]
        overlap = sum(count > 1 for count in changed)
        factors.append(1 + 0.2 * min(1.0, overlap / (len(changed) - overlap)))
    assert len(set(factors)) > 1
    merger, plain = method("ramplus"), Parameters(shared, {}, torch.float64)
    models = [(base, [base + tau for tau in taus]) for base, taus in tensors]
    sites = [Site(lambda b=b: b, tuple(lambda q=q: q for q in parents), plain) for b, parents in models]
    for (base, parents), (_, taus), fact in zip(models, tensors, merger.survey(sites), strict=True):
        expected = []
        for column in zip(*(tau.tolist() for tau in taus), strict=True):
            count = sum(x != 0 for x in column)
            alone = sum(f * x for f, x in zip(factors, column, strict=True))
            expected.append(alone if count == 1 else sum(column) / max(1, count))
        out = merger.merge(base, parents, Parameters(shared, {}, torch.float64, survey=fact))
        torch.testing.assert_close(out, base + torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_swa_is_the_mean_in_float64(count):
    thetas = [torch.randn((30, 7), generator=torch.Generator().manual_seed(i)) for i in range(count)]
    exact = torch.stack([theta.double() for theta in thetas]).mean(dim=0)
    assert torch.equal(run("swa", None, *thetas), exact.float()) or count > 1
    torch.testing.assert_close(run("swa", None, *thetas), exact.float(), rtol=2**-23, atol=2**-30)
    halves = [theta.bfloat16() for theta in thetas]
    out = method("swa").merge(None, halves, Parameters({}, {}, torch.bfloat16))
    exact = torch.stack([half.double() for half in halves]).mean(dim=0)
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=2**-30)


def test_arcee_fusion_takes_over_what_is_far_above_the_quartiles():
    generator = torch.Generator().manual_seed(4)
    base = torch.randn((8, 50), generator=generator)
    tau = 0.01 * torch.randn((8, 50), generator=generator)
    tau[2, 3] = 3.0
    out = run("arcee_fusion", base, base + tau)
    assert out[2, 3] == pytest.approx((base + tau)[2, 3].item())
    p, q = (base + tau).double().softmax(-1) + 1e-8, base.double().softmax(-1) + 1e-8
    importance = tau.abs() * (p * (p / q).log()).sum(-1, keepdim=True)
    ordered = importance.flatten().sort().values
    low, mid, high = (ordered[int(share * 399)].item() for share in (0.25, 0.5, 0.75))
    torch.testing.assert_close(out, torch.where(importance >= mid + 1.5 * (high - low), base + tau, base))
    assert run("arcee_fusion", base, base.clone()).equal(base)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("lam", [0.0, 0.4, 1.5])
def test_consensus_ta_equals_a_plain_implementation(k, lam):
    taus = torch.randn((3, 200), generator=torch.Generator().manual_seed(3))
    expected = []
    for column in taus.t().tolist():
        votes = sum(abs(one) >= lam * abs(sum(column) - one) for one in column)
        expected.append(1.0 + 0.7 * sum(column) * (votes >= k))
    out = run("consensus_ta", torch.ones(200), *(taus + 1), k=k, lam=lam, scale=0.7)
    torch.testing.assert_close(out, torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert run("consensus_ta", [1.0], [2.0], [3.0], k=3).tolist() == [1.0]  # more than there are models
