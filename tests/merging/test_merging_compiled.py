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
from evosearch.merging.registry import Site, method, specs
from evosearch.merging.sink import Sink
from evosearch.recipe.shapes import MethodSpec, Scalar
from tests.merging.statistics import with_statistics
from tests.merging.test_merging_laws import bits, models, parameters

torch.set_num_threads(1)
SHAPES = [(7,), (5, 3), (1,), (300, 11), (310, 211)]  # the last one: more than one part, and a partial tile
COMPILED = {  # methods whose merges never take the eager path in float32
    *("linear", "task_arithmetic", "slerp", "ties", "model_stock", "breadcrumbs", "breadcrumbs_ties", "sce", "ram"),
    *("ramplus", "dare_linear", "dare_ties", "della", "della_linear", "karcher", "multislerp"),
}
OPTIONS = ("sign_method", "rescale", "normalize", "norm", "trim", "trim_scope")  # that must be drawn

pytestmark = pytest.mark.skipif(library.library() is None, reason="no compiler")


@contextmanager
def eager() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "library", lambda: None)
        yield


def merged(spec: MethodSpec, base: Tensor | None, parents: list[Tensor], p: Parameters) -> Tensor:
    """Merge one tensor, after the survey of a model that has no other; permutations have no survey without names."""
    p = with_statistics(spec, parents, p)
    survey = None if spec.aligns else method(spec.name).survey
    if survey is not None:
        loaders = tuple((lambda parent=parent: parent) for parent in parents)
        facts = survey([Site(None if base is None else lambda: base, loaders, p)])
        p = p if facts is None else replace(p, survey=facts[0])
    return method(spec.name).merge(base, parents, p)


def changed(p: Parameters, name: str, value: Scalar) -> Parameters:
    if name in p.shared:
        return replace(p, shared={**p.shared, name: value})
    return replace(p, own={**p.own, name: (value,) * len(p.own[name])})


def drawn(spec: MethodSpec, count: int) -> Iterator[tuple[dict[str, Scalar], Parameters]]:
    """Yield parameters: densities below 1, then each other choice, and each density of 1; all with both norms."""
    p = parameters(spec, count)
    options: list[dict[str, Scalar]] = [{}]
    for name, param in spec.parameters.items():
        values: tuple[Scalar, ...] = (True, False) if param.kind == "bool" else param.choices
        options += [{name: one} for one in values if one != param.default and name not in ("norm", "norm_scope")]
        if param.open_low and param.strict:
            options.append({name: 1.0})
    scales: list[dict[str, Scalar]] = [{}]
    if "norm_scope" in spec.parameters:
        scales += [{"norm": "equal"}, {"norm": "equal", "norm_scope": "model"}]
    elif "norm" in spec.parameters:
        scales.append({"norm": "match"})
    for option in options:
        for scale in scales:
            q, both = p, {**option, **scale}
            for name, one in both.items():
                q = changed(q, name, one)
            yield both, q


