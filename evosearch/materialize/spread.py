"""Live models spread over several devices: a run of layers on each, and everything else on the first.

Embeddings, final norm and head are on one device, so that inputs and logits are those of a model on a single device.
Between two runs of layers, and from the last one to the final norm, forward pre-hooks move hidden states, masks and
rotary positions; keys and values stay on the device of their layer. They are torch's own hooks, which copies of a layer
(for routes) keep; a replaced `forward`, as in accelerate, would be lost.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evosearch.checkpoints.disk_space import GIB
from evosearch.errors import CheckpointError

WEIGHTS_SHARE = 0.8  # of a device's free memory; the rest is for activations, merges, keys and values
_BISECTIONS = 60  # of the fullest device's share: to the last bit of a float


@dataclass(frozen=True)
class Spread:
    """The devices of one worker.

    Attributes:
        devices: The devices; the first also has everything outside of the layers.
        capacity: Bytes of weights that each device may have.
    """

    devices: tuple[torch.device, ...]
    capacity: tuple[int, ...]

    @classmethod
    def over_cards(cls, count: int) -> "Spread":
        """Return the first GPUs that this process sees, with capacities from their free memory."""
        devices = tuple(torch.device("cuda", index) for index in range(count))
        return cls(devices, tuple(int(WEIGHTS_SHARE * torch.cuda.mem_get_info(device)[0]) for device in devices))


def share_out(layers: Sequence[int], ends: int, capacity: Sequence[int]) -> tuple[int, ...] | None:
    """Assign layers to devices, one run of layers per device, such that the fullest device is as empty as possible.

    Args:
        layers: Bytes of each layer, in order.
        ends: Bytes of everything else, which is on the first device.
        capacity: Bytes of weights that each device may have.

    Returns:
        The index of each layer's device, in ascending order; None if the layers do not fit.
    """
    low, high = 0.0, 1.0
    best = _filled(layers, ends, capacity, high)
    if best is None:
        return None
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        found = _filled(layers, ends, capacity, middle)
        if found is None:
            low = middle
        else:
            best, high = found, middle
    return best


def _filled(layers: Sequence[int], ends: int, capacity: Sequence[int], share: float) -> tuple[int, ...] | None:
    """Fill devices one by one up to a share of their capacity; return None if some layers are left over."""
    device, used, found = 0, float(ends), list[int]()
    if used > share * capacity[0]:
        return None
    for size in layers:
        while used + size > share * capacity[device]:
            device, used = device + 1, 0.0
            if device == len(capacity):
                return None
        used += size
        found.append(device)
    return tuple(found)


def spread(
    model: nn.Module,
    path: str,
    over: Spread,
    also: Mapping[int, int] | None = None,
    order: Sequence[int] | None = None,
) -> None:
    """Move each layer of a model to its device and everything else to the first, and hook inputs to follow.

    Args:
        model: The model.
        path: Path of the model's list of layers, such as `model.layers`.
        over: The devices.
        also: Layer → bytes to count in addition to its own.
        order: Order in which layers are assigned to devices; by default that of the model.

    Raises:
        CheckpointError: The model does not fit.
    """
    parent = model.get_submodule(path.rpartition(".")[0])
    layers = list(model.get_submodule(path).children())
    order = order or range(len(layers))
    sizes = [_bytes(layers[index]) + (also or {}).get(index, 0) for index in order]
    inside = {id(part) for layer in layers for part in _tensors(layer)}
    ends = sum(part.nbytes for part in _tensors(model) if id(part) not in inside)
    found = share_out(sizes, ends, over.capacity)
    if found is None:
        needed, there = (sum(sizes) + ends) / GIB, [size / GIB for size in over.capacity]
        what = f"the model has {needed:.1f} GiB, but the {len(there)} devices of a worker have room for "
        what += " + ".join(f"{size:.1f}" for size in there)
        raise CheckpointError("workers.gpus_per_worker", what, next="Give each worker more GPUs")
    moved: dict[tuple[int, torch.device], Tensor] = {}  # (id of a tensor, device) → moved tensor: ties are kept
    for index, device in zip(order, found, strict=True):
        for module in layers[index].modules():
            _move(module, over.devices[device], moved)
        _follow(layers[index], over.devices[device])
    within = {id(module) for layer in layers for module in layer.modules()}
    for module in model.modules():
        if id(module) not in within:
            _move(module, over.devices[0], moved)
    for part in (*parent.children(), model.get_output_embeddings()):  # type: ignore[operator]
        if part is not model.get_submodule(path):
            _follow(part, over.devices[0])


def _move(module: nn.Module, device: torch.device, moved: dict[tuple[int, torch.device], Tensor]) -> None:
    """Move a module's own parameters and buffers to a device, without those of its children."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            key = (id(parameter), device)
            if key not in moved:
                moved[key] = nn.Parameter(parameter.detach().to(device), requires_grad=False)
            module._parameters[name] = moved[key]  # type: ignore[assignment]
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = buffer.to(device)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _bytes(module: nn.Module) -> int:
    return sum(part.nbytes for part in _tensors(module))


def _follow(module: nn.Module, device: torch.device) -> None:
    module.register_forward_pre_hook(partial(_bring, device), with_kwargs=True)


def _bring(device: torch.device, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return _moved(args, device), _moved(kwargs, device)


def _moved(value: Any, device: torch.device) -> Any:
    """Move the tensors of nested containers to a device. Caches are skipped: they manage the device of each layer."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if type(value) in (tuple, list):
        return type(value)(_moved(one, device) for one in value)
    if type(value) is dict:
        return {key: _moved(one, device) for key, one in value.items()}
    return value
