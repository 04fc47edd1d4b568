"""The device of a worker: which it is, over how many cards its model is spread, and when it is of no more use."""

import socket
from collections.abc import Iterator

import torch

from evosearch.errors import SpecError
from evosearch.evaluation.engine.out_of_memory import out_of_memory
from evosearch.materialize.spread import Spread

SAID = "CUDA error"  # what torch says of the CUDA runtime, where it has no class for it


def device_of(asked: str) -> torch.device:
    """The device by its full name: tensors on a GPU say which one it is.

    Args:
        asked: `auto`, `cpu` or `cuda`.

    Raises:
        SpecError: a GPU is asked for, and torch sees none here.
    """
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked)
    if device.type == "cuda" and not torch.cuda.is_available():
        what = f"a worker on {socket.gethostname()} has to score on a GPU, and torch sees none there"
        next = "Look at `nvidia-smi`, CUDA_VISIBLE_DEVICES and torch's build on that node"
        raise SpecError("workers.device", what, "cpu, where its CPU is to score", next)
    return torch.device("cuda", 0) if device == torch.device("cuda") else device


def spread_of(device: torch.device, share: float) -> Spread | None:
    """The cards that a worker's model is spread over; None where it is on one device.

    Raises:
        SpecError: there are fewer.
    """
    if device.type != "cuda" or share < 2:
        return None
    seen = torch.cuda.device_count()
    if seen < share:
        what = f"got {share:g}, and this worker sees {seen} GPUs"
        raise SpecError("workers.gpus_per_worker", what, f"At most {seen}", "See CUDA_VISIBLE_DEVICES there")
    return Spread.over_cards(int(share))


def lost(error: BaseException) -> str | None:
    """One line on why this process can use its GPU no longer, where an error, or what it was raised amid, says so.

    An illegal access, a failed assertion of a kernel or memory that broke leaves CUDA unusable until the process ends:
    whatever it is asked next fails at once with the same error. Only memory that ran out leaves it as it was.
    """
    for one in _chain(error):
        said = isinstance(one, RuntimeError) and SAID in str(one)
        if (said or isinstance(one, torch.AcceleratorError)) and not out_of_memory(one):
            return next(iter(str(one).splitlines()), type(one).__name__)
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, what caused it, what caused that."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__
