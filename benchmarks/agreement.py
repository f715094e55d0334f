"""One training of a real model in several layouts, and stopped and resumed: how far apart losses and weights are.

    python benchmarks/agreement.py MODEL gsm8k.jsonl [--rows 8 --batch 4 --epochs 2] [--method full lora]

MODEL is a folder of weights with its tokenizer. Each training in fp32, all from the same rows of the file. Compared with the
first, of padded micro-batches: the largest relative difference of a step's loss, the root mean square of the differences of
weights at the end, in learning rates (about what AdamW moves a weight by in a step), and whether all bits are equal.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from made_training import make_spec
from safetensors.torch import load_file

from massive_sft.core.errors import Interrupted
from massive_sft.data.mixture import build_samples
from massive_sft.data.samples import Samples
from massive_sft.ledger.attempt import Attempt
from massive_sft.ledger.lease import LeaseWatch
from massive_sft.ledger.storage import Folder
from massive_sft.models.tokenizer import load_tokenizer
from massive_sft.sweep.schema import Dataset
from massive_sft.sweep.spec import Layout, Mixture, Part, TrainingSpec
from massive_sft.training.checkpoints.disk import CheckpointStore
from massive_sft.training.events import Event, StepDone
from massive_sft.training.loop import train_trajectory

LAYOUTS: dict[str, dict[str, Any]] = {
    "padded": {},
    "one by one": {"micro_batch": 1},
    "packed": {"packing": True},
    "selective checkpointing": {"gradient_checkpointing": "selective"},
    "ZeRO-1": {"zero": 1},
}
LR = {"full": 1e-5, "lora": 1e-4}
Outcome = tuple[list[float], dict[str, torch.Tensor]]


def train(spec: TrainingSpec, samples: Samples, home: Path, stop_after: int | None = None) -> Outcome:
    """Return the losses of all steps and the weights at the end of a training, which may be stopped after a step."""
    losses: list[float] = []
    weights: dict[str, torch.Tensor] = {}

    def listen(event: Event) -> None:
        if isinstance(event, StepDone):
            losses.append(event.loss)

    for last in (None,) if stop_after is None else (stop_after, None):
        attempt = Attempt.begin(home.name, Folder(home), "benchmark", LeaseWatch())
        assert attempt is not None
        with attempt:
            store = CheckpointStore(attempt.storage, attempt.claim)
            try:
                train_trajectory(spec, samples, attempt.folder, listen, store, lambda at=last: len(losses) == at)
            except Interrupted:
                continue
            for file in attempt.folder.glob(f"snapshots/epoch-{spec.horizon}/*.safetensors"):
                weights |= load_file(file)
            break
    return losses, weights


def outcomes(base: Path, samples: Samples, method: str, batch: int, epochs: int) -> Iterator[tuple[str, Outcome]]:
    """Yield what came of each training, by what is special in it."""
    setting = {"method": method, "batch": batch, "precision": "fp32", "lr": LR[method]}
    for number, (name, layout) in enumerate({**LAYOUTS, "stopped and resumed": {}}.items()):
        spec = make_spec(base, Layout.model_validate(layout), (epochs,), **setting)
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder) / f"training-{number}"
            home.mkdir()
            yield name, train(spec, samples, home, 1 if name == "stopped and resumed" else None)


def compare(one: Outcome, other: Outcome, lr: float) -> str:
    """Return how far apart two trainings of as many steps are."""
    losses = max(abs(a - b) / abs(a) for a, b in zip(one[0], other[0], strict=True))
    apart = torch.cat([(one[1][name] - other[1][name]).flatten() for name in one[1]]).double()
    weights = float(apart.square().mean().sqrt())
    bits = one[0] == other[0] and all(torch.equal(one[1][name], other[1][name]) for name in one[1])
    return f"{losses:12.1e}{weights / lr:12.1e}  {'equal' if bits else 'not equal'}"


def main() -> None:
    """Train each way and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--method", nargs="+", choices=["full", "lora"], default=["lora", "full"])
    arguments = parser.parse_args()
    part = Part(name="data", dataset=Dataset(path=str(arguments.data), format="gsm8k"), count=arguments.rows)
    for method in arguments.method:
        spec = make_spec(arguments.model, Layout(), method=method, batch=arguments.batch)
        samples, _ = build_samples(Mixture(name="data", parts=(part,)), spec.setting, load_tokenizer(spec.model))
        if method == arguments.method[0]:
            print(f"{len(samples)} samples of {samples.lengths.min()} to {samples.lengths.max()} tokens, ", end="")
            print(f"batch {arguments.batch}, {arguments.epochs} epochs, fp32 on {platform.machine()}")
        found = outcomes(arguments.model, samples, method, arguments.batch, arguments.epochs)
        (_, first) = next(found)
        print(f"{method}, {len(first[0])} steps, losses {first[0][0]:.4f} to {first[0][-1]:.4f}: ", end="")
        print(f"beside padded micro-batches\n{'':24}{'losses':>12}{'weights':>12}  bits")
        for name, other in found:
            print(f"{name:24}{compare(first, other, LR[method])}", flush=True)


if __name__ == "__main__":
    main()
