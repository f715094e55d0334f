"""Base models of about a million parameters from text files of one's own: ``python examples/pretrain/from_text.py``.

Each document is the text of one row. What a benchmark asks must not be among them: a document that shares 50
characters with a benchmark's text is dropped and counted. A few minutes a model on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from overlap import Windows
from pretrain import Base, Round, llama, neox, save, stream, train
from text_files import Source, documents, texts_of
from tokenizer import LLAMA, NEOX, config, put_bos_first, trained_bpe
from tokenizers import Tokenizer, pre_tokenizers
from transformers import PreTrainedModel

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.core.files import write_json

VOCABULARY = 2048
HIDDEN = 128
POSITIONS = 1024  # trained on windows of 256; longer texts are scored worse
BATCH, LENGTH = 12, 256
STEPS = 400
LEARNING_RATE = 3e-3
HELD_OUT = 0.03  # of the documents, for the held-out perplexity
PRE_TOKENIZER = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)


@dataclass(frozen=True)
class Corpus:
    """What is trained on: documents by use, and what was left out.

    Attributes:
        train: documents, shuffled.
        held_out: documents that no model is trained on, for a look at its perplexity.
        overlapping: documents dropped by file name, for they hold a benchmark's text.
    """

    train: list[str]
    held_out: list[str]
    overlapping: dict[str, int]


@dataclass(frozen=True)
class Pretrained:
    """A model's size, how long training took (seconds), its held-out loss (nats per token) and bits per byte."""

    parameters: int
    tokens: int
    seconds: float
    held_out_loss: float
    held_out_bits_per_byte: float


def corpus(sources: list[Source], benchmarks: list[Path], seed: int) -> Corpus:
    """Read the sources, drop what overlaps the benchmarks, and set ``HELD_OUT`` of the rest aside.

    Raises:
        InvalidInput: files that cannot be read, with all problems at once; no document is left.
    """
    read = _read(sources, benchmarks)
    windows = Windows(text for file in benchmarks for row in read[file] for text in row)
    strip = [token for special in (LLAMA, NEOX) for token in special.values() if token]
    kept: dict[str, None] = {}
    overlapping: dict[str, int] = {}
    for source in sources:
        found = documents(read[source.path][: source.rows], strip)
        clean = [text for text in found if not windows.overlap(text)]
        overlapping[source.path.name] = len(found) - len(clean)
        kept.update(dict.fromkeys(clean))
    if len(kept) < 2:
        raise InvalidInput(Problem("text files", "leave no documents to train on", [str(s.path) for s in sources]))
    texts = list(kept)
    random.Random(seed).shuffle(texts)
    held_out = max(1, round(HELD_OUT * len(texts)))
    return Corpus(texts[held_out:], texts[:held_out], overlapping)


def _read(sources: list[Source], benchmarks: list[Path]) -> dict[Path, list[list[str]]]:
    read, problems = {}, []
    for path in {**dict.fromkeys(source.path for source in sources), **dict.fromkeys(benchmarks)}:
        try:
            read[path] = texts_of(path)
        except InvalidInput as error:
            problems += error.problems
    if problems:
        raise InvalidInput(problems)
    return read


