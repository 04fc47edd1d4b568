"""`norm: equal`: laws for every registered method with the option, and the factors by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.merging import kernels
from evosearch.merging.equal_norms import scales_of
from evosearch.merging.method_parameters import Memory, Origin, Parameters
from evosearch.merging.registry import Site, method, specs
from evosearch.recipe.shapes import Scalar

torch.set_num_threads(1)
METHODS = [name for name, spec in specs().items() if "norm_scope" in spec.parameters]


def parameters(name: str, norm: str, scope: str = "tensor", tensor: str = "t", **given: Scalar) -> Parameters:
    """Default parameters, densities of 0.6 and three models."""
    known = specs()[name].parameters
    shared = {key: p.default for key, p in known.items() if not p.per_model and p.default is not None}
    own = {}
    for key, p in known.items():
        if p.per_model:
            own[key] = (0.9, 0.5, 0.7) if p.default is None else (0.6,) * 3 if key == "density" else (p.default,) * 3
    origins = tuple(Origin(f"{index:064x}", tensor) for index in range(4))
    shared |= {"norm": norm, "norm_scope": scope, **given}
    return Parameters(shared, own, seed=5, base=origins[0], parents=origins[1:])


def models(shape: tuple[int, ...] = (30, 9), seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    return base, [base + spread * torch.randn(shape, generator=generator) for spread in (0.1, 0.4, 0.02)]


def by_hand(taus: Sequence[Tensor]) -> list[Tensor]:
    """The task vectors, each with their mean norm."""
    norms = [tau.double().norm().item() for tau in taus]
    return [tau * (sum(norms) / len(norms) / norm) for tau, norm in zip(taus, norms, strict=True)]


def surveyed(name: str, tensors: Sequence[tuple[Tensor, list[Tensor]]], ps: Sequence[Parameters]) -> list[Parameters]:
    sites = [
        Site(lambda base=base: base, tuple((lambda one=one: one) for one in parents), p)
        for (base, parents), p in zip(tensors, ps, strict=True)
    ]
    survey = method(name).survey
    facts = survey(sites) if survey is not None else None
    return list(ps) if facts is None else [replace(p, survey=f) for p, f in zip(ps, facts, strict=True)]


def test_every_method_on_task_vectors_has_the_option():
    expected = {name for name, spec in specs().items() if spec.needs_base and spec.models[1] != 1}
    assert set(METHODS) == expected


@pytest.mark.parametrize("name", METHODS)
def test_it_is_the_merge_of_scaled_task_vectors(name):
    base, parents = models()
    zero = torch.zeros_like(base)
    taus = by_hand([parent - base for parent in parents])
    expected = method(name).merge(zero, taus, parameters(name, "keep"))
    found = method(name).merge(base, parents, parameters(name, "equal"))
    torch.testing.assert_close(found - base, expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found, method(name).merge(base, parents, parameters(name, "keep")), atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_a_model_scope_has_one_factor_for_all_tensors(name):
    tensors = [models(seed=1), models((4, 5), seed=2)]
    ps = [parameters(name, "equal", "model", tensor) for tensor in ("a", "b")]
    ps = surveyed(name, tensors, ps)
    norms = [
        math.sqrt(sum((parents[i] - base).double().square().sum().item() for base, parents in tensors))
        for i in range(3)
    ]
    for (base, parents), p, tensor in zip(tensors, ps, ("a", "b"), strict=True):
        taus = [(q - base) * (sum(norms) / 3 / norm) for q, norm in zip(parents, norms, strict=True)]
        expected = method(name).merge(torch.zeros_like(base), taus, parameters(name, "keep", tensor=tensor))
        torch.testing.assert_close(method(name).merge(base, parents, p) - base, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_a_methods_own_survey_sees_scaled_task_vectors(scope):
    tensors = [models(seed=1), models((4, 5), seed=2)]
    ps = [parameters("ties", "equal", scope, tensor, trim_scope="model") for tensor in ("a", "b")]
    merged = [
        method("ties").merge(base, parents, p)
        for (base, parents), p in zip(tensors, surveyed("ties", tensors, ps), strict=True)
    ]
    if scope == "tensor":
        scaled = [by_hand([q - base for q in parents]) for base, parents in tensors]
    else:
        flat = by_hand([torch.cat([(q[i] - b).flatten() for b, q in tensors]) for i in range(3)])
        scaled = [[one[:270].view(30, 9) for one in flat], [one[270:].view(4, 5) for one in flat]]
    zeros = [(torch.zeros_like(base), taus) for (base, _), taus in zip(tensors, scaled, strict=True)]
    plain = [parameters("ties", "keep", "tensor", tensor, trim_scope="model") for tensor in ("a", "b")]
    for (base, _), out, (zero, taus), p in zip(tensors, merged, zeros, surveyed("ties", zeros, plain), strict=True):
        torch.testing.assert_close(out - base, method("ties").merge(zero, taus, p), rtol=1e-4, atol=1e-6)


def test_a_survey_is_made_only_for_tensors_that_need_it():
    tensors = [models(seed=1), models((4, 5), seed=2)]
    mixed = [parameters("ties", "keep"), parameters("ties", "equal", "model")]
    first, second = surveyed("ties", tensors, mixed)
    assert first.survey is None
    assert second.survey.scales == pytest.approx(
        scales_of([(q - tensors[1][0]).double().norm().item() for q in tensors[1][1]])
    )
    assert surveyed("ties", tensors, [parameters("ties", "equal")] * 2)[0].survey is None


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_threads_chunks_memory_or_storage(name, dtype, monkeypatch):
    base, parents = models((300, 40))
    p = replace(parameters(name, "equal"), dtype=dtype)
    one = method(name).merge(base, parents, p)
    assert one.dtype == dtype
    memory = Memory()
    for norm in ("keep", "equal", "keep", "equal"):
        q = replace(p, shared={**p.shared, "norm": norm})
        alone, remembered = (method(name).merge(base, parents, replace(q, memory=m)) for m in (None, memory))
        assert torch.equal(alone, remembered)
    torch.set_num_threads(2)
    try:
        assert torch.equal(method(name).merge(base, parents, p), one)
    finally:
        torch.set_num_threads(1)
    monkeypatch.setattr(kernels, "CHUNK", {"cpu": 80})
    assert torch.equal(method(name).merge(base, parents, p), one)
    still = [parents[0], base, parents[2]]
    copied = [parents[0], base.clone(), parents[2]]
    assert torch.equal(method(name).merge(base, still, p), method(name).merge(base, copied, p))


def test_factors_by_hand():
    assert scales_of([1.0, 3.0]) == (2.0, 2 / 3)
    assert scales_of([1.0, 0.0, 3.0]) == (2.0, 1.0, 2 / 3)  # a model without a change does not count
    assert scales_of([0.0, 0.0]) == (1.0, 1.0)
    assert all(math.isnan(scale) for scale in scales_of([math.nan, 1.0]))


@pytest.mark.parametrize("name", METHODS)
def test_a_parent_that_is_not_finite_is_detected(name):
    for poison in (math.nan, math.inf):
        base, parents = models()
        parents[1][2, 3] = poison
        try:
            out = method(name).merge(base, parents, parameters(name, "equal"))
        except CandidateError as error:
            assert "not finite" in str(error)  # noqa: PT017
        else:
            assert not out.isfinite().all()
