"""Memory and time of a pass where activations are kept, recomputed but for matrix products, and recomputed whole.

    python benchmarks/recomputing.py MODEL [--rows 2 --length 512 --passes 3]

MODEL is a folder of weights. Each way, full tuning and LoRA, has a process of its own, which makes one micro-batch's
forward and backward pass again and again in fp32 with one thread. Printed are the anonymous memory that the forward
pass left for the backward pass, the most above what was held before, the seconds of the fastest pass, and whether loss
and gradients have the bits of those with all activations kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
WAYS = (False, "selective", True)


def measure(model: Path, method: str, way: bool | str, rows: int, length: int, passes: int) -> dict[str, Any]:
    """Return what one way takes: MB left and at most, seconds, and a digest of the loss and the gradients."""
    import numpy as np
    import torch
    from made_training import make_samples, make_spec
    from shares import Peak

    from massive_sft.sweep.spec import Layout
    from massive_sft.training.engine import free_memory
    from massive_sft.training.loading import load_for_training
    from massive_sft.training.loss import SummedLoss
    from massive_sft.training.packing import collate

    torch.manual_seed(0)
    samples = make_samples(rows, length, vocabulary=2000, prompt=length // 2)
    layout = Layout.model_validate({"gradient_checkpointing": way})
    spec = make_spec(model, layout, method=method, batch=rows, precision="fp32")
    module = SummedLoss(load_for_training(spec, samples)).train()
    batch = collate(samples, np.arange(rows), packing=False)
    left, most, seconds, digest = [], [], [], ""
    for _ in range(passes):
        module.zero_grad()
        free_memory()
        peak, start = Peak(), time.perf_counter()
        loss = module(batch)
        left.append(peak.anonymous_now())
        loss.backward()
        seconds.append(time.perf_counter() - start)
        most.append(peak.anonymous)
        results = [loss.detach(), *(weight.grad for weight in module.parameters() if weight.grad is not None)]
        digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in results)).hexdigest()
        del loss, results
    return {"left": left[-1], "most": most[-1], "seconds": min(seconds), "digest": digest}


def main() -> None:
    """Measure each way and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--of", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = (arguments.rows, arguments.length, arguments.passes)
    if arguments.of:
        method, way = arguments.of
        print("FOUND", json.dumps(measure(arguments.model, method, json.loads(way), *sizes)))
        return
    print(f"{arguments.rows} rows of {arguments.length} tokens on {platform.machine()}, one thread; MB, seconds")
    print(f"{'method':8}{'gradient_checkpointing':>24}{'left':>8}{'most':>8}{'a pass':>8}  bits")
    for method in ("full", "lora"):
        kept = ""
        for way in WAYS:
            command = [sys.executable, __file__, *sys.argv[1:], "--of", method, json.dumps(way)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            found = json.loads(done.stdout.partition("FOUND ")[2])
            kept = kept or found["digest"]
            same = "the same" if found["digest"] == kept else "others"
            figures = f"{found['left']:8.0f}{found['most']:8.0f}{found['seconds']:8.2f}"
            print(f"{method:8}{json.dumps(way):>24}{figures}  {same}", flush=True)


if __name__ == "__main__":
    main()
