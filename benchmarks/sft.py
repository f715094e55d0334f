"""Training speed beside TRL: one small Llama, the same samples, batch, steps and precision on both sides, in one run.

    python benchmarks/sft.py [--data FILE.jsonl] [--precision fp32|bf16] [--threads N]

Both sides train 512 samples × 2 epochs at batch 32 with losses on the answer tokens only, AdamW, a constant rate and
clipping at 1, each in its own process. They take turns step by step, so that a busy machine slows both alike. Counted
are tokens without padding over the time of the optimizer steps; loading, imports, logging and snapshots count on
neither side. Without ``--data`` (GSM8K's fields, ``question`` and ``answer``) rows of about its lengths are made up.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset as HubDataset
from small_llama import write_llama
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import SFTConfig, SFTTrainer

from massive_sft.data.samples import Samples
from massive_sft.sweep.schema import Dataset, Model, Schedule, Setting
from massive_sft.sweep.spec import Mixture, Part, TrainingSpec
from massive_sft.training.events import Event, StepDone
from massive_sft.training.loop import train_trajectory

Result = tuple[float, float]

SAMPLES, EPOCHS, BATCH, MAX_LENGTH, LR = 512, 2, 32, 512, 1e-4


def made_rows(count: int) -> list[dict[str, str]]:
    """Return questions and answers of about GSM8K's lengths, from a fixed seed."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(800)]

    def text(mean: float) -> str:
        return " ".join(rng.choices(words, k=max(8, int(rng.gauss(mean, mean / 3))))) + "."

    return [{"question": text(45), "answer": f"{text(50)} #### {rng.randint(1, 999)}"} for _ in range(count)]


