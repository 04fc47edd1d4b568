"""Compiled kernels: the bits of the eager functions for every method, and what happens without a compiler."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.merging.compiled import fused, library
from evosearch.merging.magnitudes import Delta, Trim, trims
from evosearch.merging.method_parameters import Memory, Parameters
from evosearch.merging.registry import method, specs
from evosearch.merging.sink import Sink
from evosearch.recipe.shapes import MethodSpec, Scalar
from tests.merging.test_merging_laws import bits, models, parameters

torch.set_num_threads(1)
SHAPES = [(7,), (5, 3), (1,), (300, 11), (310, 211)]  # the last one: more than one part, and a partial tile
COMPILED = {  # methods whose merges never take the eager path in float32
    *("linear", "task_arithmetic", "slerp", "ties", "model_stock", "breadcrumbs", "breadcrumbs_ties", "sce", "ram"),
    *("ramplus", "dare_linear", "dare_ties", "della", "della_linear", "karcher", "multislerp"),
}
VARIANTS: dict[str, list[dict[str, Scalar]]] = {
    "ties": [{"sign_method": "count"}, {"normalize": False}],
    "sce": [{"select_topk": 1.0}],
    "dare_ties": [{"normalize": True}, {"rescale": "l1"}],
    "dare_linear": [{"rescale": "l1"}],
    "della": [{"rescale": "l1"}, {"rescale": False}],
    "breadcrumbs": [{"rescale": "l1"}],
}

pytestmark = pytest.mark.skipif(library.library() is None, reason="no compiler")


@contextmanager
def eager() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "library", lambda: None)
        yield


def merged(spec: MethodSpec, base: Tensor | None, parents: list[Tensor], p: Parameters) -> Tensor:
    return method(spec.name).merge(base, parents, p)


@pytest.fixture(params=specs().keys())
def spec(request: pytest.FixtureRequest) -> MethodSpec:
    return specs()[request.param]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_have_the_bits_of_the_eager_functions(spec: MethodSpec, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        base, parents = models(spec, shape)
        base, parents = (None if base is None else base.to(dtype)), [parent.to(dtype) for parent in parents]
        for variant in ({}, *VARIANTS.get(spec.name, [])):
            p = parameters(spec, len(parents), **variant)
            found = merged(spec, base, parents, p)
            with eager():
                assert torch.equal(bits(found), bits(merged(spec, base, parents, p))), (shape, variant)


@pytest.mark.parametrize("name", sorted(COMPILED & specs().keys()))
def test_run_for_these_methods(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> Tensor:
        raise AssertionError("the eager function")

    for module in ("sums", "election", "reinforced", "combinations", "methods.sce"):
        monkeypatch.setattr(f"evosearch.merging.{module}.elementwise", refuse)
    base, parents = models(specs()[name], (50, 9))
    assert merged(specs()[name], base, parents, parameters(specs()[name], len(parents))).isfinite().all()


@pytest.mark.parametrize("rounded", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_write_into_a_sink_what_is_rounded_afterwards(
    spec: MethodSpec, rounded: torch.dtype, stored: torch.dtype
) -> None:
    base, parents = models(spec, (300, 11))
    p = parameters(spec, len(parents))
    wanted = merged(spec, base, parents, p).to(rounded).to(stored)
    for run in (merged, _eagerly):
        sink = Sink(torch.full((300, 11), torch.nan, dtype=stored), rounded)
        sink.take(run(spec, base, parents, replace(p, sink=sink)))
        assert torch.equal(sink.tensor, wanted)
        assert sink.extremes().isfinite().all()


def _eagerly(spec: MethodSpec, base: Tensor | None, parents: list[Tensor], p: Parameters) -> Tensor:
    with eager():
        return merged(spec, base, parents, p)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_report_values_that_are_not_finite(spec: MethodSpec, value: float) -> None:
    base, parents = models(spec, (300, 11))
    parents[-1][7, 3] = value
    p = parameters(spec, len(parents))
    sink = Sink(torch.empty((300, 11), dtype=torch.bfloat16), torch.bfloat16)
    try:
        sink.take(merged(spec, base, parents, replace(p, sink=sink)))
    except CandidateError:  # slerp says so itself
        assert spec.name == "slerp"
        return
    assert not sink.extremes().isfinite().all()


def test_have_equal_bits_on_any_number_of_threads(spec: MethodSpec) -> None:
    base, parents = models(spec, (500, 400))
    p = parameters(spec, len(parents))
    one = merged(spec, base, parents, p)
    torch.set_num_threads(4)
    try:
        assert torch.equal(merged(spec, base, parents, p), one)
        assert torch.equal(merged(spec, base, parents, replace(p, memory=Memory())), one)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("make", [lambda x: x, lambda x: x.round(decimals=1), lambda x: x * (x > 0.5)])
def test_find_the_cut_of_any_density(make: Callable[[Tensor], Tensor]) -> None:
    """With many equal magnitudes, many zeros, and negative numbers."""
    tau = make(torch.randn(70_001, generator=torch.Generator().manual_seed(3)))
    for memory in (None, Memory()):
        p = replace(parameters(specs()["ties"], 1), memory=memory)
        for density in (1e-9, 0.001, 0.2, 0.5, 0.7, 0.999, 1.0):
            delta = Delta(lambda: torch.zeros_like(tau), lambda: tau, p, 0)
            (found,) = trims([delta], [tau.numel()], density)
            order = tau.abs().argsort(descending=True, stable=True)[: max(1, int(density * tau.numel()))]
            wanted = torch.zeros_like(tau).index_copy_(0, order, tau[order])
            assert torch.equal(found.apply(tau, 0) if isinstance(found, Trim) else tau, wanted), density


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"CXX": "/nowhere/c++"}, True),
        ({"CXX": "false"}, True),
        ({"EVOSEARCH_KERNELS": "eager"}, False),
    ],
)
def test_without_a_compiler_the_eager_functions_run(environment: dict[str, str], said: bool, tmp_path: Path) -> None:
    program = """
import torch
from evosearch.merging.compiled.library import library
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import method
p = Parameters({"normalize": True}, {"weight": (1, 3)})
for _ in range(2):
    out = method("linear").merge(None, [torch.ones(3), torch.zeros(3)], p)
print(library() is None, out.tolist())
"""
    made = {**os.environ, "EVOSEARCH_CACHE": str(tmp_path), **environment}
    done = subprocess.run([sys.executable, "-c", program], env=made, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True [0.25, 0.25, 0.25]"
    assert done.stderr.count("without compiled kernels") == int(said)


def test_are_not_loaded_from_a_file_that_others_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOSEARCH_CACHE", str(tmp_path))
    file = library._built()
    before = file.stat().st_ino
    assert library._built().stat().st_ino == before
    file.chmod(0o777)
    assert library._built().stat().st_ino != before
