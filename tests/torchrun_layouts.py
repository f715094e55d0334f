"""Run under torchrun by ``test_engine``: two ranks train the spec of each line of argv[1] and rank 0 keeps the results."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from tiny_training import make_samples

from massive_sft.sft.loop import train_trajectory
from massive_sft.sweep.spec import TrainingSpec

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for line in (folder / "specs.jsonl").read_text().splitlines():
        spec = TrainingSpec.model_validate_json(line)
        summary = train_trajectory(spec, make_samples(), folder / spec.trajectory, lambda event: None)
        (folder / f"{spec.trajectory}-{dist.get_rank()}.json").write_text(json.dumps(asdict(summary), default=str))
    dist.destroy_process_group()
