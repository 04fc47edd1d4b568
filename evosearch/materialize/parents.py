"""The parents' tensors, loaded once for all candidates: mapped from files, or on the device if they fit."""

from collections.abc import Callable, Mapping

import torch

from evosearch.checkpoints.reader import Checkpoint

HEADROOM = 2.0  # free device memory required to keep the parents there, as a multiple of their size
Tensors = dict[str, dict[str, torch.Tensor]]  # reference → name → tensor


def hold(
    checkpoints: Mapping[str, Checkpoint],
    device: torch.device,
    needed: Callable[[str, str], bool] = lambda reference, name: True,
) -> Tensors:
    """Load the tensors of all checkpoints. Tensors that checkpoints share (an adapter and its base) are loaded once.

    Args:
        checkpoints: Reference → checkpoint.
        device: Device to keep the tensors on if they fit.
        needed: (reference, name) → whether candidates use this tensor.
    """
    held: dict[tuple[int, str], torch.Tensor] = {}

    def load(checkpoint: Checkpoint, name: str) -> torch.Tensor:
        while (under := checkpoint.shares(name)) is not None:
            checkpoint = under
        key = (id(checkpoint), name)
        if key not in held:
            held[key] = checkpoint.load(name)
        return held[key]

    tensors = {
        reference: {name: load(checkpoint, name) for name in checkpoint.tensors if needed(reference, name)}
        for reference, checkpoint in checkpoints.items()
    }
    if device.type != "cuda":
        return tensors
    size = sum(tensor.numel() * tensor.element_size() for tensor in held.values())
    if _free(device) <= HEADROOM * size:
        return tensors
    moved = {id(tensor): tensor.to(device) for tensor in held.values()}
    return {reference: {name: moved[id(tensor)] for name, tensor in own.items()} for reference, own in tensors.items()}


def _free(device: torch.device) -> float:
    """Return the bytes of GPU memory that this process may still allocate, within its share of the GPU."""
    free, total = torch.cuda.mem_get_info(device)
    share = torch.cuda.get_per_process_memory_fraction(device)
    return min(float(free), share * total - torch.cuda.memory_allocated(device))
