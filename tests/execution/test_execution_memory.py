"""Batch sizes from measured memory: the arithmetic, and measurements of real passes."""

import gc
import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from evosearch.evaluation.engine.out_of_memory import out_of_memory
from evosearch.evaluation.engine.probe import logits_of, run_packed
from evosearch.execution import memory
from evosearch.execution.memory import CEILING, FLOOR, GIB, DeviceMemory, Growth

COEFFICIENTS = st.tuples(st.integers(0, 2**30), st.integers(0, 2**22), st.integers(0, 64))


@given(COEFFICIENTS)
def test_three_peaks_determine_the_coefficients(numbers: tuple[int, int, int]) -> None:
    true = Growth(*map(float, numbers))
    sizes = (512, 1024, 2048)
    found = Growth.of(sizes, [true.at(size) for size in sizes])
    assert (found.fixed, found.token, found.pair) == pytest.approx(numbers, rel=1e-6, abs=1e-2)


def test_negative_coefficients_are_clipped_to_zero() -> None:
    falling = Growth.of((512, 1024, 2048), (1000.0, 1400.0, 1500.0))  # fewer bytes per token in the last pass
    assert falling.pair == 0
    assert falling.token == pytest.approx(400 / 512)
    assert falling.fixed >= 0
    assert Growth.of((1, 2, 4), (5.0, 4.0, 3.0)) == Growth(5.0, 0.0, 0.0)


def searched(budgets: list[float], *growths: Growth) -> tuple[int, list[int]]:
    """Return the result of `largest_pass`, and the passes it measured."""
    runs: list[int] = []

    def peaks(size: int) -> list[float]:
        runs.append(size)
        return [growth.at(size) for growth in growths]

    return memory.largest_pass(peaks, budgets)[0], runs


def test_the_largest_fitting_pass_is_found_without_trying_larger_ones() -> None:
    """8192 tokens take 0.1 + 12 + 0.375 GiB, 16384 tokens 25.6 GiB."""
    growth = Growth(0.1 * GIB, 1.5 * 2**20, 6.0)
    assert searched([16.95 * GIB], growth) == (8192, [512, 1024, 2048, 4096, 8192])
    assert searched([12.4 * GIB], growth) == (4096, [512, 1024, 2048, 4096])


@given(COEFFICIENTS, st.integers(0, 2**40))
def test_budgets_are_powers_of_two_within_bounds_and_fit(numbers: tuple[int, int, int], own: int) -> None:
    growth = Growth(*map(float, numbers))
    found, runs = searched([float(own)], growth)
    assert found.bit_count() == 1
    assert FLOOR <= found <= CEILING
    if found > FLOOR:
        assert growth.at(found) <= own
    if FLOOR < found < CEILING:
        assert growth.at(2 * found) > own * (1 - 1e-6)
    assert max(runs) <= 2 * max(found, 1024), "only the first three passes may exceed the budget"


def test_a_pass_above_its_prediction_is_rejected() -> None:
    taken = {512: 1.0, 1024: 2.0, 2048: 4.0, 4096: 50.0}
    assert memory.largest_pass(lambda size: [taken[size]], [40.0])[0] == 2048
    assert memory.largest_pass(lambda size: [math.inf if size > 512 else 1.0], [40.0])[0] == 512
    assert memory.largest_pass(lambda size: [math.inf], [40.0]) == (FLOOR, ())


def test_the_gpu_with_the_least_memory_decides() -> None:
    light, heavy = Growth(0, 1000, 0), Growth(0, 4000, 0)
    assert searched([1e7, 1e7], light, heavy)[0] == searched([1e7], heavy)[0] == 2048
    assert searched([1e7, 1e9], light, heavy)[0] == searched([1e7], light)[0] == 8192


def memory_of(available: float, cached: float) -> DeviceMemory:
    return DeviceMemory("cuda:0", int(80 * GIB), int(available * GIB), cached, int(GIB))


