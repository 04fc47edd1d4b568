"""Recognition of out-of-memory errors on any device."""

import torch

# Messages without an exception class of their own: host allocator, CUDA libraries, CUDA runtime.
_MESSAGES = (
    "can't allocate memory",
    "not enough memory: you tried to allocate",
    "std::bad_alloc",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error is a failed allocation, so that a smaller batch may help."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)
