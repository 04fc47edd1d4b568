"""A live model spread over several devices: runs of layers on each, and all that is around the layers on the first.

Embeddings, final norm and head stand on one device, so that who feeds the model and reads its logits sees a model on
one device. Between two runs of layers, and from the last one to the final norm, hidden states, masks and rotary
positions are moved by forward pre-hooks; keys and values stay where their layer is. The hooks are torch's own: a layer
that is copied with them (routes) is fed as the original is, which a replaced `forward` (accelerate) would not do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evosearch.checkpoints.disk_space import GIB
from evosearch.errors import CheckpointError

ROOM = 0.8  # of a device's free memory may be weights: the rest is for activations, merges, keys and values
_HALVINGS = 60  # of the interval that the fullest device's share lies in: to the last bit of a float


@dataclass(frozen=True)
class Spread:
    """Devices of one worker, and the bytes of each that weights may take."""

    devices: tuple[torch.device, ...]
    room: tuple[int, ...]

    @classmethod
    def over_cards(cls, count: int) -> "Spread":
        """The first cards that this process sees, with what is free on them."""
        devices = tuple(torch.device("cuda", index) for index in range(count))
        return cls(devices, tuple(int(ROOM * torch.cuda.mem_get_info(device)[0]) for device in devices))


def share_out(layers: Sequence[int], ends: int, room: Sequence[int]) -> tuple[int, ...] | None:
    """The device of each layer: in order, one run of layers a device, the fullest device as little full as can be.

    Args:
        layers: bytes of each layer, in order.
        ends: bytes of all else, which is on the first device.
        room: bytes that each device has for weights.

    Returns:
        One index into `room` a layer, never falling; None where they do not fit.
    """
    low, high = 0.0, 1.0
    best = _filled(layers, ends, room, high)
    if best is None:
        return None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = _filled(layers, ends, room, middle)
        if found is None:
            low = middle
        else:
            best, high = found, middle
    return best


def _filled(layers: Sequence[int], ends: int, room: Sequence[int], share: float) -> tuple[int, ...] | None:
    """Devices filled one after the other to a share of their room; None where some layers are left over."""
    device, used, found = 0, float(ends), list[int]()
    if used > share * room[0]:
        return None
    for size in layers:
        while used + size > share * room[device]:
            device, used = device + 1, 0.0
            if device == len(room):
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
    """Put each layer of a model on its device, what is around them on the first, and have inputs follow.

    Args:
        path: where the model has its list of layers, as `model.layers`.
        also: layer → bytes to be counted with it beside its own.
        order: the layers in the order in which they are shared out; their own where none is given.

    Raises:
        CheckpointError: the model does not fit on them.
    """
    parent = model.get_submodule(path.rpartition(".")[0])
    layers = list(model.get_submodule(path).children())
    order = order or range(len(layers))
    sizes = [_bytes(layers[index]) + (also or {}).get(index, 0) for index in order]
    inside = {id(part) for layer in layers for part in _tensors(layer)}
    ends = sum(part.nbytes for part in _tensors(model) if id(part) not in inside)
    found = share_out(sizes, ends, over.room)
    if found is None:
        needed, there = (sum(sizes) + ends) / GIB, [size / GIB for size in over.room]
        what = f"the model has {needed:.1f} GiB, and its worker's {len(there)} devices room for "
        what += " + ".join(f"{size:.1f}" for size in there)
        raise CheckpointError("workers.gpus_per_worker", what, next="Give each worker more of them")
    moved: dict[tuple[int, torch.device], Tensor] = {}  # (a tensor's id, device) → it there: tied ones stay one
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
    """A module's own parameters and buffers on a device; not those of its parts."""
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
    """Tensors on a device, in whatever plain thing; caches are left alone, since they have a place for each layer."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if type(value) in (tuple, list):
        return type(value)(_moved(one, device) for one in value)
    if type(value) is dict:
        return {key: _moved(one, device) for key, one in value.items()}
    return value