def test_cached_tokens_are_limited_by_gpu_memory() -> None:
    """At 0.5 MiB a token, 32768 tokens take 16 GiB, and 20 GiB while growing; half of 0.8 · 10 GiB is 4 GiB."""
    tight, roomy = memory_of(10, 0.5 * 2**20), memory_of(70, 0.5 * 2**20)
    assert memory.cacheable([roomy], 32768) == 32768
    assert memory.cacheable([roomy, tight], 32768) == 4096
    assert memory.cacheable([tight], 3000) == 3000
    assert memory.cacheable([memory_of(0, 0.5 * 2**20)], 32768) == FLOOR
    assert memory.cacheable([memory_of(0, 0.0)], 32768) == 32768, "a model without a cache"


def test_the_budget_of_a_pass_excludes_logits_and_caches() -> None:
    assert memory.pass_budget(memory_of(24, 32 * 1024.0), 32768) == pytest.approx((0.8 * 24 - 1 - 1.25) * GIB)
    assert memory.pass_budget(memory_of(0, 1.0), 1) < 0


@pytest.mark.parametrize(
    ("before", "caching", "after"),
    [
        ((8192, 32768), False, (4096, 32768)),
        ((8192, 32768), True, (4096, 16384)),
        ((300, 32768), False, (256, 32768)),
        ((256, 32768), False, None),
        ((256, 32768), True, (256, 16384)),
        ((256, 256), True, None),
        ((64, 100), True, None),
    ],
)
def test_halving(before: tuple[int, int], caching: bool, after: tuple[int, int] | None) -> None:
    assert memory.halved(*before, caching) == after


def test_reasons_contain_old_and_new_limits() -> None:
    assert memory.changed((8192, 1), (4096, 1)) == "out of memory at 8192 tokens per batch; 4096 from now on"
    both = memory.changed((256, 2048), (256, 1024))
    assert both == "out of memory at 256 tokens per batch; 256 from now on, and 1024 cached tokens instead of 2048"


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25, 0.1])
def test_shares_of_a_gpu_reserve_memory_for_the_cuda_context(share: float) -> None:
    for total in (8 * 2**30, 80 * 2**30):
        own = memory.allowed(total, share)
        assert share * total / 2 <= own <= share * total
        if share < 1 and share * total > 2 * memory.CONTEXT:
            assert own + memory.CONTEXT == share * total


def test_out_of_memory_errors_are_recognized() -> None:
    with pytest.raises(RuntimeError) as host:
        torch.empty(2**60)
    assert out_of_memory(host.value), host.value
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory(ValueError("can't allocate memory"))


class Live(TorchDispatchMode):
    """Count of the bytes of live tensors and their peak, as in an allocator."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def peak(model: Any, tokens: int) -> int:
    gc.collect()
    with Live() as live:
        run_packed(model, tokens, 64)
    return live.peak


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen2MoeForCausalLM"])
def test_three_passes_predict_the_memory_of_the_next(architecture: str, random_model: Callable[..., Path]) -> None:
    import transformers

    model = getattr(transformers, architecture).from_pretrained(random_model(architecture)).eval()
    run_packed(model, 128, 64)
    sizes = (512, 1024, 2048)
    growth = Growth.of(sizes, [float(peak(model, size)) for size in sizes])
    assert growth.pair >= 4, "a mask entry is four bytes in float32"
    taken = peak(model, 4096)
    assert 0.95 * taken <= growth.at(4096) <= 1.1 * taken  # the number of tokens per expert varies


def test_a_probe_measures_keys_and_values(random_model: Callable[..., Path]) -> None:
    import transformers

    folder = random_model("LlamaForCausalLM")
    model = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    config = model.config
    of_a_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert run_packed(model, 256, 64) == {torch.device("cpu"): 256 * of_a_token}
    with Live() as live:
        logits_of(model, 32)
    assert live.peak >= 32 * config.vocab_size * 4
