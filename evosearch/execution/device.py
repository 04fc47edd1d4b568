"""Devices of a worker: selection, spreading a model over several GPUs, and unrecoverable CUDA errors."""

import socket
from collections.abc import Iterator

import torch

from evosearch.errors import SpecError
from evosearch.evaluation.engine.out_of_memory import out_of_memory
from evosearch.materialize.spread import Spread

CUDA_ERROR = "CUDA error"  # in the message of a plain RuntimeError, for errors without a class in torch


def device_of(name: str) -> torch.device:
    """Return the device with its index, as tensors on a GPU report it.

    Args:
        name: `auto`, `cpu` or `cuda`.

    Raises:
        SpecError: `cuda` is requested, but torch sees no GPU here.
    """
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    if device.type == "cuda" and not torch.cuda.is_available():
        what = f"this worker must score on a GPU, but torch sees none on {socket.gethostname()}"
        next = "Check `nvidia-smi`, CUDA_VISIBLE_DEVICES and torch's build on that node"
        raise SpecError("workers.device", what, "cpu, to score on its CPU", next)
    return torch.device("cuda", 0) if device == torch.device("cuda") else device


def spread_of(device: torch.device, share: float) -> Spread | None:
    """Return the GPUs that a worker's model is spread over, or None for a single device.

    Raises:
        SpecError: This worker sees fewer GPUs than `share`.
    """
    if device.type != "cuda" or share < 2:
        return None
    seen = torch.cuda.device_count()
    if seen < share:
        what = f"got {share:g}, but this worker sees {seen} GPUs"
        raise SpecError("workers.gpus_per_worker", what, f"At most {seen}", "Check CUDA_VISIBLE_DEVICES on its node")
    return Spread.over_cards(int(share))


def unrecoverable(error: BaseException) -> str | None:
    """Return the reason, in one line, why this process can no longer use its GPU; None for any other error.

    After an illegal access, a failed kernel assertion or a hardware memory error, every further CUDA call of the
    process fails with the same error. Out of memory is the only CUDA error after which the device is still usable. The
    error's causes and contexts are searched too.
    """
    for one in _chain(error):
        plain = isinstance(one, RuntimeError) and CUDA_ERROR in str(one)
        if (plain or isinstance(one, torch.AcceleratorError)) and not out_of_memory(one):
            return next(iter(str(one).splitlines()), type(one).__name__)
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its chain of causes and contexts."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__
