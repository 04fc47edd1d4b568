"""Models spread over devices: the assignment of layers, and the movement of inputs between devices.

The tests simulate two devices without GPUs: tensor subclasses that claim a device and raise an error when they meet
tensors of another one. Values are computed on the CPU; the tests check the claimed devices. As on a GPU, an operation
takes tensors of one device, scalars, or indices from the host; only copies move between devices.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from evosearch.checkpoints.families.registry import all_families
from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import CheckpointError
from evosearch.evaluation.engine.generation import generate
from evosearch.evaluation.engine.generation_plan import Decoder, GenerationRequest, lay_out_generations
from evosearch.evaluation.engine.loglikelihood import LoglikelihoodRequest, lay_out, score_loglikelihoods
from evosearch.evaluation.engine.score_options import ScoreOptions
from evosearch.materialize.in_memory import ResidentModel
from evosearch.materialize.routed import ResidentRoute
from evosearch.materialize.spread import Spread, share_out
from evosearch.recipe.schema import Recipe

PLENTY = (1 << 30, 1 << 30)

NAME = "pair"
_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
_INDEXED = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default}


class Elsewhere(torch.Tensor):
    """A tensor on one of two simulated devices."""

    inner: torch.Tensor
    index: int

    @staticmethod
    def __new__(cls, inner: torch.Tensor, index: int) -> "Elsewhere":
        made: Elsewhere = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, index),
        )
        made.inner, made.index = inner, index
        return made

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Nothing:
    """The module `torch.pair`, which reports no devices to code that looks for some."""

    def is_available(self) -> bool:
        return False

    def is_initialized(self) -> bool:
        return False

    def device_count(self) -> int:
        return 0

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass


class _Absent(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return False

    def has_primary_context(self, dev_id: int) -> bool:
        return False

    def is_built(self) -> bool:
        return True


@contextmanager
def two_devices() -> Iterator[tuple[torch.device, torch.device]]:
    """Provide the two devices within the context."""
    if torch._C._get_privateuse1_backend_name() != NAME:
        _setup_privateuseone_for_python_backend(NAME, _Nothing(), _Absent())
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(…, device=…)` creates it here and then copies
    try:
        with _Mode():
            yield torch.device(NAME, 0), torch.device(NAME, 1)
    finally:
        torch._C._set_only_lift_cpu_tensors(False)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func.name().partition(".")[0] in ("aten::to", "aten::type_as"):
        with _Mode():  # comes to a copy where there is anything to be done
            return func.decompose(*args, **kwargs)
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    there = {each.index for each in tensors if isinstance(each, Elsewhere)}
    asked, kwargs = kwargs.get("device"), dict(kwargs)
    if asked is not None and torch.device(asked).type == NAME:
        kwargs["device"] = torch.device("cpu")
    if func not in _COPIES:
        _check(func, args, tensors, there)
    out = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if func._schema.name.endswith("_") and isinstance(args[0], torch.Tensor):
        return args[0]
    index = _index(asked) if asked is not None else next(iter(there), None)
    return (
        tree_map(lambda x: Elsewhere(x, index) if isinstance(x, torch.Tensor) else x, out) if index is not None else out
    )


def _check(func: Any, args: Any, tensors: list[torch.Tensor], there: set[int]) -> None:
    if func in _INDEXED:
        tensors = [args[0], *(each for each in tensors if isinstance(each, Elsewhere))]
    here = [each for each in tensors if not isinstance(each, Elsewhere) and each.dim()]
    if len(there) > 1 or (there and here):
        where = sorted({str(each.device) for each in tensors})
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found {', '.join(where)}")


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Elsewhere) else value


def _index(device: Any) -> int | None:
    device = torch.device(device)
    return (device.index or 0) if device.type == NAME else None


# --- which layer goes where ---


def test_layers_are_shared_out_evenly() -> None:
    assert share_out([10] * 8, 0, [1000, 1000]) == (0, 0, 0, 0, 1, 1, 1, 1)
    assert share_out([10] * 8, 20, [1000, 1000]) == (0, 0, 0, 1, 1, 1, 1, 1), "the first device has the embeddings"
    assert share_out([10] * 6, 0, [1000, 2000]) == (0, 0, 1, 1, 1, 1), "a larger device takes more"
    assert share_out([10] * 9, 30, [1000, 1000, 1000]) == (0, 1, 1, 1, 1, 2, 2, 2, 2)


def test_layers_that_fit_only_just() -> None:
    assert share_out([10, 10, 10], 5, [15, 20]) == (0, 1, 1)
    assert share_out([10, 10, 10], 5, [14, 20]) is None
    assert share_out([10, 10, 10], 16, [15, 40]) is None
    assert share_out([30], 0, [10, 30]) == (1,), "nothing fits on the first but what is around the layers"


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=12),
    st.integers(0, 60),
    st.lists(st.integers(1, 200), min_size=1, max_size=4),
)
def test_the_fullest_device_is_as_empty_as_possible(layers: list[int], ends: int, room: list[int]) -> None:
    """Compare with exhaustive search over all cuts between devices."""
    from itertools import combinations_with_replacement, pairwise

    def fullest(cuts: tuple[int, ...]) -> float:
        bounds = (0, *cuts, len(layers))
        loads = [sum(layers[a:b]) for a, b in pairwise(bounds)]
        loads[0] += ends
        return max(load / own for load, own in zip(loads, room, strict=True))

    best = min(map(fullest, combinations_with_replacement(range(len(layers) + 1), len(room) - 1)))
    found = share_out(layers, ends, room)
    if best > 1:
        assert found is None
        return
    assert found is not None
    assert list(found) == sorted(found)
    assert fullest(tuple(sum(device <= cut for device in found) for cut in range(len(room) - 1))) == pytest.approx(best)


# --- a spread model computes what it computed ---


def opened(*folders: Path) -> dict[str, Any]:
    return {str(folder): Checkpoint.open(folder) for folder in folders}


def scores(model: Any) -> tuple[Any, list[str]]:
    """Score log-likelihoods and answers with shared prefixes, packed rows, caches, and rows of different length."""
    draw = np.random.default_rng(1)
    asked = [tuple(map(int, [5, 6, 7, 8, *draw.integers(2, 40, 2 + index % 5)])) for index in range(7)]
    options = ScoreOptions(batch_tokens=24, cached_tokens=120)
    lls = score_loglikelihoods(model, lay_out([LoglikelihoodRequest((*one, 9), (9, 3)) for one in asked], options))[0]
    requests = [GenerationRequest(one, (), 2 + index % 3) for index, one in enumerate(asked)]
    return lls, generate(model, lay_out_generations(requests, Decoder(Letters()), options))[0]


class Letters:
    """The part of a tokenizer that generation needs."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))


