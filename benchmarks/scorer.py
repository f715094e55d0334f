"""Times the tree engine beside lm-eval's own Hugging Face backend, and holds their scores together.

    python benchmarks/scorer.py [--model FOLDER] [--workload NAME ...] [--batches N ...] [--threads N] [--scale X]
    python benchmarks/scorer.py --gpu       tree and plain engine on one GPU, a 1.3B random Llama in bf16 and fp32

A quarter of each workload is answered once by HFLM at every batch size (its cache of scores off, that of its logits on,
as by default), the whole of it by turns at the best of them and by the tree engine; both encode the texts. Medians are
compared. Seconds are those of the clock and of the processor, which a busy machine changes less. It fails where the scores differ. It needs lm-eval
but for ``--gpu``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from massive_sft.evaluation.requests import Likelihood, Request, Rolling
from massive_sft.evaluation.scorer import PlainScorer
from massive_sft.evaluation.tree import TreeScorer

VOCABULARY = 32768
SMALL = {"hidden_size": 448, "intermediate_size": 1232, "num_hidden_layers": 6, "num_attention_heads": 7}
LARGE = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16}


@dataclass(frozen=True)
class Workload:
    """Questions with four choices, or texts when ``choice`` is 0; lengths in words, which vary by half and by a third.

    Attributes:
        shots, shot: how many examples every prompt begins with, and how long one is.
        question, choice: how long a question (or a text) and a choice are.
        cpu, gpu: questions or texts on each.
    """

    shots: int
    shot: int
    question: int
    choice: int
    cpu: int
    gpu: int


WORKLOADS = {
    "5-shot-letters": Workload(5, 110, 110, 1, 100, 256),
    "5-shot-answers": Workload(5, 110, 110, 4, 48, 256),
    "10-shot-endings": Workload(10, 100, 40, 25, 24, 128),
    "0-shot-endings": Workload(0, 0, 40, 25, 60, 256),
    "rolling": Workload(0, 0, 200, 0, 40, 128),
}
CHOICES = 4
Pair = tuple[str, str]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 32,768 words, each a token."""
    vocabulary = {"<s>": 0, "</s>": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", pad_token="</s>", model_max_length=4096)


def random_llama(sizes: dict[str, Any], **where: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(**{"tie_word_embeddings": True, **sizes}, vocab_size=VOCABULARY, max_position_embeddings=4096)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 0, 1, 1
    with torch.device(where.get("device", "cpu")):
        return LlamaForCausalLM(config).to(where.get("dtype", torch.float32)).eval()


def words_of(tokenizer: Any) -> list[str]:
    """Return the words that are a token each behind a space."""
    vocabulary = tokenizer.get_vocab()
    marked = sorted(token[1:] for token in vocabulary if re.fullmatch("[\u0120\u2581][a-z]{2,}", token))
    return marked or sorted(word for word in vocabulary if re.fullmatch(r"w\d+", word))


def texts_of(workload: Workload, count: int, vocabulary: list[str]) -> list[Pair]:
    """Return contexts with their continuations, four to a question; or texts, each with an empty context."""
    draw = random.Random(0)

    def words(number: int) -> str:
        return " ".join(draw.choices(vocabulary, k=number))

    def about(number: int, share: int) -> int:
        return max(1, number + draw.randint(-number // share, number // share))

    head = words(workload.shots * workload.shot) + " " if workload.shots else ""
    letters = [words(1) for _ in range(CHOICES)]
    found = []
    for _ in range(count):
        context = head + words(about(workload.question, 2))
        if workload.choice == 0:
            found.append(("", context))
            continue
        endings = letters if workload.choice == 1 else [words(about(workload.choice, 3)) for _ in range(CHOICES)]
        found += [(context, f" {ending}") for ending in endings]
    return found


def requests_of(texts: list[Pair]) -> list[Request]:
    return [
        Likelihood(i, i // CHOICES, i % CHOICES, "", 1, *text) if text[0] else Rolling(i, i, 0, "", 1, text[1])
        for i, text in enumerate(texts)
    ]


def timed(work: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    """Return the seconds of clock and processor that work took, and what it returns."""
    clock, processor = time.perf_counter(), time.process_time()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - clock, time.process_time() - processor), result


def medians(times: list[tuple[float, float]]) -> list[float]:
    """Return the medians of seconds by the clock and by the processor."""
    return [round(median(column), 3) for column in zip(*times, strict=True)]


def picks(values: list[float]) -> list[tuple[int, float]]:
    """Return of every four values the largest's place, and its margin."""
    found = []
    for start in range(0, len(values), CHOICES):
        four = values[start : start + CHOICES]
        first, second = sorted(four, reverse=True)[:2]
        found.append((four.index(first), first - second))
    return found


def compared(ours: list[float], theirs: list[float], tokens: list[int], choices: bool) -> dict[str, Any]:
    """Return how two engines' log-probabilities differ; picks where the margin exceeds 2e-4, the others are ties.

    The size of a log-probability is its tokens, or itself where that is more: fp32 keeps seven digits of either.
    """
    deltas = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    sizes = [max(count, abs(value)) for count, value in zip(tokens, theirs, strict=True)]
    result: dict[str, Any] = {
        "max_delta": max(deltas),
        "max_delta_per_token": max(delta / count for delta, count in zip(deltas, tokens, strict=True)),
        "max_delta_per_size": max(delta / size for delta, size in zip(deltas, sizes, strict=True)),
    }
    if choices:
        clear = [one[0] == other[0] for one, other in zip(picks(ours), picks(theirs), strict=True) if other[1] > 2e-4]
        result |= {"equal_picks": f"{sum(clear)} of {len(clear)}", "ties": len(ours) // CHOICES - len(clear)}
    return result


def require_equal(found: dict[str, Any], tokens: list[int]) -> None:
    """Raise AssertionError where fp32 scores are further apart than they may be, or a pick differs.

    A continuation of at most 64 tokens by no more than 1e-4, or by a millionth of its size where it is some hundred nats:
    of one that improbable fp32 itself keeps no more.
    """
    assert found["max_delta_per_size"] <= 1e-5, found
    assert max(tokens) > 64 or found["max_delta"] <= 1e-4 or found["max_delta_per_size"] <= 1e-6, found
    equal, _, clear = found.get("equal_picks", "0 of 0").partition(" of ")
    assert equal == clear, found


def beside_lm_eval(model: Any, tokenizer: Any, name: str, batches: list[int], repeats: int, scale: float) -> None:
    """Print one line: seconds of HFLM by batch size and of the tree (clock, processor), ratios and differences."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    texts = texts_of(WORKLOADS[name], max(4, int(WORKLOADS[name].cpu * scale)), words_of(tokenizer))
    asked = requests_of(texts)
    choices = isinstance(asked[0], Likelihood)
    kind = "loglikelihood" if choices else "loglikelihood_rolling"
    instances = [Instance(kind, {}, text if choices else text[1:], i) for i, text in enumerate(texts)]
    scorer = TreeScorer(model, tokenizer, max_length=4096)
    first, _ = timed(partial(scorer.score, asked))  # proves itself, as once in every load of a model

    def backend(batch: int, part: list[Any]) -> tuple[tuple[float, float], Any]:
        peer = HFLM(model, tokenizer=tokenizer, batch_size=batch, device="cpu", max_length=4096)
        return timed(partial(getattr(peer, kind), part, disable_tqdm=True))

    table = {batch: backend(batch, instances[: max(CHOICES, len(instances) // 4)])[0] for batch in batches}
    best = min(table, key=table.__getitem__)
    theirs, ours, answers, found = [], [], [], []
    for _ in range(repeats):
        seconds, answers = backend(best, instances)
        theirs.append(seconds)
        seconds, (found, _) = timed(partial(scorer.score, asked))
        ours.append(seconds)
    peer, tree = medians(theirs), medians(ours)
    tokens = [response.tokens for response in found]
    values = [answer[0] for answer in answers] if choices else answers
    differences = compared([response.logprob for response in found], values, tokens, choices)
    result = {
        "workload": name,
        "requests": len(asked),
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "hflm_quarter_s": {batch: medians([seconds]) for batch, seconds in table.items()},
        "batch": best,
        "hflm_s": peer,
        "tree_s": tree,
        "tree_first_s": medians([first]),
        "ratio": round(peer[0] / tree[0], 2),
        "processor_ratio": round(peer[1] / tree[1], 2),
        "fallback": scorer.fallback,
        **differences,
    }
    print(json.dumps(result), flush=True)
    require_equal(differences, tokens)


def on_gpu() -> None:
    """Print a line for each precision and workload: seconds of both engines, their ratio and differences."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = word_tokenizer()
    for dtype in (torch.bfloat16, torch.float32):
        model = random_llama(LARGE if device == "cuda" else SMALL, device=device, dtype=dtype)
        for name, workload in WORKLOADS.items():
            asked = requests_of(texts_of(workload, workload.gpu if device == "cuda" else 8, words_of(tokenizer)))
            plain, tree = PlainScorer(model, tokenizer, max_length=4096), TreeScorer(model, tokenizer, max_length=4096)
            tree.score(asked)
            plain.score(asked[:8])
            plain_s, (expected, _) = timed(partial(plain.score, asked))
            runs = [timed(partial(tree.score, asked)) for _ in range(3)]
            found, again = runs[0][1][0], runs[1][1][0]
            tree_s = medians([seconds for seconds, _ in runs])[0]
            result = {"plain_s": plain_s[0], "tree_s": tree_s, "ratio": plain_s[0] / tree_s, "fallback": tree.fallback}
            choices, tokens = isinstance(asked[0], Likelihood), [r.tokens for r in found]
            result |= compared([r.logprob for r in found], [r.logprob for r in expected], tokens, choices)
            line = {"dtype": str(dtype), "workload": name, **result, "bit_equal_again": found == again}
            print(json.dumps(line), flush=True)
        del model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="tree and plain engine on one GPU")
    parser.add_argument("--model", type=Path, help="a model's folder; a random Llama of 29M parameters when left out")
    parser.add_argument("--workload", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16], help="batch sizes of HFLM")
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement, whose median counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of questions")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as the package has it; HFLM encodes text by text anyway
    if arguments.gpu:
        on_gpu()
    else:
        if arguments.model:
            loaded = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
            words = AutoTokenizer.from_pretrained(arguments.model)
        else:
            loaded, words = random_llama(SMALL), word_tokenizer()
        for chosen in arguments.workload:
            beside_lm_eval(loaded, words, chosen, arguments.batches, arguments.repeats, arguments.scale)
