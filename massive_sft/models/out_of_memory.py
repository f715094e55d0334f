"""One rule for an error that torch raises in many forms: memory ran out, on a GPU or on the CPU."""

from __future__ import annotations

import torch

# What the allocators and libraries say, in lower case: torch's caching allocator and CUDA itself ("CUDA error: out of
# memory", an AcceleratorError), CUDA by the error's name, cuBLAS, cuDNN and cuSOLVER when they make their handles, and
# torch's CPU allocator, on Linux and on Windows.
_MESSAGES = (
    "out of memory",
    "memoryallocation",
    "status_alloc_failed",
    "can't allocate memory",
    "not enough memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory ran out."""
    text = str(error).lower()
    says_so = isinstance(error, RuntimeError) and any(message in text for message in _MESSAGES)
    return says_so or isinstance(error, (torch.OutOfMemoryError, MemoryError))