@pytest.fixture(params=specs().keys())
def spec(request: pytest.FixtureRequest) -> MethodSpec:
    return specs()[request.param]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_have_the_bits_of_the_eager_functions(spec: MethodSpec, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        base, parents = models(spec, shape)
        base, parents = (None if base is None else base.to(dtype)), [parent.to(dtype) for parent in parents]
        for variant, p in drawn(spec, len(parents)):
            found = merged(spec, base, parents, p)
            with eager():
                assert torch.equal(bits(found), bits(merged(spec, base, parents, p))), (shape, variant)


@pytest.mark.parametrize("poison", [None, torch.nan, torch.inf])
@pytest.mark.parametrize("weights", [(-0.5, 0.7, -1.0), (0.5, -0.5, 0.0), (0.0, 0.0, 0.0)])
def test_have_the_bits_with_equal_entries_and_any_weights(
    spec: MethodSpec, weights: tuple[float, ...], poison: float | None
) -> None:
    base, parents = models(spec, (40, 9))
    parents = [parent.round(decimals=1) for parent in parents]  # many equal changes
    if base is not None:
        base = base.round(decimals=1)  # and many of zero
        base.view(-1)[::3] = -0.0
    if poison is not None:
        parents[-1][0, 4] = poison
    for variant, p in drawn(spec, len(parents)):
        if "weight" in p.own:
            p = replace(p, own={**p.own, "weight": weights[: len(parents)]})
        found, wanted = _or_reason(merged, spec, base, parents, p), _or_reason(_eagerly, spec, base, parents, p)
        if isinstance(found, str) or isinstance(wanted, str):
            assert found == wanted, variant
        else:
            assert torch.equal(found.isnan(), wanted.isnan()), variant
            assert torch.equal(bits(_without_nan(found)), bits(_without_nan(wanted))), variant


def _without_nan(tensor: Tensor) -> Tensor:
    return tensor.nan_to_num(0.0, torch.inf, -torch.inf)


def _or_reason(run: Callable[..., Tensor], *arguments: object) -> Tensor | str:
    try:
        return run(*arguments)
    except CandidateError as error:
        return str(error)


def test_every_option_is_drawn() -> None:
    for name, spec in specs().items():
        found = [variant for variant, _ in drawn(spec, 2)]
        for option in OPTIONS:
            assert option not in spec.parameters or any(option in variant for variant in found), (name, option)
    signs = {variant.get("sign_method") for variant, _ in drawn(specs()["ties"], 2)}
    assert signs == {None, "count", "count_strict"}


@pytest.mark.parametrize("name", sorted(COMPILED & specs().keys()))
def test_run_for_these_methods(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> Tensor:
        raise AssertionError("the eager function")

    for module in ("sums", "election", "reinforced", "combinations", "methods.sce"):
        monkeypatch.setattr(f"evosearch.merging.{module}.elementwise", refuse)
    base, parents = models(specs()[name], (50, 9))
    for variant, p in drawn(specs()[name], len(parents)):
        if not variant.get("filter_wise"):  # only eager functions have coefficients of rows
            assert merged(specs()[name], base, parents, p).isfinite().all()


@pytest.mark.parametrize("rounded", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_write_into_a_sink_what_is_rounded_afterwards(
    spec: MethodSpec, rounded: torch.dtype, stored: torch.dtype
) -> None:
    base, parents = models(spec, (300, 11))
    for variant, p in drawn(spec, len(parents)):
        wanted = merged(spec, base, parents, p).to(rounded).to(stored)
        for run in (merged, _eagerly):
            sink = Sink(torch.full((300, 11), torch.nan, dtype=stored), rounded)
            sink.take(run(spec, base, parents, replace(p, sink=sink)))
            assert torch.equal(sink.tensor, wanted), variant
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
    except CandidateError as error:  # says so itself
        assert "not finite" in str(error)  # noqa: PT017
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


@pytest.mark.parametrize("name", [name for name, spec in specs().items() if spec.random])
@pytest.mark.parametrize("rescale", [True, "l1"])
def test_remembered_lanes_give_the_same_masks(name: str, rescale: Scalar, monkeypatch: pytest.MonkeyPatch) -> None:
    """Densities whose limit is a whole upper byte, one above and one below it, and extreme ones; NaN stays."""
    spec, drawn_keys, memory = specs()[name], [], Memory()
    base, parents = models(spec, (330, 211))  # more than one part, and a partial tile
    parents[1][7, 3] = torch.nan
    real = fused.upper_bytes
    monkeypatch.setattr(fused, "upper_bytes", lambda *given: drawn_keys.append(given) or real(*given))
    p = changed(parameters(spec, len(parents)), "rescale", rescale)
    for density in (0.5, 0.5 + 2**-32, 0.5 - 2**-32, 0.3, 2**-9, 2**-32, 1 - 2**-9):
        p = changed(p, "density", density)
        found = merged(spec, base, parents, replace(p, memory=memory))
        assert torch.equal(bits(found), bits(_eagerly(spec, base, parents, p))), density
    assert len(drawn_keys) == len(parents), "once for each model"
    merged(spec, base, parents, replace(p, memory=memory, seed=p.seed + 1))
    assert len(drawn_keys) == 2 * len(parents), "and for each seed"
    found = merged(spec, base, parents, replace(p, memory=Memory(parents[0].numel() - 1)))
    assert len(drawn_keys) == 2 * len(parents), "no room"
    assert torch.equal(bits(found), bits(_eagerly(spec, base, parents, p)))


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
        ({"CXX": "'c++"}, True),
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
