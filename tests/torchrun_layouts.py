"""Run under torchrun by ``test_engine``: two ranks train the spec of each line of argv[1] and both keep the results.

A line's ``memory`` is what the second rank has room for. Each rank also tells of its base, once that was loaded.
"""

from __future__ import annotations

import hashlib
import json
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from small_memory import SmallMemory
from tiny_training import make_samples

from massive_sft.sweep.spec import TrainingSpec
from massive_sft.training.deepspeed_engine import full_shape
from massive_sft.training.loading import load_for_training
from massive_sft.training.loop import train_trajectory
from massive_sft.training.micro_batch import OutOfMemory
from massive_sft.training.ranks import join_group


def loaded(spec: TrainingSpec) -> dict[str, Any]:
    """Load a spec's base; return what this rank has of it.

    ``share`` is of all weights those that it holds, ``digest`` of the bytes of those and of the buffers, and
    ``mapped`` says whether it has the weights' file in memory.
    """
    model = load_for_training(spec, make_samples())
    held = {id(weight): getattr(weight, "ds_tensor", weight).numel() for weight in model.parameters()}
    parts = [value.detach().float().numpy().tobytes() for value in (*model.parameters(), *model.buffers())]
    return {
        "share": sum(held.values()) / sum(full_shape(weight).numel() for weight in model.parameters()),
        "digest": hashlib.sha256(b"".join(parts)).hexdigest(),
        "mapped": ".safetensors" in Path("/proc/self/maps").read_text(),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for line in (folder / "specs.jsonl").read_text().splitlines():
        content = json.loads(line)
        spec = TrainingSpec.model_validate(content["spec"])
        rank, _ = join_group(spec.layout)
        small = SmallMemory(**content["memory"]) if rank == 1 else nullcontext()
        with small:
            base = loaded(spec)
            try:
                told = asdict(train_trajectory(spec, make_samples(), folder / spec.trajectory, lambda event: None))
            except OutOfMemory as error:
                told = {"error": str(error)}
        (folder / f"{spec.trajectory}-{rank}.json").write_text(json.dumps(told, default=str))
        (folder / f"{spec.trajectory}-{rank}-base.json").write_text(json.dumps(base))
    dist.destroy_process_group()
