"""Holds log-probabilities of lm-eval's Hugging Face backend and of both engines against a float64 forward pass.

    python benchmarks/rounding.py --model FOLDER [--questions FILE.csv] [--shots N] [--count N] [--workload NAME]

A Llama in fp32. The truth computes norms, softmax and output layer in float64, with the rotary tables of fp32. Questions
are rows of JMMLU (question, four choices, letter); without a file those of a workload of `benchmarks/scorer.py`. It needs
lm-eval.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from scorer import WORKLOADS, requests_of, texts_of, words_of
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama import modeling_llama

from massive_sft.evaluation.encoding import RequestEncoder
from massive_sft.evaluation.scorer import PlainScorer
from massive_sft.evaluation.tree import TreeScorer

LENGTH = 2048
LETTERS = "ABCD"
Pair = tuple[str, str]


def letters_after(rows: Sequence[Sequence[str]], shots: int) -> list[Pair]:
    """Return each question behind ``shots`` answered ones, with each of four letters."""

    def asked(row: Sequence[str]) -> str:
        choices = "".join(f"{letter}. {text}\n" for letter, text in zip(LETTERS, row[1:5], strict=True))
        return f"{row[0]}\n{choices}Answer:"

    head = "".join(f"{asked(row)} {row[5]}\n\n" for row in rows[:shots])
    return [(head + asked(row), f" {letter}") for row in rows[shots:] for letter in LETTERS]


def of_backend(model: Any, tokenizer: Any, texts: Sequence[Pair], batch: int) -> list[float]:
    peer = HFLM(model, tokenizer=tokenizer, batch_size=batch, device="cpu", max_length=LENGTH)
    instances = [Instance("loglikelihood", {}, text, i) for i, text in enumerate(texts)]
    return [answer[0] for answer in peer.loglikelihood(instances, disable_tqdm=True)]


@contextmanager
def softmax_in_float64() -> Iterator[None]:
    """Within it the backend's log-softmax is computed in float64."""
    plain = torch.nn.functional.log_softmax

    def exact(logits: torch.Tensor, dim: int = -1, dtype: Any = None) -> torch.Tensor:
        return plain(logits.double(), dim=dim)

    with patch.object(torch.nn.functional, "log_softmax", exact):
        yield


def of_engine(scorer: PlainScorer, texts: Sequence[Pair]) -> list[float]:
    responses, _ = scorer.score(requests_of(list(texts)))
    assert getattr(scorer, "fallback", None) is None
    return [response.logprob for response in responses]  # type: ignore[union-attr]


def _norm(self: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The norm without transformers' cast to fp32."""
    return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


@torch.inference_mode()
def truth(folder: Path, tokenizer: Any, texts: Sequence[Pair]) -> list[float]:
    """Return each continuation's log-probability by a forward pass of its own in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rotary: Callable[..., Any] = model.model.rotary_emb.forward
    model = model.double()
    inverse = model.model.rotary_emb.inv_freq
    model.model.rotary_emb.inv_freq = inverse.float()

    def tables(hidden: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(table.double() for table in rotary(hidden.float(), position_ids))

    model.model.rotary_emb.forward = tables
    encoder, found = RequestEncoder(tokenizer), []
    with patch.object(modeling_llama.LlamaRMSNorm, "forward", _norm):
        for context, continuation in texts:
            head, tail = encoder.pair(context, continuation)
            logits = model(input_ids=torch.tensor([[*head, *tail[:-1]]]), use_cache=False).logits[0, -len(tail) :]
            assert logits.dtype == torch.float64
            found.append(float(logits.log_softmax(-1)[range(len(tail)), tail].sum()))
    return found


def main() -> None:
    """Print the distances of each to the truth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--questions", type=Path)
    parser.add_argument("--shots", type=int, default=0)
    parser.add_argument("--count", type=int, default=8)
    kinds = [name for name, workload in WORKLOADS.items() if workload.choice]
    parser.add_argument("--workload", choices=kinds, default="5-shot-letters")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    if options.questions:
        with options.questions.open(encoding="utf-8-sig") as file:
            texts = letters_after(list(csv.reader(file))[: options.shots + options.count], options.shots)
    else:
        texts = texts_of(WORKLOADS[options.workload], options.count, words_of(tokenizer))
    found = {f"backend, batch {batch}": of_backend(model, tokenizer, texts, batch) for batch in (1, 4)}
    with softmax_in_float64():
        found["backend, batch 1, log-softmax in float64"] = of_backend(model, tokenizer, texts, 1)
    found["plain engine"] = of_engine(PlainScorer(model, tokenizer, max_length=LENGTH), texts)
    found["tree engine"] = of_engine(TreeScorer(model, tokenizer, max_length=LENGTH), texts)
    exact = truth(options.model, tokenizer, texts)
    for name, values in found.items():
        off = [abs(one - other) for one, other in zip(values, exact, strict=True)]
        least = 1e-5 if all(len(choice.split()) == 1 for _, choice in texts) else 1e-4  # a token's, a continuation's
        beyond = sum(distance > least for distance in off)
        print(f"{name:42} mean {mean(off):.2e}  largest {max(off):.2e}  beyond {least:.0e}: {beyond} of {len(off)}")


if __name__ == "__main__":
    main()
