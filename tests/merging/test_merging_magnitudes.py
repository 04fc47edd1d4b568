"""Exact top-k selection by magnitude, compared with sorting: within a tensor and over a model."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.merging import kernels
from evosearch.merging.compiled import fused, library
from evosearch.merging.magnitudes import Delta, Trim, trims
from evosearch.merging.method_parameters import Memory, Origin, Parameters
from evosearch.merging.registry import Site, method

torch.set_num_threads(1)
DENSITIES = (1e-6, 0.003, 0.1, 0.34, 0.5, 0.9, 0.999)
BASE, PARENT = Origin("0" * 64, "t"), Origin("1" * 64, "t")


def values(kind: str, n: int, seed: int) -> Tensor:
    """Return task vectors with difficult values."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(n, generator=generator)
    return {
        "normal": normal,
        "coarse": (2 * normal).round() / 2,
        "equal": torch.ones(n) * normal.sign(),
        "zero": torch.zeros(n),
        "sparse": normal * (torch.rand(n, generator=generator) < 0.1),
        "denormal": torch.where(torch.rand(n, generator=generator) < 0.5, normal * 1e-42, 0.0),
        "wide": normal.sign() * torch.exp(20 * torch.randn(n, generator=generator)).clamp(max=1e38),
        "infinite": torch.where(torch.arange(n) % 7 == 3, math.inf, normal),
    }[kind]


def brute(taus: Sequence[Tensor], density: float) -> list[Tensor]:
    """Return the kept entries by sorting: largest first, equal ones by index."""
    flat = torch.cat(list(taus))
    size, k = flat.abs().tolist(), max(1, int(density * flat.numel()))
    stay = sorted(range(len(size)), key=lambda i: (-size[i], i))[:k]
    out = torch.zeros_like(flat)
    out[stay] = flat[stay]
    return list(out.split([tau.numel() for tau in taus]))


def delta(tau: Tensor, memory: Memory | None = None, tensor: str = "t", dtype: torch.dtype = torch.float32) -> Delta:
    base, parent = replace(BASE, tensor=tensor), replace(PARENT, tensor=tensor)
    p = Parameters({}, {}, dtype, base=base, parents=(parent,), memory=memory)
    return Delta(lambda: torch.zeros_like(tau), lambda: tau, p, 0)


def kept(tau: Tensor, trim: Trim | None) -> Tensor:
    return tau if trim is None else trim.apply(tau, 0)


