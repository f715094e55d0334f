"""Times the tree engine beside lm-eval's own Hugging Face backend, and holds their scores together.

    python benchmarks/scorer.py [--model FOLDER] [--threads N] [--scale X]
    python benchmarks/scorer.py --gpu       tree and plain engine on one GPU, a 1.3B random Llama in bf16 and fp32

Each workload is answered by HFLM at every batch size (its score cache off), then by the tree engine; encoding is
included in both. The best of HFLM's is what the tree is compared to. It needs lm-eval but for ``--gpu``.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from massive_sft.evaluation.requests import Likelihood, Request
from massive_sft.evaluation.scorer import PlainScorer
from massive_sft.evaluation.tree import TreeScorer

VOCABULARY = 32768
BATCHES = (1, 4, 16)
SMALL = {"hidden_size": 448, "intermediate_size": 1232, "num_hidden_layers": 6, "num_attention_heads": 7}
LARGE = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16}
# Name: shots, tokens of a shot, of a question, of a choice; questions on a CPU and on a GPU.
WORKLOADS = {
    "5-shot, choices of one token": (5, 110, 110, 1, 100, 256),
    "10-shot, endings of 25 tokens": (10, 100, 40, 25, 24, 128),
    "0-shot, endings of 25 tokens": (0, 0, 40, 25, 60, 256),
}
Pair = tuple[str, str]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 32,768 words, each a token."""
    vocabulary = {"<s>": 0, "</s>": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", pad_token="</s>", model_max_length=4096)


def random_llama(sizes: dict[str, int], **where: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(**sizes, vocab_size=VOCABULARY, max_position_embeddings=4096, tie_word_embeddings=True)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 0, 1, 1
    with torch.device(where.get("device", "cpu")):
        return LlamaForCausalLM(config).to(where.get("dtype", torch.float32)).eval()


def pairs(workload: str, questions: int) -> list[Pair]:
    """Return contexts with four continuations each; all begin with the same shots."""
    shots, shot, question, choice, *_ = WORKLOADS[workload]
    draw = random.Random(0)

    def words(count: int) -> str:
        return " ".join(f"w{draw.randrange(2, VOCABULARY)}" for _ in range(count))

    head = words(shots * shot) + " " if shots else ""
    letters = [words(choice) for _ in range(4)]
    found = []
    for _ in range(questions):
        context = head + words(max(1, question + draw.randint(-question // 2, question // 2)))
        lengths = [max(1, choice + draw.randint(-choice // 3, choice // 3)) for _ in range(4)]
        endings = letters if choice == 1 else [words(length) for length in lengths]
        found += [(context, f" {ending}") for ending in endings]
    return found


def likelihoods(texts: list[Pair]) -> list[Request]:
    return [Likelihood(i, i // 4, i % 4, "", 1, *text) for i, text in enumerate(texts)]


def timed(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        result = work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return median(seconds), result


def picks(values: list[float]) -> list[tuple[int, float]]:
    """Return of every four values the largest's place, and its margin."""
    found = []
    for start in range(0, len(values), 4):
        four = values[start : start + 4]
        first, second = sorted(four, reverse=True)[:2]
        found.append((four.index(first), first - second))
    return found


def compared(ours: list[float], theirs: list[float], tokens: list[int]) -> dict[str, Any]:
    deltas = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    clear = [one[0] == other[0] for one, other in zip(picks(ours), picks(theirs), strict=True) if other[1] > 2e-4]
    return {
        "max_delta": max(deltas),
        "max_delta_per_token": max(delta / count for delta, count in zip(deltas, tokens, strict=True)),
        "equal_picks": f"{sum(clear)} of {len(clear)}",
        "ties": len(ours) // 4 - len(clear),
    }


def beside_lm_eval(model: Any, tokenizer: Any, scale: float) -> None:
    """Print a line for each workload: HFLM's seconds by batch size, the tree's, their ratio and differences."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    for name, sizes in WORKLOADS.items():
        texts = pairs(name, max(4, int(sizes[4] * scale)))
        asked = [Instance("loglikelihood", {}, text, i) for i, text in enumerate(texts)]
        table, answers = {}, []
        for batch in BATCHES:
            peer = HFLM(model, tokenizer=tokenizer, batch_size=batch, device="cpu", max_length=4096)
            table[batch], answers = timed(partial(peer.loglikelihood, asked, disable_tqdm=True), 1)
        scorer = TreeScorer(model, tokenizer, max_length=4096)
        scorer.score(likelihoods(texts[:8]))  # proves itself
        seconds, (found, _) = timed(partial(scorer.score, likelihoods(texts)), 3)
        result = {
            "hflm_s": table,
            "tree_s": seconds,
            "ratio": min(table.values()) / seconds,
            "fallback": scorer.fallback,
        }
        values = [logprob for logprob, _ in answers]
        result |= compared([r.logprob for r in found], values, [r.tokens for r in found])
        print(json.dumps({"workload": name, "requests": len(texts), **result}), flush=True)


def on_gpu() -> None:
    """Print a line for each precision and workload: seconds of both engines, their ratio and differences."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = word_tokenizer()
    for dtype in (torch.bfloat16, torch.float32):
        model = random_llama(LARGE if device == "cuda" else SMALL, device=device, dtype=dtype)
        for name, sizes in WORKLOADS.items():
            asked = likelihoods(pairs(name, sizes[5] if device == "cuda" else 8))
            plain, tree = PlainScorer(model, tokenizer, max_length=4096), TreeScorer(model, tokenizer, max_length=4096)
            tree.score(asked[:8])
            plain.score(asked[:8])
            plain_s, (expected, _) = timed(partial(plain.score, asked), 1)
            tree_s, (found, _) = timed(partial(tree.score, asked), 3)
            result = {"plain_s": plain_s, "tree_s": tree_s, "ratio": plain_s / tree_s, "fallback": tree.fallback}
            result |= compared([r.logprob for r in found], [r.logprob for r in expected], [r.tokens for r in found])
            equal = found == tree.score(asked)[0]
            print(json.dumps({"dtype": str(dtype), "workload": name, **result, "bit_equal_again": equal}), flush=True)
        del model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="tree and plain engine on one GPU")
    parser.add_argument("--model", type=Path, help="a model's folder; a random Llama of 29M parameters when left out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of questions")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.gpu:
        on_gpu()
    elif arguments.model:
        loaded = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
        beside_lm_eval(loaded, AutoTokenizer.from_pretrained(arguments.model), arguments.scale)
    else:
        beside_lm_eval(random_llama(SMALL), word_tokenizer(), arguments.scale)
