"""What a sweep recorded of a real model, computed again by other means: the ``lm_eval`` command and plain PyTorch.

    MODELS=... DATA=... ROOT=... python benchmarks/real_model.py [--sweep sweeps/real_model.yaml] [--where CONDITION]

The cells that ``--where`` selects must be complete and have their snapshots. Their perplexity and layer change are
computed from the tokenizer, the template's text and the weight files alone. Then their scores: the sweep is run once more
under ``sweeps/real_model_lm_eval.yaml`` (no template, fp32), each cell is exported, ``lm_eval --model hf`` scores the
exported folder (an adapter on its base), and every answer is set beside ours, question by question.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from massive_sft.ledger.store import Ledger
from massive_sft.planning import selection
from massive_sft.planning.plan import CellPlan, Plan, RunPlan, make_plan
from massive_sft.running.outcome import open_snapshot
from massive_sft.running.samples import build_recipe_samples
from massive_sft.sweep.load import load_sweep
from massive_sft.sweep.schema import Task

BIN = Path(sys.executable).parent
OVERLAY = Path("sweeps/real_model_lm_eval.yaml")
PROMPT, EOS = "###Question: {}\n###Answer: ", "<|im_end|>"
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def cells_of(plan: Plan, condition: selection.Selection) -> list[tuple[CellPlan, RunPlan | None]]:
    """Return the plan's cells that meet the condition; a base row has no run."""
    trained = [(cell, run) for run in plan.runs for cell in run.cells if condition(cell)]
    return [*((cell, None) for cell in plan.base if condition(cell)), *trained]


def plain_perplexity(run: RunPlan, measured: dict[str, Any]) -> None:
    """Print the perplexity of a run's training data under its base, per response token, with its end and without."""
    recipe = run.trajectory.recipe
    tokenizer = AutoTokenizer.from_pretrained(recipe.model.path)
    model = AutoModelForCausalLM.from_pretrained(recipe.model.path, dtype=DTYPES[recipe.setting.precision])
    samples = build_recipe_samples(recipe)[0]
    nll, count, end_nll, ends, size = 0.0, 0, 0.0, 0, 0
    for number in range(len(samples)):
        tokens, _ = samples[number]
        text = tokenizer.decode(tokens)
        opening, border, _ = text.partition("\n###Answer:")  # not in it: a long answer lost its beginning
        begin = len(opening + border) if border else 0
        head = max(1, len(tokenizer(text[:begin])["input_ids"]))
        assert tokenizer(text)["input_ids"] == list(tokens), "the text is not tokenised as it was trained"
        with torch.inference_mode():
            logits = model(torch.tensor(np.array(tokens)[None], dtype=torch.long)).logits[0].float()
        losses = torch.nn.functional.cross_entropy(
            logits[:-1], torch.tensor(np.array(tokens)[1:]).long(), reduction="none"
        )
        closed = text.endswith(EOS)
        nll += float(losses[head - 1 :].sum())
        count += len(tokens) - head
        end_nll, ends = end_nll + closed * float(losses[-1]), ends + closed
        size += len(text[begin : -len(EOS) if closed else None].encode())
    print(f"  perplexity: plain {math.exp(nll / count):.4f}, without the end {math.exp((nll - end_nll) / (count - ends)):.4f}, "
          f"bits per byte {(nll - end_nll) / math.log(2) / size:.5f}; {count} tokens, {size} bytes")  # fmt: skip
    print(f"  recorded: {json.dumps(measured['response'])}")


def plain_layer_change(run: RunPlan, snapshot: Path, measured: dict[str, Any]) -> None:
    """Print the relative Frobenius norm of what training added to the base, from the weight files."""
    recipe = run.trajectory.recipe
    dtype = DTYPES[recipe.setting.precision]
    base = {k: v.to(dtype).double() for k, v in load_file(Path(str(recipe.model.path)) / "model.safetensors").items()}
    if recipe.setting.method == "full":
        end = {k: v.double() for k, v in load_file(snapshot / "model.safetensors").items()}
        delta = {k: end[k] - base[k] for k in end}
    else:
        adapter, scale = (
            load_file(snapshot / "adapter_model.safetensors"),
            recipe.setting.lora.alpha / recipe.setting.lora.rank,
        )
        names = [k.removeprefix("base_model.model.").removesuffix(".lora_A.weight") for k in adapter if "lora_A" in k]
        pairs = {
            f"{n}.weight": [adapter[f"base_model.model.{n}.lora_{m}.weight"].double() for m in "BA"] for n in names
        }
        delta = {k: scale * b @ a for k, (b, a) in pairs.items()}
    norms = [math.sqrt(sum(float(v.square().sum()) for v in group.values())) for group in (delta, base)]
    print(f"  layer change: plain {norms[0] / norms[1]:.6e}, recorded {measured['relative']:.6e}")


