"""Memory and time of one forward and backward pass, with all logits at once and by chunks of targets.

    python benchmarks/loss.py [--vocabulary 32768] [--targets 1024 2048 4096] [--precision fp32]

A randomly initialised Llama of two layers, 256 wide, with tied embeddings; all tokens of rows of 512 have a loss. Each
pass in its own process, by one thread: the growth of its resident memory at the peak, and seconds of the processor, the
less of two passes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import time
from typing import Any

import numpy as np
import torch
from made_training import make_samples
from transformers import LlamaConfig, LlamaForCausalLM

from massive_sft.cost.memory import chunk_targets
from massive_sft.sweep.spec import Layout
from massive_sft.training.loss import SummedLoss
from massive_sft.training.packing import collate

LENGTH, HIDDEN, LAYERS, PASSES = 512, 256, 2, 2


def measure(arguments: tuple[int, int, str, bool]) -> tuple[float, float, float]:
    """Return the bytes that a pass adds, its seconds, and its mean loss."""
    vocabulary, targets, precision, chunked = arguments
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": HIDDEN, "intermediate_size": 3 * HIDDEN, "num_hidden_layers": LAYERS}
    config = LlamaConfig(vocab_size=vocabulary, num_attention_heads=4, tie_word_embeddings=True, **sizes)
    model = LlamaForCausalLM(config).to(torch.bfloat16 if precision == "bf16" else torch.float32)
    loss = SummedLoss(model, chunk_targets(vocabulary, Layout()) if chunked else None)
    loss(collate(make_samples(1, LENGTH, vocabulary), np.arange(1), packing=False)).backward()  # what is made once
    model.zero_grad()
    batch = collate(make_samples(targets // LENGTH, LENGTH, vocabulary), np.arange(targets // LENGTH), packing=False)
    before, seconds, value = _resident_bytes(), [], 0.0
    for _ in range(PASSES):
        began = time.process_time()
        summed = loss(batch)
        (summed / targets).backward()
        seconds.append(time.process_time() - began)
        value = float(summed.detach()) / targets
        model.zero_grad()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before, min(seconds), value


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--targets", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    lines = [
        f"{options.vocabulary:,} words, {options.precision}, load {os.getloadavg()[0]:.1f}",
        f"{'targets':>8}{'whole GB':>10}{'chunks GB':>11}{'whole s':>9}{'chunks s':>10}{'losses apart':>14}",
    ]
    for targets in options.targets:
        rows = []
        for chunked in (False, True):
            with context.Pool(1) as pool:  # a process of its own, whose peak is this pass's
                rows += pool.map(measure, [(options.vocabulary, targets, options.precision, chunked)])
        (whole, whole_s, loss), (chunks, chunks_s, other) = rows
        apart = abs(other - loss) / loss
        lines.append(
            f"{targets:>8,}{whole / 1e9:>10.2f}{chunks / 1e9:>11.2f}{whole_s:>9.2f}{chunks_s:>10.2f}{apart:>14.1e}"
        )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