def blend(folders: list[Path], weight: float) -> Recipe:
    models = [{"model": str(one), "parameters": {"weight": weight}} for one in folders]
    return Recipe.model_validate({"merge_method": "linear", "models": models})


def has_experts(architecture: str) -> bool:
    return any("expert" in key for key in getattr(transformers, architecture).config_class().to_dict())


# The simulated devices do not support the splitting and sorting of tensors in experts, nor the expansion of a scalar
# in the mask of Gemma 2.
ON_ONE_DEVICE = {"Gemma2ForCausalLM", *filter(has_experts, all_families())}


@pytest.mark.parametrize("architecture", sorted(ON_ONE_DEVICE))
def test_hooks_change_nothing_on_one_device(architecture: str, random_model: Callable[..., Path]) -> None:
    """On one real device that is listed twice."""
    folder, cpu = random_model(architecture), torch.device("cpu")
    plain = ResidentModel(opened(folder), str(folder))
    hooked = ResidentModel(opened(folder), str(folder), over=Spread((cpu, cpu), PLENTY))
    assert sum(len(module._forward_pre_hooks) for module in hooked.model.modules()) > 3
    for resident in (plain, hooked):
        resident.materialize(blend([folder], 1.0))
    expected, answers = scores(plain.model)
    lls, texts = scores(hooked.model)
    np.testing.assert_array_equal(lls, expected)
    assert texts == answers