def exported(cell: CellPlan, run: RunPlan | None, sweep: Path, folder: Path) -> str:
    """Return lm_eval's model arguments for a cell's exported folder."""
    base = cell.cell.model.path
    if run is None:
        return f"pretrained={base}"
    subprocess.run(
        [BIN / "massive-sft", "export", cell.cell.id, folder, "--sweep", sweep], check=True, capture_output=True
    )
    lora = (folder / "adapter_config.json").exists()
    return f"pretrained={base},peft={folder}" if lora else f"pretrained={folder}"


def lm_eval_answers(arguments: str, task: Task, shots: int, out: Path) -> list[Any]:
    """Run the lm_eval command on one task file; return the answers in the order of its requests."""
    path = Path(str(task.path))
    name = next(line.split(":")[1].strip() for line in path.read_text().splitlines() if line.startswith("task:"))
    command = [
        BIN / "lm_eval", "--model", "hf", "--model_args", f"{arguments},dtype=float32", "--device", "cpu", "--batch_size", "1",
        "--include_path", path.parent, "--tasks", name, "--num_fewshot", str(shots), "--limit", str(task.limit),
        "--log_samples", "--output_path", out,
    ]  # fmt: skip
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    lines = [
        json.loads(line) for file in out.rglob(f"samples_{name}_*.jsonl") for line in file.read_text().splitlines()
    ]
    return [answer[0] for line in sorted(lines, key=lambda line: line["doc_id"]) for answer in line["resps"]]


def our_answers(ledger: Ledger, cell: CellPlan, protocol: str) -> Iterator[Any]:
    """Yield our stored answers: texts, or log-probabilities."""
    for path in sorted((ledger.cell_dir(cell.cell.id) / "responses" / protocol).rglob("*.jsonl.gz")):
        for line in gzip.decompress(path.read_bytes()).decode().split("\n")[1:]:
            answer = json.loads(line)
            yield answer["text"] if answer["kind"] == "generated" else answer["logprob"]


def compare(ours: list[Any], theirs: list[Any]) -> str:
    """Return how many answers agree, and the largest difference of log-probabilities."""
    assert len(ours) == len(theirs), f"{len(ours)} answers of ours, {len(theirs)} of lm_eval"
    if isinstance(ours[0], str):
        different = [pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]]
        listed = "".join(f"\n      {a!r}\n      {b!r}" for a, b in different)
        return f"{len(ours) - len(different)} of {len(ours)} texts equal{listed}"
    numbers = [float(answer[0] if isinstance(answer, list) else answer) for answer in theirs]
    return f"{len(ours)} log-probabilities, largest difference {max(abs(a - b) for a, b in zip(ours, numbers, strict=True)):.1e}"


def main() -> None:
    """Print what was recorded beside what the other means give."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", type=Path, default=Path("sweeps/real_model.yaml"))
    parser.add_argument("--where", default=None, help="which cells, as the command line writes it")
    arguments = parser.parse_args()
    condition = selection.parse_where(arguments.where)
    plan = make_plan(load_sweep(arguments.sweep))
    ledger = Ledger.open(plan.root, create=False)
    for cell, run in cells_of(plan, condition):
        if run is not None:
            print(cell.cell.coordinates)
            record = ledger.read_record(cell.cell.id)
            with open_snapshot(ledger, run.trajectory.id, cell.cell.epoch) as found:
                assert record is not None and found is not None
                plain_layer_change(run, found[0], record.measures["layer_change"])
            plain_perplexity(run, record.measures["perplexity"])
    chosen = [] if arguments.where is None else ["--where", arguments.where]
    subprocess.run([BIN / "massive-sft", "run", arguments.sweep, "--overlay", OVERLAY, "--inline", *chosen], check=True)
    plan = make_plan(load_sweep(arguments.sweep, [OVERLAY]))
    protocol = plan.sweep.file.evaluation.protocol
    asked = {item.id for item in plan.cells[0].requirements if item.task}
    assert protocol.template == "none" and asked
    for cell, run in cells_of(plan, condition):
        print(cell.cell.coordinates)
        record = ledger.read_record(cell.cell.id)
        assert record is not None
        with tempfile.TemporaryDirectory() as name:
            model = exported(cell, run, arguments.sweep, Path(name) / "model")
            for item in cell.requirements:
                for protocol_id, scores in record.scores.items():
                    if item.task is not None and scores.asked == item.id:
                        theirs = lm_eval_answers(model, item.task, scores.shots, Path(name) / "out" / scores.benchmark)
                        print(f"  {scores.benchmark}: {compare(list(our_answers(ledger, cell, protocol_id)), theirs)}")


if __name__ == "__main__":
    main()