def pretrain(
    sources: list[Source], benchmarks: list[Path], folder: Path, seed: int = 0, steps: int = STEPS
) -> dict[str, Pretrained]:
    """Pretrain ``text-llama`` and ``text-neox`` on the sources, as Hugging Face folders below ``folder``.

    Each has a fast byte-level BPE tokenizer of ``VOCABULARY`` entries made from the training documents, and bf16
    weights. ``folder/pretraining.json`` tells what went in and what was dropped. Equal files, seed, steps and thread
    count give equal models on one machine; the seed moves the held-out documents and the training windows.

    Args:
        sources: what to train on.
        benchmarks: files or folders of files whose texts must not be trained on.
        folder: made if missing.
        seed: any integer.
        steps: optimizer steps of ``BATCH`` x ``LENGTH`` tokens.

    Raises:
        InvalidInput: files that cannot be read (all of them at once) or written, too little text, no steps.
    """
    if steps < 1:
        raise InvalidInput(Problem("steps", "must be at least 1", steps))
    made = corpus(sources, benchmarks, seed)
    bases = {
        "text-llama": llama(llama_tokenizer(made.train), HIDDEN, POSITIONS),
        "text-neox": neox(trained_bpe(made.train, PRE_TOKENIZER, VOCABULARY, NEOX), HIDDEN, POSITIONS),
    }
    summaries = {}
    for name, base in bases.items():
        model = base.untrained()
        begun = time.monotonic()
        tokens = stream(base, made.train)
        if len(tokens) <= LENGTH:
            rule = f"hold {len(tokens)} tokens, fewer than one training window of {LENGTH}"
            raise InvalidInput(Problem("text files", rule))
        sys.stderr.write(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, {len(tokens)} tokens\n")
        train(model, tokens, Round(steps, LEARNING_RATE), seed, BATCH, LENGTH)
        seconds = time.monotonic() - begun
        summaries[name] = _summary(base, model, made.held_out, len(tokens), seconds)
        try:
            (folder / name).mkdir(parents=True, exist_ok=True)
            save(base, model, folder / name)
            tokenizer = {**json.loads(config(base.special)), "model_max_length": POSITIONS}
            write_json(folder / name / "tokenizer_config.json", tokenizer)
        except OSError as error:
            raise InvalidInput(Problem("folder", f"must be writable ({error})", str(folder))) from error
    write_json(folder / "pretraining.json", _report(made, sources, seed, steps, summaries))
    return summaries


def _report(
    made: Corpus, sources: list[Source], seed: int, steps: int, summaries: Mapping[str, Pretrained]
) -> dict[str, Any]:
    return {
        "sources": {source.path.name: source.rows for source in sources},
        "dropped_for_overlap": made.overlapping,
        "documents": {"train": len(made.train), "held_out": len(made.held_out)},
        "seed": seed,
        "steps": steps,
        "models": {name: asdict(summary) for name, summary in summaries.items()},
    }


def llama_tokenizer(texts: list[str]) -> Tokenizer:
    """Return a byte-level BPE that puts ``<s>`` before every text."""
    tokenizer = trained_bpe(texts, PRE_TOKENIZER, VOCABULARY, LLAMA)
    put_bos_first(tokenizer)
    return tokenizer


def _summary(base: Base, model: PreTrainedModel, held_out: list[str], tokens: int, seconds: float) -> Pretrained:
    loss, count = 0.0, 0
    ids = stream(base, held_out)
    model.eval()
    with torch.no_grad():
        for window in ids.split(LENGTH):
            if len(window) > 1:
                row = window[None]
                loss += model(input_ids=row, labels=row, use_cache=False).loss.item() * (len(window) - 1)
                count += len(window) - 1
    size = sum(len(text.encode()) for text in held_out)
    parameters = sum(p.numel() for p in model.parameters())
    return Pretrained(parameters, tokens, seconds, loss / count, loss / math.log(2) / size)


def main() -> None:
    """Pretrain two small models on the text of JSON, JSON Lines or plain text files; FILE:ROWS takes the first rows."""
    parser = argparse.ArgumentParser(prog="python examples/pretrain/from_text.py", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="where the models go")
    parser.add_argument("sources", nargs="+", type=Source.parse, metavar="FILE[:ROWS]")
    parser.add_argument("--bench", action="append", type=Path, default=[], help="a file or folder never to train on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    try:
        made = pretrain(arguments.sources, arguments.bench, arguments.folder, arguments.seed, arguments.steps)
    except InvalidInput as error:
        sys.exit("\n".join(map(str, error.problems)))
    sys.stdout.write(json.dumps({name: asdict(summary) for name, summary in made.items()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
