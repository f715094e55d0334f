"""Training speed beside TRL, with TRL's own options: the same samples, batch and precision on all sides, in one run.

    python benchmarks/sft.py [--data FILE.jsonl] [--precision fp32|bf16] [--threads N]
    python benchmarks/sft.py --model FOLDER --method full|lora --samples 24 --batch 8 --epochs 1    # SmolLM2: 10 minutes

Each side trains with losses on the answer tokens only, AdamW, a constant rate and clipping at 1, in a process of its own.
They take turns step by step, so that a busy machine slows all alike. Counted are tokens without padding over the time of
the optimizer steps; loading, imports, logging and snapshots count on no side. Without ``--model`` it is a Llama of about
a million parameters with a tokenizer of the rows; without ``--data`` (GSM8K's fields, ``question`` and ``answer``) rows
of about its lengths are made up.

TRL's options: samples grouped by length, a batch flattened into one row (padding-free), samples packed into rows of the
longest length, as many in a step as hold a batch's tokens (so its steps are other batches, and its last loss is not
comparable), and Liger's kernels, which need a GPU. On a CPU, where FlashAttention is not, TRL warns that flattened and
packed samples may see each other.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import random
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset as HubDataset
from peft import LoraConfig
from small_llama import write_llama
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, TrainerCallback
from trl import SFTConfig, SFTTrainer

from massive_sft.data.samples import Samples
from massive_sft.sweep.schema import Dataset, Model, Schedule, Setting
from massive_sft.sweep.spec import Layout, Mixture, Part, TrainingSpec
from massive_sft.training.events import Event, StepDone
from massive_sft.training.loop import train_trajectory

Encoded = list[tuple[list[int], list[int]]]
Result = tuple[float, float, int]  # seconds in steps, the last loss, tokens seen

MAX_LENGTH, LR = 512, 1e-4


@dataclass(frozen=True)
class Task:
    """What every side trains.

    Attributes:
        base: the model's folder.
        rows: token ids and 0/1 masks of trainable tokens.
        tokenizer: of the rows.
    """

    base: Path
    rows: Encoded
    tokenizer: Any
    method: str
    precision: str
    epochs: int
    batch: int

    @property
    def tokens(self) -> int:
        return self.epochs * sum(len(ids) for ids, _ in self.rows)


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


def encode(rows: list[dict[str, str]], tokenizer: Any) -> Encoded:
    """Return (token ids, 0/1 mask of trainable tokens) per row, cut at the maximal length."""
    encoded = []
    for row in rows:
        prompt = [tokenizer.bos_token_id, *tokenizer(f"###Question: {row['question']}\n###Answer: ").input_ids]
        answer = [*tokenizer(row["answer"]).input_ids, tokenizer.eos_token_id]
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


def trl_options(options: dict[str, Any], task: Task) -> dict[str, Any]:
    """Return TRL's options with the rows of a step: packed, as many as hold the tokens of a batch."""
    if not options.get("packing"):
        return {"per_device_train_batch_size": task.batch, "max_length": MAX_LENGTH, **options}
    mean = sum(len(ids) for ids, _ in task.rows) / len(task.rows)
    return {
        "per_device_train_batch_size": max(1, round(task.batch * mean / MAX_LENGTH)),
        "max_length": MAX_LENGTH,
        **options,
    }


def run_trl(task: Task, options: dict[str, Any], folder: Path, turns: Turns) -> Result:
    """Train with TRL; return seconds in its steps, the last loss and the tokens seen."""
    data = HubDataset.from_dict(
        {"input_ids": [row[0] for row in task.rows], "completion_mask": [row[1] for row in task.rows]}
    )
    dtype = torch.bfloat16 if task.precision == "bf16" else torch.float32
    clock = TimedSteps(turns)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") if task.method == "lora" else None
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(task.base, dtype=dtype),
        args=SFTConfig(
            output_dir=str(folder),
            num_train_epochs=task.epochs,
            learning_rate=LR,
            lr_scheduler_type="constant",
            optim="adamw_torch",
            max_grad_norm=1.0,
            bf16=task.precision == "bf16",
            gradient_checkpointing=False,
            completion_only_loss=True,
            use_cpu=True,
            report_to=[],
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            **trl_options(options, task),
        ),
        train_dataset=data,
        processing_class=task.tokenizer,
        peft_config=lora,
        callbacks=[clock],
    )
    trainer.train()
    return clock.seconds, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1], task.tokens


