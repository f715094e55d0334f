"""What counts as lack of memory, in training and in scoring."""

from __future__ import annotations

import pytest
import torch

from massive_sft.evaluation import batching
from massive_sft.models.out_of_memory import is_out_of_memory

SAID = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    torch.AcceleratorError("CUDA error: out of memory", 2),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA driver error: cudaErrorMemoryAllocation"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"),
    MemoryError(),
]
OTHER = [RuntimeError("shapes do not match"), ValueError("out of memory cells"), RuntimeError("CUDA error: misaligned")]


@pytest.mark.parametrize("error", SAID, ids=str)
def test_lack_of_memory_is_known_in_every_form_and_scoring_halves_the_batch(error: Exception) -> None:
    assert is_out_of_memory(error)

    def compute(batch: list[int]) -> list[int]:
        if len(batch) > 1:
            raise error
        return batch

    assert batching.run_split([0, 1, 2], compute) == ([0, 1, 2], 2)


@pytest.mark.parametrize("error", OTHER, ids=str)
def test_other_errors_are_not_taken_for_lack_of_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)
