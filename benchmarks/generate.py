"""Times generation beside lm-eval's own Hugging Face backend, and holds their texts together.

    python benchmarks/generate.py [--model FOLDER] [--workload NAME ...] [--batches N ...] [--threads N] [--scale X]

A quarter of each workload is answered once by HFLM at every batch size, the whole of it by turns at the best of them
and in slots; both encode the texts. Medians are compared. Seconds are those of the clock and of the processor, which a busy machine changes less. It fails where
texts differ. It needs lm-eval.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from scorer import SMALL, medians, random_llama, timed, word_tokenizer, words_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from massive_sft.evaluation.requests import Generation
from massive_sft.evaluation.scorer import PlainScorer


@dataclass(frozen=True)
class Workload:
    """Questions to be answered; lengths in words, which vary by half.

    Attributes:
        shots, shot: how many examples every prompt begins with, and how long one is.
        question: how long a question is.
        most: tokens of an answer.
        questions: how many.
    """

    shots: int
    shot: int
    question: int
    most: int
    questions: int


WORKLOADS = {"mixed": Workload(0, 0, 40, 256, 256), "5-shot": Workload(5, 120, 60, 32, 128)}
# Weights so large that a random model's text never runs in circles.
CHAOTIC = {"tie_word_embeddings": False, "initializer_range": 0.1}
# An answer ends at the first token that holds it, which one in about thirty of the word tokenizer's do.
STOP = "99"


def contexts_of(workload: Workload, count: int, vocabulary: Sequence[str]) -> list[str]:
    draw = random.Random(0)

    def words(number: int) -> str:
        return " ".join(draw.choices(vocabulary, k=number))

    head = words(workload.shots * workload.shot) + " " if workload.shots else ""
    half = workload.question // 2
    return [head + words(workload.question + draw.randint(-half, half)) for _ in range(count)]


def gsm8k_contexts(workload: Workload, count: int, data: Path) -> list[str]:
    """Return questions of GSM8K behind as many examples as the workload has."""
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    shots = "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in rows[: workload.shots])
    asked = rows[workload.shots : workload.shots + count]
    return [f"{shots}Question: {row['question']}\nAnswer:" for row in asked]


def beside_lm_eval(
    model: Any, tokenizer: Any, name: str, contexts: list[str], until: list[str], batches: list[int], repeats: int
) -> None:
    """Print one line: seconds of HFLM by batch size and of slots (clock, processor), their ratio, and how texts differ."""
    workload = WORKLOADS[name]
    arguments = {"until": until, "max_gen_toks": workload.most, "do_sample": False}
    instances = [Instance("generate_until", {}, (context, arguments), i) for i, context in enumerate(contexts)]
    asked = [Generation(i, i, 0, "", 1, context, tuple(until), workload.most) for i, context in enumerate(contexts)]
    scorer = PlainScorer(model, tokenizer, max_length=4096)
    first, _ = timed(partial(scorer.score, asked))  # proves itself, as once in every load of a model

    def backend(batch: int, part: list[Any]) -> tuple[tuple[float, float], Any]:
        peer = HFLM(model, tokenizer=tokenizer, batch_size=batch, device="cpu", max_length=4096)
        return timed(partial(peer.generate_until, part, disable_tqdm=True))

    table = {batch: backend(batch, instances[: max(1, len(instances) // 4)])[0] for batch in batches}
    best = min(table, key=table.__getitem__)
    theirs: list[tuple[float, float]] = []
    ours: list[tuple[float, float]] = []
    expected: list[str] = []
    found: list[Any] = []
    happened: dict[str, int] = {}
    for _ in range(repeats):
        seconds, expected = backend(best, instances)
        theirs.append(seconds)
        seconds, (found, happened) = timed(partial(scorer.score, asked))
        ours.append(seconds)
    peer, slots = medians(theirs), medians(ours)
    lengths = [response.tokens for response in found]
    different = [i for i, (one, other) in enumerate(zip(found, expected, strict=True)) if one.text != other]
    result = {
        "workload": name,
        "requests": len(asked),
        "tokens_mean": round(mean(lengths), 1),
        "tokens_most": max(lengths),
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "hflm_quarter_s": {batch: medians([seconds]) for batch, seconds in table.items()},
        "batch": best,
        "hflm_s": peer,
        "slots_s": slots,
        "slots_first_s": medians([first]),
        "ratio": round(peer[0] / slots[0], 2),
        "processor_ratio": round(peer[1] / slots[1], 2),
        "happened": happened,
        "different": different,
    }
    print(json.dumps(result), flush=True)
    assert not different, f"texts of {different} differ"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model's folder; a random Llama of 44M parameters when left out")
    parser.add_argument("--gsm8k", type=Path, help="gsm8k_test.jsonl, for --model; random words when left out")
    parser.add_argument("--until", nargs="+", default=[STOP], help="what ends an answer")
    parser.add_argument("--workload", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--batches", nargs="+", type=int, default=[4, 16, 64], help="batch sizes of HFLM")
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement, whose median counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of questions")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as the package has it; HFLM encodes text by text anyway
    if options.model:
        loaded = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
        words = AutoTokenizer.from_pretrained(options.model)
    else:
        loaded, words = random_llama(SMALL | CHAOTIC), word_tokenizer()
    for chosen in options.workload:
        size = max(4, int(WORKLOADS[chosen].questions * options.scale))
        if options.gsm8k:
            texts = gsm8k_contexts(WORKLOADS[chosen], size, options.gsm8k)
        else:
            texts = contexts_of(WORKLOADS[chosen], size, words_of(words))
        beside_lm_eval(loaded, words, chosen, texts, options.until, options.batches, options.repeats)
