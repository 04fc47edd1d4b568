"""Laws of merge methods, for every registered method by name: built-in ones and those of installed packages."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from evosearch.errors import RecipeError
from evosearch.merging import kernels
from evosearch.merging.method_parameters import Memory, Origin, Parameters
from evosearch.merging.registry import method, specs
from evosearch.recipe.shapes import MethodSpec, Param, Scalar
from tests.merging.statistics import with_statistics

torch.set_num_threads(1)
SHAPES = [(7,), (5, 3), (1,), (2, 3, 4), (300, 11)]


def value(param: Param, at: float) -> Scalar:
    """Return a valid value of a parameter; for a density, one below 1."""
    if param.open_low and param.strict:
        return at
    if param.default is not None:
        return param.default
    if param.kind == "choice":
        return param.choices[0]
    assert param.low is not None
    assert param.high is not None
    return param.low + (param.high - param.low) * at


def parameters(spec: MethodSpec, count: int, dtype: torch.dtype = torch.float32, **given: Scalar) -> Parameters:
    shared = {name: value(p, 0.4) for name, p in spec.parameters.items() if not p.per_model}
    own = {
        name: tuple(value(p, 0.3 + 0.1 * index) for index in range(count))
        for name, p in spec.parameters.items()
        if p.per_model
    }
    origins = tuple(Origin(f"{index:064x}", "some.tensor") for index in range(count + 1))
    shared |= {k: v for k, v in given.items() if k in shared}
    return Parameters(shared, own, dtype, seed=5, base=origins[0], parents=origins[1:])


def models(
    spec: MethodSpec, shape: tuple[int, ...], seed: int = 0, spread: float = 0.1
) -> tuple[Tensor | None, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    count = min(3, spec.models[1] or 3)
    parents = [base + spread * torch.randn(shape, generator=generator) for _ in range(count)]
    return (base if spec.takes_base else None), parents


def those(applies: Callable[[MethodSpec], bool]) -> list[str]:
    """Return the names of the methods that a law applies to."""
    return [name for name, spec in specs().items() if applies(spec)]


@pytest.fixture(params=specs().keys())
def spec(request: pytest.FixtureRequest) -> MethodSpec:
    return specs()[request.param]


def merge(spec: MethodSpec, base: Tensor | None, parents: list[Tensor], p: Parameters) -> Tensor:
    return method(spec.name).merge(base, parents, with_statistics(spec, parents, p))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_keeps_the_shape_and_gives_the_arithmetics_type(spec, shape, dtype):
    base, parents = models(spec, shape)
    out = merge(spec, base, parents, parameters(spec, len(parents), dtype))
    assert (out.shape, out.dtype) == (torch.Size(shape), dtype)
    assert out.isfinite().all()


def test_is_deterministic_and_leaves_its_inputs_alone(spec):
    base, parents = models(spec, (40, 9))
    before = [tensor.clone() for tensor in parents + ([base] if base is not None else [])]
    p = parameters(spec, len(parents))
    assert torch.equal(merge(spec, base, parents, p), merge(spec, base, parents, p))
    for tensor, old in zip(parents + ([base] if base is not None else []), before, strict=True):
        assert torch.equal(tensor, old)


def test_takes_inputs_of_any_type_and_layout(spec):
    base, parents = models(spec, (6, 5))
    p = parameters(spec, len(parents))
    halves = [parent.bfloat16() for parent in parents]
    expected = merge(spec, base, [half.float() for half in halves], p)
    assert torch.equal(merge(spec, base, halves, p), expected)
    turned = [half.float().t().contiguous().t() for half in halves]
    assert torch.equal(merge(spec, base, turned, p), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_is_the_same_in_chunks_of_any_size(spec, dtype, monkeypatch):
    base, parents = models(spec, (50, 7))
    p = parameters(spec, len(parents), dtype)
    whole = merge(spec, base, parents, p)
    monkeypatch.setattr(kernels, "CHUNK", {"cpu": 16})
    assert torch.equal(merge(spec, base, parents, p), whole)


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_the_same_bit_for_bit_with_a_memory(spec, dtype):
    memory = Memory()
    for seed, at in ((0, 0.3), (0, 0.6), (0, 0.01), (0, 0.3)):
        base, parents = models(spec, (50, 9), seed)
        p = parameters(spec, len(parents), dtype)
        own = {k: (at,) * len(parents) if k == "density" else v for k, v in p.own.items()}
        alone = merge(spec, base, parents, replace(p, own=own))
        remembered = merge(spec, base, parents, replace(p, own=own, memory=memory))
        assert torch.equal(bits(remembered), bits(alone))


@pytest.mark.parametrize("spec", those(lambda spec: spec.takes_base and spec.models[1] != 1), indirect=True)
@pytest.mark.parametrize("still", [(0,), (1,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("weights", [(0.5, 0.7, 0.2), (-0.5, -0.1, -2.0), (-0.5, 0.7, -1.0)])
def test_a_parent_that_shares_the_bases_tensor_is_one_that_equals_it(spec, still, weights):
    base, parents = models(spec, (50, 9))
    base.view(-1)[::3] = -0.0
    equal = torch.rand(base.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    parents = [torch.where(equal, base, parent) for parent in parents]
    p = parameters(spec, len(parents))
    p = replace(p, own={**p.own, "weight": weights[: len(parents)]})
    copied = [base.clone() if i in still else parent for i, parent in enumerate(parents)]
    shared = [base if i in still else parent for i, parent in enumerate(parents)]
    out = merge(spec, base, shared, p)
    assert out is not base
    assert torch.equal(bits(out), bits(merge(spec, base, copied, p)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_does_not_depend_on_threads(spec, dtype):
    base, parents = models(spec, (311, 401))  # threads divide it where vectors end early
    p = parameters(spec, len(parents), dtype)
    one = merge(spec, base, parents, p)
    torch.set_num_threads(2)
    try:
        assert torch.equal(merge(spec, base, parents, p), one)
    finally:
        torch.set_num_threads(1)


def test_does_not_depend_on_the_order_of_models(spec):
    base, parents = models(spec, (40, 9))
    p = parameters(spec, len(parents))
    backwards = replace(p, own={name: values[::-1] for name, values in p.own.items()}, parents=p.parents[::-1])
    torch.testing.assert_close(
        merge(spec, base, parents[::-1], backwards), merge(spec, base, parents, p), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("spec", those(lambda spec: spec.needs_base and "weight" in spec.parameters), indirect=True)
def test_is_the_base_at_zero_weights(spec):
    base, parents = models(spec, (40, 9))
    p = parameters(spec, len(parents))
    for normalize in (True, False):
        zero = replace(p, shared={**p.shared, "normalize": normalize}, own={**p.own, "weight": (0.0,) * len(parents)})
        assert torch.equal(merge(spec, base, parents, zero), base)


def test_is_the_base_where_every_parent_is(spec):
    base, parents = models(spec, (40, 9), spread=0.0)
    out = merge(spec, base, parents, parameters(spec, len(parents)))
    torch.testing.assert_close(out, parents[0], rtol=1e-6, atol=1e-6)


def test_a_parent_that_is_not_finite_is_detected(spec):
    for poison in (math.nan, math.inf):
        base, parents = models(spec, (40, 9))
        parents[-1][3, 2] = poison
        try:
            out = merge(spec, base, parents, parameters(spec, len(parents)))
        except Exception as error:
            assert type(error).__name__ == "CandidateError"  # noqa: PT017
        else:
            assert not out.isfinite().all()


def test_declares_itself(spec):
    assert spec.paper
    assert spec.summary.endswith(".")
    assert "\n" not in spec.summary
    assert isinstance(spec.parameters, Mapping)
    for name, param in spec.parameters.items():
        if param.kind in ("float", "int"):
            assert param.low is not None, f"{name} has no bounds to search"
            assert param.high is not None, f"{name} has no bounds to search"


@pytest.mark.parametrize("spec", those(lambda spec: spec.mergekit is not None), indirect=True)
def test_declares_only_parameters_that_it_has_to_mergekit(spec):
    form = spec.mergekit
    assert form.name
    named = {*form.fixed, *form.spelled, *form.inexact, *(form.leave_out or {})}
    assert named <= spec.parameters.keys()
    for name, value in form.fixed.items():
        assert spec.parameters[name].default == value, f"mergekit computes {name}: {value} only; make it the default"


def test_an_unknown_method_is_refused_with_the_nearest_name():
    with pytest.raises(RecipeError, match=r"unknown method 'tie'.*Known methods: .*Did you mean 'ties'") as caught:
        method("tie")
    builtin = {"dare_linear", "dare_ties", "linear", "passthrough", "slerp", "task_arithmetic", "ties"}
    assert builtin <= set(specs())
    assert all(name in str(caught.value) for name in specs())