@pytest.mark.parametrize("architecture", sorted(set(all_families()) - ON_ONE_DEVICE))
def test_a_spread_model_scores_as_it_does_on_one_device(architecture: str, random_model: Callable[..., Path]) -> None:
    first = random_model(architecture, num_hidden_layers=4)
    folders = [first, random_model(architecture, seed=2, near=first, num_hidden_layers=4)]
    here = ResidentModel(opened(*folders), str(first))
    recipe = blend(folders, 0.5)
    here.materialize(recipe)
    expected, answers = scores(here.model)
    with two_devices() as pair:
        there = ResidentModel(opened(*folders), str(first), device=pair[0], over=Spread(pair, PLENTY))
        there.materialize(recipe)
        places = {parameter.device for parameter in there.model.parameters()}
        lls, texts = scores(there.model)
    assert places == set(pair)
    np.testing.assert_allclose(lls, expected, atol=1e-3)
    assert texts == answers


def test_without_hooks_two_devices_fail(random_model: Callable[..., Path]) -> None:
    """Check of the simulated devices: inputs that are not moved raise an error."""
    folder = random_model("LlamaForCausalLM")
    with two_devices() as pair:
        there = ResidentModel(opened(folder), str(folder), device=pair[0], over=Spread(pair, PLENTY))
        for module in there.model.modules():
            module._forward_pre_hooks.clear()
            module._forward_pre_hooks_with_kwargs.clear()
        with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
            there.model(torch.tensor([[5, 6]], device=pair[0]))


def test_routes_go_over_several_devices(random_model: Callable[..., Path]) -> None:
    """Hops change between devices, and slots change their device with their layer."""
    first = random_model("LlamaForCausalLM")
    folders = [first, random_model("LlamaForCausalLM", seed=2, near=first)]

    def route(*hops: tuple[int, int, float]) -> Recipe:
        listed = [{"model": str(folders[index]), "layer": layer, "scale": scale} for index, layer, scale in hops]
        return Recipe.model_validate({"routing": {"hops": listed}})

    frame = route((0, 0, 1.0), (1, 0, 1.0))
    routes = [
        route((0, 0, 1.0), (1, 1, 0.8), (0, 2, 1.1)),
        route((0, 2, 1.0), (1, 0, 1.2), (0, 0, 0.9), (1, 2, 1.0)),
        route((0, 1, 1.0)),
    ]
    here = ResidentRoute(opened(*folders), frame)
    expected = []
    for each in routes:
        here.materialize(each)
        expected.append(scores(here.model))
    with two_devices() as pair:
        there = ResidentRoute(opened(*folders), frame, device=pair[0], over=Spread(pair, PLENTY))
        assert {parameter.device for layer in there._stock.routed._stock for parameter in layer.parameters()} == set(
            pair
        )
        for each, (lls, texts) in zip(routes, expected, strict=True):
            there.materialize(each)
            found = scores(there.model)
            np.testing.assert_allclose(found[0], lls, atol=1e-3)
            assert found[1] == texts


def test_a_model_that_does_not_fit_is_refused(random_model: Callable[..., Path]) -> None:
    folder = random_model("LlamaForCausalLM")
    cpu = torch.device("cpu")
    with pytest.raises(CheckpointError) as caught:
        ResidentModel(opened(folder), str(folder), over=Spread((cpu, cpu), (1000, 2000)))
    assert re.match(
        r"workers.gpus_per_worker: the model has \d+\.\d GiB, but the 2 devices of a worker have room for 0\.0 \+ 0\.0",
        str(caught.value),
    )
    assert "Give each worker more GPUs" in str(caught.value)