def run_ours(task: Task, options: dict[str, Any], folder: Path, turns: Turns) -> Result:
    """Train with train_trajectory; return seconds in its steps (all but snapshots), the last loss and the tokens seen."""
    lengths = [len(ids) for ids, _ in task.rows]
    samples = Samples(
        tokens=np.concatenate([ids for ids, _ in task.rows]).astype(np.int32),
        trainable=np.concatenate([mask for _, mask in task.rows]).astype(bool),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        part=np.zeros(len(lengths), dtype=np.int16),
        row=np.arange(len(lengths)),
        text_bytes=np.zeros((len(lengths), 2), dtype=np.int64),
    )
    part = Part(name="data", dataset=Dataset(path="data.jsonl", format="gsm8k"), count=None)
    spec = TrainingSpec(
        trajectory="benchmark",
        model=Model(path=str(task.base)),
        mixture=Mixture(name="data", parts=(part,)),
        setting=Setting.model_validate(
            {"method": task.method, "lr": LR, "batch": task.batch, "max_length": MAX_LENGTH}
            | {"precision": task.precision}
        ),
        schedule=Schedule(name="constant"),
        horizon=task.epochs,
        snapshots=(task.epochs,),
        layout=Layout(**options),
    )
    steps: list[StepDone] = []
    last = task.epochs * math.ceil(len(lengths) / task.batch)

    def report(event: Event) -> None:
        if isinstance(event, StepDone):
            steps.append(event)
            turns.hand_over()
            if len(steps) < last:
                turns.wait()

    turns.wait()
    train_trajectory(spec, samples, folder, report)
    return sum(step.seconds for step in steps), steps[-1].loss, sum(step.tokens for step in steps)


SIDES: dict[str, tuple[Any, dict[str, Any]]] = {
    "TRL": (run_trl, {}),
    "TRL by length": (run_trl, {"train_sampling_strategy": "group_by_length"}),
    "TRL padding-free": (run_trl, {"padding_free": True, "max_length": None}),
    "TRL packed": (run_trl, {"packing": True}),
    "TRL Liger": (run_trl, {"use_liger_kernel": True}),
    "ours": (run_ours, {}),
    "ours packed": (run_ours, {"packing": True}),
}


def lacks(name: str) -> str:
    """Return what a side needs and this machine lacks; empty where nothing is."""
    if name == "TRL Liger" and not (torch.cuda.is_available() and importlib.util.find_spec("liger_kernel")):
        return "needs a GPU and the package liger-kernel"
    return ""


def side(name: str, mine: Connection, threads: int, task: Task, folder: Path) -> None:
    """The process of one side: a step for each word that it gets, then what came of it."""
    torch.set_num_threads(threads)
    run, options = SIDES[name]
    result = run(task, options, folder, Turns(mine))
    mine.recv()
    mine.send(result)


def play(names: list[str], threads: int, task: Task, folder: Path) -> dict[str, Result | None]:
    """Run sides step by step in turn; return what came of each, None of one that failed."""
    context = multiprocessing.get_context("spawn")
    playing: dict[str, Connection] = {}
    processes = []
    for name in names:
        playing[name], theirs = context.Pipe()
        processes.append(context.Process(target=side, args=(name, theirs, threads, task, folder / name)))
        processes[-1].start()
        theirs.close()
    results: dict[str, Result | None] = {}
    while playing:
        for name, pipe in list(playing.items()):
            try:
                pipe.send("go")
                said = pipe.recv()
            except (EOFError, BrokenPipeError, ConnectionResetError):
                said = None
            if said != "step":
                results[name] = said
                del playing[name]
    for process in processes:
        process.join()
    return results


def make_task(options: argparse.Namespace, folder: Path) -> Task:
    """Return what is trained: a model that is given with its tokenizer, or one that is made."""
    rows = made_rows(options.samples)
    if options.data:
        rows = [json.loads(line) for line in options.data.read_text().splitlines()[: options.samples]]
    if options.model:
        tokenizer, base = AutoTokenizer.from_pretrained(options.model), options.model
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    else:
        tokenizer, base = make_tokenizer(rows), folder / "base"
        make_base(base, len(tokenizer))
    encoded = encode(rows, tokenizer)
    return Task(base, encoded, tokenizer, options.method, options.precision, options.epochs, options.batch)


def main() -> None:
    """Let the sides play and print what each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="JSON lines with question and answer")
    parser.add_argument("--model", type=Path, help="a model's folder, with its tokenizer")
    parser.add_argument("--method", choices=["full", "lora"], default="full", help="LoRA: rank 16, all linear layers")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument(
        "--threads", type=int, default=2, help="of torch; 1 on a busy machine, where threads wait for each other"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        task = make_task(options, folder)
        results = play([name for name in options.sides if not lacks(name)], options.threads, task, folder)
    print(
        f"{options.model.name if options.model else 'a Llama of about 1M parameters'}, {options.method}, "
        f"{options.samples} samples x {options.epochs} epochs, batch {options.batch}, {options.precision}, "
        f"{task.tokens:,} tokens, {options.threads} threads, {platform.machine()}, {os.cpu_count()} cores, "
        f"torch {torch.__version__}, load {os.getloadavg()[0]:.1f}"
    )
    print(f"{'side':<18}{'seconds':>9}{'tokens/s':>10}{'last loss':>11}")
    for name in options.sides:
        result = results.get(name)
        if result is None:
            print(f"{name:<18}{'-':>9}  {lacks(name) or 'failed, see above'}")
        else:
            took, loss, tokens = result
            print(f"{name:<18}{took:>9.1f}{tokens / took:>10,.0f}{loss:>11.4f}")
    speeds = {name: result[2] / result[0] for name, result in results.items() if result is not None}
    peers, own = ([speed for name, speed in speeds.items() if name.startswith("TRL") == peer] for peer in (True, False))
    if peers and own:
        print(f"the faster of ours over the fastest of TRL's: {max(own) / max(peers):.2f}")


if __name__ == "__main__":
    main()
