"""Ten snapshots of one base on a new benchmark: one command of ours beside ten of ``lm_eval``, in one run.

    python benchmarks/ten_snapshots.py [--questions N] [--shots N] [--snapshots N] [--batches N ...]

A random Llama of 29M parameters is trained by LoRA for ten epochs of eight samples, whose adapters stay. Then the sweep
asks for one benchmark more, of questions with four answers of several words behind a common few-shot head. Timed is
`massive-sft run --inline` from its start to its report, and for each adapter an `lm_eval` command with its Hugging Face
backend, at the batch size that was fastest for the first one; a process at a time on one thread each. It fails where an
accuracy differs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from scorer import SMALL, random_llama, word_tokenizer, words_of
from sweep import ENVIRONMENT, write_lines

import massive_sft as ms

PYTHON = Path(sys.executable).parent
TASK = "answers"
QUESTION, ANSWER, CHOICES = 110, 4, 4  # words of a question (which vary by half), of an answer; answers of a question


def make_world(folder: Path, questions: int, shots: int) -> None:
    """Write the base model, what it is trained on and the benchmark."""
    tokenizer = word_tokenizer()
    tokenizer.save_pretrained(folder / "base")
    random_llama(SMALL).save_pretrained(folder / "base")
    draw, vocabulary = random.Random(0), words_of(tokenizer)

    def words(number: int) -> str:
        return " ".join(draw.choices(vocabulary, k=number))

    write_lines(folder / "train.jsonl", [{"question": words(20), "answer": words(20)} for _ in range(8)])
    rows: list[dict[str, object]] = [
        {
            "question": words(draw.randint(QUESTION // 2, QUESTION * 3 // 2)),
            "choices": [words(ANSWER) for _ in range(CHOICES)],
            "answer": draw.randrange(CHOICES),
        }
        for _ in range(shots + questions)
    ]
    head, asked = write_lines(folder / "head.jsonl", rows[:shots]), write_lines(folder / "asked.jsonl", rows[shots:])
    (folder / f"{TASK}.yaml").write_text(
        f"task: {TASK}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {asked}, fewshot: {head}}}}}\n"
        "test_split: test\nfewshot_split: fewshot\nfewshot_config: {sampler: first_n}\n"
        f"num_fewshot: {shots}\noutput_type: multiple_choice\nmetadata: {{version: 1.0}}\n"
        'doc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer\n'
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )


def run(folder: Path, snapshots: int, tasks: list[dict[str, Any]]) -> float:
    """Run the sweep with these benchmarks; return seconds."""
    file = {
        "schema": 1,
        "name": "ten",
        "models": {"base": {"path": "base"}},
        "datasets": {"train": {"path": "train.jsonl", "format": "gsm8k"}},
        "mixtures": {"one": {"each": "train"}},
        "settings": {"lora": {"method": "lora", "lr": 1e-3, "batch": 8, "max_length": 64, "precision": "fp32"}},
        "blocks": [
            {"name": "A", "model": "base", "mixture": "one", "setting": "lora", "schedule": "constant"}
            | {"horizon": snapshots, "snapshots": list(range(1, snapshots + 1))}
        ],
        "evaluation": {
            "base": False,
            "protocol": {"dtype": "fp32", "template": "none", "engine": "trie"},
            "tasks": tasks,
        },
        "storage": {"root": "ledger"},
    }
    with (folder / "ten.yaml").open("w") as text:
        YAML(typ="safe").dump(file, text)
    command = [str(PYTHON / "massive-sft"), "run", "--inline", str(folder / "ten.yaml")]
    return seconds_of(command)


def seconds_of(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def ask_lm_eval(folder: Path, adapter: Path, batch: int) -> tuple[float, float]:
    """Score an adapter by ``lm_eval``'s command; return its seconds and the accuracy."""
    answers = folder / "peer" / f"{adapter.name}-{batch}"
    seconds = seconds_of([
        str(PYTHON / "lm_eval"), "--model", "hf", "--device", "cpu", "--batch_size", str(batch), "--tasks", TASK,
        "--model_args", f"pretrained={folder / 'base'},peft={adapter},dtype=float32",
        "--include_path", str(folder), "--output_path", str(answers),
    ])  # fmt: skip
    (found,) = answers.rglob("results_*.json")
    return seconds, json.loads(found.read_text())["results"][TASK]["acc,none"]


def main() -> None:
    """Measure both sides, hold their accuracies together and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--snapshots", type=int, default=10)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16], help="batch sizes of lm_eval")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="massive-sft-bench-") as name:
        folder = Path(name)
        make_world(folder, arguments.questions, arguments.shots)
        run(folder, arguments.snapshots, [])
        ours_s = run(folder, arguments.snapshots, [{"path": f"{TASK}.yaml", "shots": arguments.shots}])
        scores = ms.load(folder / "ten.yaml").scores
        ours = scores[scores.metric == "acc"].set_index("epoch").value.to_dict()
        adapters = sorted((folder / "ledger").glob("trajectories/*/snapshots/*"), key=lambda path: int(path.name[6:]))
        first = {batch: ask_lm_eval(folder, adapters[0], batch) for batch in arguments.batches}
        best = min(first, key=lambda batch: first[batch][0])
        theirs = [first[best], *(ask_lm_eval(folder, adapter, best) for adapter in adapters[1:])]
    peer_s = sum(seconds for seconds, _ in theirs)
    accuracies = [accuracy for _, accuracy in theirs]
    print(f"{len(adapters)} snapshots, {arguments.questions} questions, {platform.machine()}, {os.cpu_count()} cores")
    print(
        "lm_eval, first snapshot:",
        ", ".join(f"{seconds:.1f} s at batch {batch}" for batch, (seconds, _) in first.items()),
    )
    print(f"massive-sft run {ours_s:8.1f} s   lm_eval {peer_s:8.1f} s   ratio {peer_s / ours_s:.1f}")
    assert [ours[epoch] for epoch in sorted(ours)] == accuracies, (ours, accuracies)


if __name__ == "__main__":
    main()