def make_tokenizer(rows: list[dict[str, str]]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of 4,096 tokens on the rows."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=4096, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator((row["question"] + " " + row["answer"] for row in rows), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def encode(rows: list[dict[str, str]], tokenizer: PreTrainedTokenizerFast) -> list[tuple[list[int], list[int]]]:
    """Return (token ids, 0/1 mask of trainable tokens) per row, cut at the maximal length."""
    encoded = []
    for row in rows:
        prompt = [1, *tokenizer(f"###Question: {row['question']}\n###Answer: ").input_ids]
        answer = [*tokenizer(row["answer"]).input_ids, 2]
        mask = [0] * len(prompt) + [1] * len(answer)
        encoded.append(((prompt + answer)[:MAX_LENGTH], mask[:MAX_LENGTH]))
    return encoded


def make_base(folder: Path, vocabulary: int) -> int:
    """Write a randomly initialised Llama of about a million parameters; return how many."""
    sizes = {"intermediate_size": 384, "num_key_value_heads": 2, "max_position_embeddings": MAX_LENGTH}
    return write_llama(folder, vocabulary, hidden=128, layers=3, heads=4, **sizes)


class Turns:
    """Hands the machine over after every optimizer step, so that whatever else runs slows both sides alike."""

    def __init__(self, mine: Connection):
        self._mine = mine

    def wait(self) -> None:
        self._mine.recv()

    def hand_over(self) -> None:
        self._mine.send("step")


class TimedSteps(TrainerCallback):
    """Times TRL's optimizer steps alone: not its data loader, not its logging."""

    def __init__(self, turns: Turns):
        self._turns = turns
        self.seconds = 0.0

    def on_step_begin(self, *arguments: Any, **keywords: Any) -> None:
        self._turns.wait()
        self._began = time.perf_counter()

    def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
        self.seconds += time.perf_counter() - self._began
        self._turns.hand_over()


def run_trl(base: Path, encoded: list[Any], tokenizer: Any, precision: str, folder: Path, turns: Turns) -> Result:
    """Train with TRL; return seconds in its steps and the last loss."""
    data = HubDataset.from_dict(
        {"input_ids": [row[0] for row in encoded], "completion_mask": [row[1] for row in encoded]}
    )
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    clock = TimedSteps(turns)
    trainer = SFTTrainer(
        model=LlamaForCausalLM.from_pretrained(base, dtype=dtype),
        args=SFTConfig(
            output_dir=str(folder),
            per_device_train_batch_size=BATCH,
            num_train_epochs=EPOCHS,
            max_length=MAX_LENGTH,
            learning_rate=LR,
            lr_scheduler_type="constant",
            optim="adamw_torch",
            max_grad_norm=1.0,
            bf16=precision == "bf16",
            gradient_checkpointing=False,
            completion_only_loss=True,
            use_cpu=True,
            report_to=[],
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    return clock.seconds, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1]


def run_ours(base: Path, encoded: list[Any], tokenizer: Any, precision: str, folder: Path, turns: Turns) -> Result:
    """Train with train_trajectory; return seconds in its steps (all but snapshots) and the last loss."""
    lengths = [len(row[0]) for row in encoded]
    samples = Samples(
        tokens=np.concatenate([row[0] for row in encoded]).astype(np.int32),
        trainable=np.concatenate([row[1] for row in encoded]).astype(bool),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        part=np.zeros(len(lengths), dtype=np.int16),
        row=np.arange(len(lengths)),
        text_bytes=np.zeros((len(lengths), 2), dtype=np.int64),
    )
    part = Part(name="data", dataset=Dataset(path="data.jsonl", format="gsm8k"), count=None)
    spec = TrainingSpec(
        trajectory="benchmark",
        model=Model(path=str(base)),
        mixture=Mixture(name="data", parts=(part,)),
        setting=Setting(method="full", lr=LR, batch=BATCH, max_length=MAX_LENGTH, precision=precision),  # type: ignore[arg-type]
        schedule=Schedule(name="constant"),
        horizon=EPOCHS,
        snapshots=(EPOCHS,),
    )
    steps: list[StepDone] = []

    def report(event: Event) -> None:
        if isinstance(event, StepDone):
            steps.append(event)
            turns.hand_over()
            if len(steps) < EPOCHS * SAMPLES // BATCH:
                turns.wait()

    turns.wait()
    train_trajectory(spec, samples, folder, report)
    return sum(step.seconds for step in steps), steps[-1].loss


SIDES = {"TRL SFTTrainer": run_trl, "train_trajectory": run_ours}


def side(name: str, mine: Connection, threads: int, *arguments: Any) -> None:
    """The process of one side."""
    torch.set_num_threads(threads)
    mine.send(SIDES[name](*arguments, Turns(mine)))


def play(arguments: tuple[Any, ...], folder: Path) -> dict[str, Result]:
    """Run both sides step by step in turn; return seconds and last loss by side."""
    context = multiprocessing.get_context("spawn")
    ours, processes = {}, []
    for name in SIDES:
        ours[name], theirs = context.Pipe()
        processes.append(context.Process(target=side, args=(name, theirs, *arguments, folder / name)))
        processes[-1].start()
    for _ in range(EPOCHS * SAMPLES // BATCH):
        for pipe in ours.values():
            pipe.send("go")
            pipe.recv()
    results = {name: pipe.recv() for name, pipe in ours.items()}
    for process in processes:
        process.join()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="JSON lines with question and answer")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument(
        "--threads", type=int, default=2, help="of torch; 1 on a busy machine, where threads wait for each other"
    )
    options = parser.parse_args()
    rows = made_rows(SAMPLES)
    if options.data:
        rows = [json.loads(line) for line in options.data.read_text().splitlines()[:SAMPLES]]
    tokenizer = make_tokenizer(rows)
    encoded = encode(rows, tokenizer)
    tokens = EPOCHS * sum(len(row[0]) for row in encoded)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        size = make_base(folder / "base", len(tokenizer))
        results = play((options.threads, folder / "base", encoded, tokenizer, options.precision), folder)
    lines = [
        f"{size / 1e6:.2f}M-parameter Llama, {SAMPLES} samples x {EPOCHS} epochs, batch {BATCH}, {options.precision}, "
        f"{tokens:,} tokens, {options.threads} threads, {platform.machine()}, {os.cpu_count()} cores, "
        f"torch {torch.__version__}, load {os.getloadavg()[0]:.1f}",
        f"{'side':<18}{'seconds':>9}{'tokens/s':>10}{'last loss':>11}",
        *(f"{name:<18}{took:>9.1f}{tokens / took:>10,.0f}{loss:>11.4f}" for name, (took, loss) in results.items()),
        f"ratio {results['TRL SFTTrainer'][0] / results['train_trajectory'][0]:.2f}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
