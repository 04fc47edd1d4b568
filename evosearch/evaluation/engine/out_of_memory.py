"""Which errors say that memory ran out, whatever device it was."""

import torch

# What torch says where it has no class for it: its allocator of host memory, CUDA's libraries, the CUDA runtime itself.
_SAID = (
    "can't allocate memory",
    "not enough memory: you tried to allocate",
    "std::bad_alloc",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed: of nothing else can be said that less at once would help."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)
