"""The same cells as one sweep and as a user runs them today, in one run: TRL, then the ``lm_eval`` command line.

    python benchmarks/sweep.py [--cells N] [--data FILE.jsonl]

A cell is a 1M-parameter Llama tuned on 256 samples for one epoch at batch 32, then scored on a 195-question 5-shot
multiple choice and on 100 texts by bits per byte. The cells differ in their seed. On one side `massive-sft run`, from
its start to its report, with an empty ledger; on the other, for each cell, a process that trains with SFTTrainer and one
that scores with `lm_eval`. Without ``--data`` (GSM8K's fields) rows of about its lengths are made up.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ruamel.yaml import YAML
from sft import LR, MAX_LENGTH, encode, made_rows, make_base, make_tokenizer

SAMPLES, BATCH, QUESTIONS, TEXTS, SHOTS = 256, 32, 195, 100, 5
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def write_lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_world(folder: Path, rows: list[dict[str, str]]) -> None:
    """Write the base model, the training data and the two tasks."""
    tokenizer = make_tokenizer(rows)
    tokenizer.save_pretrained(folder / "base")
    make_base(folder / "base", len(tokenizer))
    write_lines(folder / "train.jsonl", [dict(row) for row in rows[:SAMPLES]])
    held_out = rows[SAMPLES : SAMPLES + QUESTIONS + SHOTS]
    answers = [row["answer"].split()[-1] for row in held_out]
    questions = [
        {"question": row["question"], "choices": [answers[(n + k) % len(answers)] for k in range(4)], "answer": 0}
        for n, row in enumerate(held_out)
    ]
    shots, asked = (
        write_lines(folder / "shots.jsonl", questions[:SHOTS]),
        write_lines(folder / "mc.jsonl", questions[SHOTS:]),
    )
    texts = write_lines(folder / "texts.jsonl", [{"text": row["answer"]} for row in rows[-TEXTS:]])
    common = "dataset_path: json\ntest_split: test\nmetadata: {version: 1.0}\n"
    (folder / "bench_mc.yaml").write_text(
        f"task: bench_mc\n{common}dataset_kwargs: {{data_files: {{test: {asked}, fewshot: {shots}}}}}\n"
        f"fewshot_split: fewshot\nfewshot_config: {{sampler: first_n}}\nnum_fewshot: {SHOTS}\noutput_type: multiple_choice\n"
        'doc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer\n'
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    (folder / "bench_bpb.yaml").write_text(
        f"task: bench_bpb\n{common}dataset_kwargs: {{data_files: {{test: {texts}}}}}\n"
        'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\n'
        "metric_list: [{metric: bits_per_byte}]\n"
    )


def run_sweep(folder: Path, cells: int) -> float:
    """Run the cells as one sweep; return seconds."""
    file = {
        "schema": 1,
        "name": "bench",
        "models": {"base": {"path": "base"}},
        "datasets": {"train": {"path": "train.jsonl", "format": "gsm8k"}},
        "mixtures": {"one": {"each": "train"}},
        "settings": {
            "full": {"method": "full", "lr": LR, "batch": BATCH, "max_length": MAX_LENGTH, "precision": "fp32"}
        },
        "blocks": [
            {"name": "A", "model": "base", "mixture": "one", "setting": "full", "schedule": "constant", "horizon": 1}
            | {"snapshots": [1], "override": {"seed": list(range(cells))}}
        ],
        "evaluation": {
            "base": False,
            "protocol": {"dtype": "fp32", "template": "none", "engine": "trie"},
            "tasks": [{"path": "bench_mc.yaml", "shots": SHOTS}, {"path": "bench_bpb.yaml"}],
        },
        "storage": {"root": "ledger"},
    }
    with (folder / "sweep.yaml").open("w") as text:
        YAML(typ="safe").dump(file, text)
    command = [str(Path(sys.executable).parent / "massive-sft"), "run", str(folder / "sweep.yaml")]
    began = time.perf_counter()
    subprocess.run(command, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def train_with_trl(folder: Path, seed: int) -> None:
    """Train one cell with SFTTrainer and save it: the body of the peer's training process."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    rows = encode([json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()], tokenizer)
    data = Dataset.from_dict({"input_ids": [row[0] for row in rows], "completion_mask": [row[1] for row in rows]})
    trainer = SFTTrainer(
        model=LlamaForCausalLM.from_pretrained(folder / "base", dtype=torch.float32),
        args=SFTConfig(
            output_dir=str(folder / "trl"), per_device_train_batch_size=BATCH, num_train_epochs=1, max_length=MAX_LENGTH,
            learning_rate=LR, lr_scheduler_type="constant", optim="adamw_torch", seed=seed, use_cpu=True, bf16=False,
            save_strategy="no", report_to="none", disable_tqdm=True, gradient_checkpointing=False,
        ),
        train_dataset=data,
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(folder / "trl" / "final"))


def run_today(folder: Path, cells: int) -> float:
    """Run the cells one after another with TRL and the lm_eval command line; return seconds."""
    lm_eval = [
        str(Path(sys.executable).parent / "lm_eval"), "--model", "hf", "--device", "cpu", "--batch_size", "16",
        "--model_args", f"pretrained={folder / 'trl' / 'final'},dtype=float32", "--include_path", str(folder),
        "--tasks", "bench_mc,bench_bpb",
    ]  # fmt: skip
    began = time.perf_counter()
    for seed in range(cells):
        train = [sys.executable, __file__, "--peer", str(folder), "--seed", str(seed)]
        for command in (train, lm_eval):
            subprocess.run(command, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Measure both sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=12)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        train_with_trl(arguments.peer, arguments.seed)
        return
    count = SAMPLES + SHOTS + QUESTIONS + TEXTS
    rows = (
        [json.loads(line) for line in arguments.data.read_text().splitlines()] if arguments.data else made_rows(count)
    )
    with tempfile.TemporaryDirectory(prefix="massive-sft-bench-") as name:
        folder = Path(name)
        make_world(folder, rows[:count])
        ours, theirs = run_sweep(folder, arguments.cells), run_today(folder, arguments.cells)
    print(f"{arguments.cells} cells on {platform.machine()}, {os.cpu_count()} cores")
    print(f"massive-sft run {ours:8.1f} s   TRL + lm_eval {theirs:8.1f} s   ratio {theirs / ours:.2f}")


if __name__ == "__main__":
    main()
