"""Run under torchrun by ``test_engine``: two ranks train the spec of each line of argv[1] and both keep the results.

A line's ``memory`` is what the second rank has room for.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from small_memory import SmallMemory
from tiny_training import make_samples

from massive_sft.sweep.spec import TrainingSpec
from massive_sft.training.loop import train_trajectory
from massive_sft.training.micro_batch import OutOfMemory
from massive_sft.training.ranks import join_group

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for line in (folder / "specs.jsonl").read_text().splitlines():
        content = json.loads(line)
        spec = TrainingSpec.model_validate(content["spec"])
        rank, _ = join_group(spec.layout)
        small = SmallMemory(**content["memory"]) if rank == 1 else nullcontext()
        with small:
            try:
                told = asdict(train_trajectory(spec, make_samples(), folder / spec.trajectory, lambda event: None))
            except OutOfMemory as error:
                told = {"error": str(error)}
        (folder / f"{spec.trajectory}-{rank}.json").write_text(json.dumps(told, default=str))
    dist.destroy_process_group()
