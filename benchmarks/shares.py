"""Memory of each rank of a training under ZeRO: what grows with the model, and what with a rank's share of it.

    python benchmarks/shares.py [--ranks 1 2 4] [--zero 3] [--loading] [--hidden 1024 --layers 14]

A Llama of about 200M parameters, stored in bf16, is loaded by each rank, given its optimizer, trained for two steps in
bf16 on the CPU, and gathered for a snapshot. Printed is the most anonymous memory that a rank held, over what it had
once all was imported, until the end of each; the last column is the pages of the weight files that it mapped, which the
system takes back when it lacks memory. With ``--loading`` that is all that is done.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
VOCABULARY, LENGTH, SAMPLES, POLL_S = 32000, 32, 8, 0.005


class Peak:
    """The most anonymous and file memory of this process since it was made, in MB, looked at every 5 ms."""

    def __init__(self) -> None:
        self._first = self._now()
        self.anonymous = self.files = 0.0
        self._loop = threading.Thread(target=self._watch, daemon=True)
        self._loop.start()

    @staticmethod
    def _now() -> tuple[float, float]:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        anonymous, files, shared = (int(lines[name].split()[0]) / 1e3 for name in ("RssAnon", "RssFile", "RssShmem"))
        return anonymous + shared, files

    def anonymous_now(self) -> float:
        """Return the anonymous memory of this moment, over what it was at first."""
        return self._now()[0] - self._first[0]

    def _watch(self) -> None:
        while True:
            anonymous, files = self._now()
            self.anonymous = max(self.anonymous, anonymous - self._first[0])
            self.files = max(self.files, files - self._first[1])
            time.sleep(POLL_S)


def train(folder: Path, zero: int, only_load: bool) -> list[float]:
    """Train as one rank; return its peaks in MB by the end of loading, of the steps, of a snapshot; and of file pages."""
    from made_training import make_samples, make_spec

    from massive_sft.sweep.spec import Layout
    from massive_sft.training import snapshot
    from massive_sft.training.batches import batches_between
    from massive_sft.training.engine import make_engine, warm_up
    from massive_sft.training.loading import load_for_training
    from massive_sft.training.loss import SummedLoss
    from massive_sft.training.packing import Limit
    from massive_sft.training.ranks import join_group
    from massive_sft.training.step import Decision, StepRunner

    samples = make_samples(SAMPLES, LENGTH, VOCABULARY)
    layout = Layout.model_validate({"workers": int(os.environ["WORLD_SIZE"]), "zero": zero, "micro_batch": 1})
    spec = make_spec(folder / "base", layout, method="full", batch=4, precision="bf16")
    rank, _ = join_group(spec.layout)
    warm_up(spec.layout)
    peak = Peak()
    model = load_for_training(spec, samples)
    found = [peak.anonymous]
    if only_load:
        return [*found * 3, peak.files]
    engine = make_engine(SummedLoss(model), spec.setting, spec.layout)
    runner = StepRunner(spec, samples, engine, rank, Limit(samples=1), (), folder)
    for batch in batches_between(0, 2, SAMPLES, spec.setting.batch, spec.setting.seed):
        runner.run(batch, lambda: Decision.GO_ON)
    found.append(peak.anonymous)
    snapshot.gather(engine, model, snapshot.Piece(rank, spec.layout.workers))
    return [*found, peak.anonymous, peak.files]


def main() -> None:
    """Run each number of ranks under torchrun and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--zero", type=int, choices=[0, 1, 2, 3], default=3)
    parser.add_argument("--loading", action="store_true")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank_of:
        peaks = train(arguments.rank_of, arguments.zero, arguments.loading)
        (arguments.rank_of / f"peaks-{os.environ['RANK']}.json").write_text(json.dumps(peaks))
        os._exit(0)  # a thread of gloo that lets go of a last tensor while Python ends would abort the process
    import torch
    from small_llama import write_llama
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as name:
        base = Path(name) / "base"
        size = write_llama(base, VOCABULARY, arguments.hidden, arguments.layers, heads=16)
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
        print(f"{size / 1e6:.0f}M parameters, {2 * size / 1e6:.0f} MB in bf16, on {platform.machine()}; MB")
        print(f"{'ranks':>5} {'rank':>5} {'loading':>9} {'steps':>9} {'snapshot':>9} {'of files':>9}")
        for ranks in arguments.ranks:
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
            own = [__file__, "--rank-of", name, "--zero", str(arguments.zero), *["--loading"] * arguments.loading]
            done = subprocess.run([*torchrun, *own], capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            for rank in range(ranks):
                peaks = json.loads((Path(name) / f"peaks-{rank}.json").read_text())
                print(f"{ranks:>5} {rank:>5} " + " ".join(f"{value:>9.0f}" for value in peaks), flush=True)


if __name__ == "__main__":
    main()
