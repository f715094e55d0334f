"""Ten snapshots of one base, each loaded anew beside one model that stays in memory and has them copied into it.

    python benchmarks/warm.py [--model FOLDER] [--snapshots N] [--questions N]

The base is a Llama of 25M parameters, or ``--model``. The snapshots are adapters on all its linear layers, unmerged and
merged, and whole models; each is scored on zero-shot questions of four endings. It fails where the scores differ. Then
the base is loaded as often for trainings. Before each the system is made to forget the files, as if others had been
read meanwhile. Seconds are those of the processor, which a busy machine changes least.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from scorer import SMALL, WORKLOADS, random_llama, requests_of, texts_of, timed, word_tokenizer, words_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from massive_sft.evaluation.tree import TreeScorer
from massive_sft.models import pretrained
from massive_sft.models.kept_base import KeptBase
from massive_sft.models.snapshots import load_for_scoring
from massive_sft.models.warm_model import WarmModel
from massive_sft.sweep.schema import Model

DTYPE = "fp32"
Load = Callable[[Path], Any]


def fresh(model: Model, adapters: str, snapshot: Path) -> Any:
    return load_for_scoring(model, snapshot, DTYPE, adapters)


def copied(held: WarmModel, model: Model, adapters: str, snapshot: Path) -> Any:
    return held.load(model, snapshot, DTYPE, adapters)


def make_snapshots(base: Path, folder: Path, count: int) -> dict[str, list[Path]]:
    """Write adapters and whole models, as if of ``count`` epochs; return their folders by kind."""
    found: dict[str, list[Path]] = {"adapter": [], "whole": []}
    for epoch in range(count):
        torch.manual_seed(epoch)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        config = LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        found["adapter"].append(folder / f"adapter-{epoch}")
        adapted = get_peft_model(model, config)
        adapted.save_pretrained(str(found["adapter"][-1]))
        found["whole"].append(folder / f"whole-{epoch}")
        adapted.merge_and_unload().save_pretrained(found["whole"][-1])
    return found


@dataclass
class Account:
    """What the snapshots of one way took: seconds of the processor, and bytes that were read from the disk."""

    loading_s: float = 0.0
    scoring_s: float = 0.0
    read_bytes: int = 0


def read_so_far() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])


def forget(*folders: Path) -> None:
    """Have the system forget what it keeps of files, as it does of those of other snapshots and nodes' file servers."""
    for path in (path for folder in folders for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def account(base: Path, snapshots: list[Path], load: Load, use: Callable[[Any], Any]) -> tuple[Account, list[Any]]:
    """Return what loading and using each snapshot took, and what came of it."""
    sums, found = Account(), []
    for snapshot in snapshots:
        forget(base, snapshot)
        before = read_so_far()
        (_, loading_s), model = timed(lambda snapshot=snapshot: load(snapshot))
        (_, scoring_s), result = timed(lambda model=model: use(model))
        del model
        sums.loading_s += loading_s
        sums.scoring_s += scoring_s
        sums.read_bytes += read_so_far() - before
        found.append(result)
    return sums, found


def told(kind: str, anew: Account, warm: Account) -> None:
    print(json.dumps({"kind": kind, "anew": asdict(anew), "warm": asdict(warm)}), flush=True)


@torch.no_grad()
def touch(model: Any) -> None:
    """Write every weight, as a training does: one that is a page of a file gets a page of its own then."""
    torch._foreach_mul_(list(model.parameters()), 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--snapshots", type=int, default=10)
    parser.add_argument("--questions", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        base = asked.model or Path(name) / "base"
        if asked.model is None:
            random_llama(SMALL).save_pretrained(base)
            word_tokenizer().save_pretrained(base)
        tokenizer, model = AutoTokenizer.from_pretrained(base), Model(path=str(base))
        requests = requests_of(texts_of(WORKLOADS["0-shot-endings"], asked.questions, words_of(tokenizer)))

        def score(loaded: Any) -> Any:
            return TreeScorer(loaded, tokenizer).score(requests)[0]

        load_for_scoring(model, None, DTYPE)  # what is imported then is there for both sides
        snapshots = make_snapshots(base, Path(name), asked.snapshots)
        os.sync()  # nobody forgets what was not written yet
        for kind, adapters in (("adapter", "unmerged"), ("adapter", "merged"), ("whole", "unmerged")):
            anew, expected = account(base, snapshots[kind], partial(fresh, model, adapters), score)
            warm, found = account(base, snapshots[kind], partial(copied, WarmModel(), model, adapters), score)
            if found != expected:
                raise SystemExit(f"the scores of {kind}s, {adapters}, differ")
            told(f"{kind}, {adapters}" if kind == "adapter" else kind, anew, warm)
        times = {}
        for way, load in (("anew", pretrained.load_model), ("warm", KeptBase().load)):
            one: Load = lambda _, load=load: load(model, DTYPE, "auto", False, False)  # noqa: E731
            times[way], _ = account(base, snapshots["whole"], one, touch)
        told("base, for trainings", times["anew"], times["warm"])


if __name__ == "__main__":
    main()