KINDS = ("normal", "coarse", "equal", "zero", "sparse", "denormal", "wide", "infinite")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 50, 700])
@pytest.mark.parametrize("room", [None, 0, 1 << 20])
def test_the_largest_stay(kind, n, room, monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK", {"cpu": 64})
    memory = None if room is None else Memory(room)
    tau = values(kind, n, seed=n)
    for density in DENSITIES:
        (trim,) = trims([delta(tau, memory)], [n], density)
        assert torch.equal(kept(tau, trim), brute([tau], density)[0]), density


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("room", [None, 0, 1 << 20])
def test_the_largest_of_several_tensors_stay(kind, room):
    taus = [values(kind, n, seed=n) * scale for n, scale in ((90, 1.0), (1, 1.0), (300, 0.5), (40, 1.0))]
    memory = None if room is None else Memory(room)
    for density in DENSITIES:
        deltas = [delta(tau, memory, tensor=str(i)) for i, tau in enumerate(taus)]
        made = trims(deltas, [tau.numel() for tau in taus], density)
        for tau, trim, expected in zip(taus, made, brute(taus, density), strict=True):
            assert torch.equal(kept(tau, trim), expected), density


def test_an_undefined_entry_is_among_the_largest_and_stays():
    tau = torch.tensor([1.0, math.nan, 3.0, 2.0])
    for memory in (None, Memory()):
        assert kept(tau, trims([delta(tau, memory)], [4], 0.5)[0]).nan_to_num(-1).tolist() == [0.0, -1.0, 3.0, 0.0]
        assert kept(tau, trims([delta(tau, memory)], [4], 0.25)[0]).isnan().any()


@pytest.mark.parametrize("compiled", [True, False])
def test_a_memory_reads_a_tensor_once_and_has_a_limit(compiled, monkeypatch):
    if compiled and library.library() is None:
        pytest.skip("no compiler")
    if not compiled:
        monkeypatch.setattr(fused, "library", lambda: None)
    tau, memory, looks = values("normal", 1000, 0), Memory(1500), []

    def look() -> Tensor:
        looks.append(1)
        return tau

    counted = replace(delta(tau, memory), theta=look)
    assert counted.histogram() is counted.histogram()
    assert counted.histogram().codes is not None
    assert len(looks) == 1  # to count, and to assign codes
    assert delta(values("normal", 1000, 1), memory, tensor="other").histogram().codes is None  # the limit is reached


def test_contents_without_a_name_are_not_remembered():
    memory, one, other = Memory(), values("normal", 100, 0), values("normal", 100, 1)
    for tau in (one, other):
        nameless = replace(delta(tau, memory).p, parents=(Origin("", "t"),))
        (trim,) = trims([replace(delta(tau), p=nameless)], [100], 0.3)
        assert torch.equal(kept(tau, trim), brute([tau], 0.3)[0])


# --- ties over a model ---


def whole_model(memory: Memory | None, density: Any = 0.3, scope: Any = "model") -> tuple[list[Site], list[Any]]:
    """Make three tensors of two parents: (sites, (base, parents) of each)."""
    generator = torch.Generator().manual_seed(4)
    sites, tensors = [], []
    for index, shape in enumerate([(30, 4), (7,), (50, 3)]):
        base = torch.randn(shape, generator=generator)
        parents = [base + (0.1 + index) * torch.randn(shape, generator=generator) for _ in range(2)]
        shared: dict[str, Any] = {"normalize": True, "lambda": 1.0, "rescale": False}
        shared |= {"sign_method": "magnitude", "trim_scope": "model"}
        if not isinstance(scope, str):
            shared["trim_scope"] = scope[index]
        own = {"weight": (0.5, 0.8), "density": (density if isinstance(density, float) else density[index], 0.6)}
        origins = tuple(Origin(str(i) * 64, f"t{index}") for i in range(3))
        p = Parameters(shared, own, base=origins[0], parents=origins[1:], memory=memory)
        sites.append(Site(lambda b=base: b, tuple(lambda q=parent: q for parent in parents), p))
        tensors.append((base, parents))
    return sites, tensors


def surveyed(sites: list[Site], tensors: list[Any]) -> list[Tensor]:
    ties = method("ties")
    assert ties.survey is not None
    facts = ties.survey(sites)
    assert facts is not None
    assert len(facts) == len(sites)
    return [
        ties.merge(base, parents, replace(site.parameters, survey=fact))
        for site, (base, parents), fact in zip(sites, tensors, facts, strict=True)
    ]


@pytest.mark.parametrize("memory", [None, Memory()])
def test_ties_with_one_threshold_is_ties_of_the_concatenated_task_vector(memory):
    sites, tensors = whole_model(memory)
    shared = {**sites[0].parameters.shared, "trim_scope": "tensor"}
    p = Parameters(shared, sites[0].parameters.own)
    flat_base = torch.cat([base.view(-1) for base, _ in tensors])
    flat_parents = [torch.cat([parents[i].view(-1) for _, parents in tensors]) for i in range(2)]
    expected = method("ties").merge(flat_base, flat_parents, p)
    out = torch.cat([merged.view(-1) for merged in surveyed(sites, tensors)])
    assert torch.equal(out, expected)
    by_tensor = torch.cat([method("ties").merge(base, parents, p).view(-1) for base, parents in tensors])
    assert not torch.equal(out, by_tensor)


def test_tensors_may_be_left_out_of_the_one_threshold():
    sites, tensors = whole_model(None, scope=("tensor", "model", "model"))
    merged = surveyed(sites, tensors)
    base, parents = tensors[0]
    assert torch.equal(merged[0], method("ties").merge(base, parents, sites[0].parameters))
    rest_sites, rest_tensors = sites[1:], tensors[1:]
    for ours, alone in zip(merged[1:], surveyed(rest_sites, rest_tensors), strict=True):
        assert torch.equal(ours, alone)


def test_no_survey_without_trim_scope_model():
    sites, _ = whole_model(None, scope=("tensor",) * 3)
    survey = method("ties").survey
    assert survey is not None
    assert survey(sites) is None


def test_one_threshold_takes_one_density():
    sites, tensors = whole_model(None, density=(0.3, 0.3, 0.5))
    reason = r"materialize: ties: model 1 has density 0.3 at one tensor and 0.5 at another.*one density for the whole"
    with pytest.raises(CandidateError, match=reason):
        surveyed(sites, tensors)
