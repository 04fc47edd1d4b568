"""Laws of the derivatives of merge methods, for every registered method by name, against central differences."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from evosearch.merging.kernels import BLOCK, totals
from evosearch.merging.method_parameters import Origin, Parameters
from evosearch.merging.registry import Method, Site, Slope, method, specs
from evosearch.recipe.dual import Dual
from evosearch.recipe.shapes import Scalar
from tests.merging.statistics import with_statistics

torch.set_num_threads(1)
STEP = 1e-6
DIFFERENTIABLE = [name for name, spec in specs().items() if spec.differentiable]
BY_FACTORS = [name for name in DIFFERENTIABLE if method(name).factors is not None]
WEIGHTS = [(0.3, 0.7, 0.9), (1.4, 0.2, 0.05), (-0.5, 0.7, 1.2)]


@pytest.fixture(params=DIFFERENTIABLE)
def merger(request: pytest.FixtureRequest) -> Method:
    return method(request.param)


def tensors(
    merger: Method, spread: float = 0.5, shape: tuple[int, ...] = (13, 9)
) -> tuple[Tensor | None, list[Tensor]]:
    """θ₀ and θᵢ in float64."""
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(shape, generator=generator, dtype=torch.float64)
    count = min(3, merger.spec.models[1] or 3)
    noise = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]
    return (base if merger.spec.takes_base else None), [base + spread * one for one in noise]


def settings(merger: Method) -> list[tuple[dict[str, Scalar], dict[str, tuple[Scalar, ...]]]]:
    """Parameters of a method: several numbers, under each combination of its choices."""
    known, count = merger.spec.parameters, min(3, merger.spec.models[1] or 3)
    choices = {n: p.choices or (True, False) for n, p in known.items() if p.kind in ("choice", "bool")}
    norms = {"norm", "norm_scope"} & choices.keys()  # not in all combinations with the other choices
    others = [dict(zip(choices, chosen, strict=True)) for chosen in product(*choices.values())]
    combinations = [one for one in others if all(one[name] == known[name].default for name in norms)]
    combinations += [combinations[0] | {"norm": "equal", "norm_scope": scope} for scope in ("tensor", "model") if norms]
    found = []
    for weights, chosen in product(WEIGHTS, combinations):
        shared: dict[str, Scalar] = dict(chosen)
        own: dict[str, tuple[Scalar, ...]] = {}
        for name, param in known.items():
            if param.kind == "int":
                assert param.default is not None
                shared[name] = param.default
            if param.kind != "float":
                continue
            low = param.low if param.strict and param.low is not None else -9.0
            values = tuple(max(low, w) / (2.0 if param.strict else 1.0) for w in weights)
            if param.strict and param.high is not None:
                values = tuple(min(param.high, one) for one in values)
            values = (0.6,) * 3 if param.open_low else values  # a density
            if param.per_model:
                own[name] = values[:count]
            else:
                shared[name] = values[0]
        found.append((shared, own))
    return found


def given(merger: Method, shared: dict[str, Scalar], own: dict[str, tuple[Scalar, ...]]) -> Parameters:
    count = min(3, merger.spec.models[1] or 3)
    origins = tuple(Origin(f"{index:064x}", "some.tensor") for index in range(count + 1))
    return Parameters(shared, own, torch.float64, seed=5, base=origins[0], parents=origins[1:])


def surveyed(merger: Method, base: Tensor | None, parents: Sequence[Tensor], p: Parameters) -> Parameters:
    """The parameters with the parents' statistics and the survey's fact, where the method has them."""
    p = with_statistics(merger.spec, parents, p)
    if merger.survey is None:
        return p
    loaders = tuple((lambda one=one: one) for one in parents)
    facts = merger.survey([Site(None if base is None else lambda: base, loaders, p)])
    return p if facts is None else replace(p, survey=facts[0])


def moved(p: Parameters, name: str, i: int | None, step: float) -> Parameters:
    """The parameters with one number changed."""
    if i is None:
        return replace(p, shared={**p.shared, name: p.shared[name] + step})
    numbers = list(p.own[name])
    numbers[i] += step
    return replace(p, own={**p.own, name: tuple(numbers)})


def numbers(slope: Slope) -> list[tuple[int | None, float]]:
    return list(enumerate(slope)) if isinstance(slope, tuple) else [(None, slope)]


def test_agrees_with_central_differences(merger: Method) -> None:
    for spread, (shared, own) in product((0.5, 5.0), settings(merger)):
        base, parents = tensors(merger, spread)
        p = surveyed(merger, base, parents, given(merger, shared, own))
        grad = torch.randn(parents[0].shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
        found = merger.derivative(base, parents, p, grad)
        assert found.keys() == set(merger.spec.differentiable)
        for name, slope in found.items():
            assert isinstance(slope, tuple) == merger.spec.parameters[name].per_model
            for i, number in numbers(slope):
                ends = [merger.merge(base, parents, moved(p, name, i, sign * STEP)) for sign in (1, -1)]
                expected = ((ends[0] - ends[1]) * grad).sum().item() / (2 * STEP)
                assert number == pytest.approx(expected, rel=1e-6, abs=1e-6), (name, i, shared, own)


def test_is_the_same_for_dual_numbers_and_leaves_its_inputs_alone(merger: Method) -> None:
    shared, own = settings(merger)[0]
    base, parents = tensors(merger)
    p = surveyed(merger, base, parents, given(merger, shared, own))
    dual = replace(
        p,
        shared={k: Dual(v, {0: 1.0}) if isinstance(v, float) else v for k, v in shared.items()},
        own={k: tuple(Dual(float(v), {1: 1.0}) for v in values) for k, values in own.items()},
    )
    before = [one.clone() for one in (*parents, *([base] if base is not None else []))]
    grad = torch.ones_like(parents[0])
    plain = merger.derivative(base, parents, p, grad)
    assert merger.derivative(base, parents, dual, grad) == plain
    assert all(type(number) is float for slope in plain.values() for _, number in numbers(slope))
    assert torch.equal(merger.merge(base, parents, dual), merger.merge(base, parents, p))
    after = [*parents, *([base] if base is not None else [])]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert torch.equal(grad, torch.ones_like(grad))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_precise_in_lower_arithmetic(merger: Method, dtype: torch.dtype) -> None:
    """Products in float32 and sums in float64, whatever the merge is computed in."""
    shared, own = settings(merger)[0]
    base, parents = tensors(merger, 1.0, (400, 60))
    halves = [one.to(dtype) for one in parents]
    origin = None if base is None else base.to(dtype)
    grad = torch.randn(parents[0].shape, generator=torch.Generator().manual_seed(8)).to(dtype)
    p = given(merger, shared, own)
    exact = surveyed(merger, origin, halves, p)
    rounded = surveyed(merger, origin, halves, replace(p, dtype=dtype))
    expected = merger.derivative(origin, halves, exact, grad)
    found = merger.derivative(origin, halves, rounded, grad)
    size = grad.double().norm().item() * parents[0].norm().item()
    for name, slope in expected.items():
        for (_, number), (_, other) in zip(numbers(slope), numbers(found[name]), strict=True):
            assert other == pytest.approx(number, abs=size * (1e-6 if dtype == torch.float32 else 1e-3)), name


def test_does_not_depend_on_threads_or_layout(merger: Method) -> None:
    shared, own = settings(merger)[0]
    base, parents = tensors(merger, 0.5, (300, 400))
    p = surveyed(merger, base, parents, given(merger, shared, own))
    grad = torch.randn(parents[0].shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    one = merger.derivative(base, parents, p, grad)
    torch.set_num_threads(2)
    try:
        assert merger.derivative(base, parents, p, grad) == one
    finally:
        torch.set_num_threads(1)
    assert merger.derivative(base, parents, p, grad.t().contiguous().t()) == one


def test_is_nan_where_the_gradient_is_not_finite(merger: Method) -> None:
    shared, own = settings(merger)[0]
    base, parents = tensors(merger)
    p = surveyed(merger, base, parents, given(merger, shared, own))
    grad = torch.ones_like(parents[0])
    grad[0, 0] = torch.inf
    for slope in merger.derivative(base, parents, p, grad).values():
        assert any(number != number for _, number in numbers(slope))


@pytest.mark.parametrize("merger", [n for n in DIFFERENTIABLE if "weight" in specs()[n].differentiable], indirect=True)
def test_a_weight_of_zero_has_the_derivative_from_above(merger: Method) -> None:
    base, parents = tensors(merger)
    for shared, own in settings(merger):
        p = given(merger, shared, own | {"weight": (0.8, 0.0, 0.6)[: len(parents)]})
        p = surveyed(merger, base, parents, p)
        grad = torch.ones_like(parents[0])
        found = merger.derivative(base, parents, p, grad)["weight"]
        there, above = (merger.merge(base, parents, moved(p, "weight", 1, step)) for step in (0.0, STEP))
        # An entry on which only this weight votes is divided by this weight: it jumps at zero, and has no derivative.
        smooth = (above - there).abs() < 20 * STEP
        kept = merger.derivative(base, parents, p, grad * smooth)["weight"]
        assert isinstance(found, tuple)
        assert isinstance(kept, tuple)
        assert kept[1] == pytest.approx(((above - there) * smooth).sum().item() / STEP, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("merger", [n for n in DIFFERENTIABLE if specs()[n].needs_base], indirect=True)
def test_a_parent_that_shares_the_bases_tensor_is_one_that_equals_it(merger: Method) -> None:
    shared, own = settings(merger)[0]
    base, parents = tensors(merger)
    assert base is not None
    for still in ({0}, set(range(len(parents)))):
        copied = [base.clone() if i in still else one for i, one in enumerate(parents)]
        shares = [base if i in still else one for i, one in enumerate(parents)]
        p = surveyed(merger, base, copied, given(merger, shared, own))
        grad = torch.ones_like(base)
        expected = merger.derivative(base, copied, p, grad)
        found = merger.derivative(base, shares, surveyed(merger, base, shares, given(merger, shared, own)), grad)
        for name, slope in expected.items():
            assert [n for _, n in numbers(found[name])] == pytest.approx([n for _, n in numbers(slope)], abs=1e-12)


@pytest.mark.parametrize("merger", BY_FACTORS, indirect=True)
def test_factors_are_those_of_the_merge_and_their_chain_is_the_derivative(merger: Method) -> None:
    assert merger.factors is not None
    base, parents = tensors(merger)
    assert base is not None
    for shared, own in settings(merger):
        p = given(merger, shared, own)
        if merger.factors_at(p) is None:
            continue  # norm: equal
        grad = torch.randn(base.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
        taus = [theta - base for theta in parents]
        summed = base + sum(f * tau for f, tau in zip(merger.factors.of(p), taus, strict=True))
        torch.testing.assert_close(merger.merge(base, parents, p), summed, rtol=1e-12, atol=1e-12)
        chained = merger.factors.chain(p, [(grad * tau).sum().item() for tau in taus])
        for name, slope in merger.derivative(base, parents, p, grad).items():
            assert [n for _, n in numbers(chained[name])] == pytest.approx([n for _, n in numbers(slope)], rel=1e-9)


def test_task_arithmetic_has_factors() -> None:
    assert "task_arithmetic" in BY_FACTORS
    merger = method("task_arithmetic")
    assert merger.factors_at(Parameters({"norm": "keep"}, {})) is merger.factors
    assert merger.factors_at(Parameters({"norm": "equal"}, {})) is None


def test_a_method_has_a_derivative_or_names_no_parameter() -> None:
    for name, spec in specs().items():
        assert (method(name).derivative is not None) == bool(spec.differentiable), name
    builtin = {"dare_linear", "dare_ties", "linear", "passthrough", "slerp", "task_arithmetic", "ties"}
    assert builtin <= set(DIFFERENTIABLE)


def test_totals_are_the_sums_of_one_pass() -> None:
    x, y = torch.randn(2, 3 * BLOCK + 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    one, other = totals(lambda _, c: (c[0] * c[1], c[0]), (x, y), torch.float64)
    assert (one, other) == (pytest.approx((x * y).sum().item()), pytest.approx(x.sum().item()))
    assert totals(lambda _, c: (c[0], c[0] / 0), (x[:0], y[:0]), torch.float32) == (0.0, 0.0)
    one, other = totals(lambda _, c: (c[0], c[0] / 0), (x, y), torch.float64)
    assert one == pytest.approx(x.sum().item())
    assert other != other
