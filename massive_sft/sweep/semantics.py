"""Numbers that are bumped when a fix changes what is computed, so that old results are not taken for new ones.

Each stands for one aspect and is hashed, once it is no longer 1, only into the ids that hang on that aspect: what a fix
does not touch keeps its id.
"""

from __future__ import annotations

TRAIN_SEMANTICS = 2
"""Of training; in every trained cell's id. 2: white space between prompt and answer is trained where it is a token."""

CHAT_SEMANTICS = 2
"""Of the text that a chat template makes of a row; in the ids of cells trained with ``template: chat``.

2: an answer that begins with white space begins with a token of its own, so that the prompt is that of scoring."""

SCORE_SEMANTICS = 1
"""Of scoring; in what is asked of a cell and in the protocol's id."""

GENERATION_SEMANTICS = 2
"""Of generated answers; in what is asked and the protocol's id of benchmarks that generate.

2: a prompt ends where training's did, and stops that are special tokens are seen.
"""

VLLM_SEMANTICS = 2
"""Of answers that a vLLM server writes; in what is asked and the protocol's id of benchmarks that generate under vllm.

2: the penalties of a model's ``generation_config.json`` play no part."""

JUDGING_SEMANTICS = 1
"""Of verdicts and of what is made of them; in what is asked and the protocol's id of benchmarks that are judged."""

MEASURE_SEMANTICS: dict[str, int] = {"perplexity": 3, "layer_change": 1, "token_length": 1, "texts": 1}
"""Of each measure; in what is asked of a cell, and as ``schema`` in what a record holds of it.

perplexity 2: special tokens (EOS) are told apart, and bits per byte are of the text alone. 3: those over all tokens no
longer count the bytes of a sample's first, which nothing predicts."""


def chat() -> dict[str, int]:
    """Return what of a chat template's semantics is hashed: nothing at 1, so that the ids given out before it stay."""
    return {} if CHAT_SEMANTICS == 1 else {"chat_semantics": CHAT_SEMANTICS}


def scoring(generates: bool, engine: str) -> dict[str, int]:
    """Return what of a benchmark's semantics is hashed; nothing at 1, likewise.

    Args:
        generates: whether the benchmark has generated answers; else the likelihoods of given ones alone.
        engine: of the protocol.
    """
    numbers = {"score_semantics": SCORE_SEMANTICS}
    numbers |= {"generation_semantics": GENERATION_SEMANTICS} if generates else {}
    numbers |= {"vllm_semantics": VLLM_SEMANTICS} if generates and engine == "vllm" else {}
    return {name: number for name, number in numbers.items() if number != 1}


def text_set(name: str) -> str:
    """Return what a set of texts is called among measures.

    Args:
        name: its own.
    """
    return f"{_TEXTS}{name}"


def is_measure(name: str) -> bool:
    """Return whether a name is that of a measure, and not a benchmark's."""
    return name in MEASURE_SEMANTICS or name.startswith(_TEXTS)


_TEXTS = "texts:"


def measure(name: str) -> str:
    """Return what is asked of a cell for a measure: its name, with its semantics once they are no longer 1."""
    return measure_id(name, MEASURE_SEMANTICS[name])


def measure_id(name: str, semantics: int) -> str:
    """Return what a measure is asked by: its name, with the number of its semantics once that is no longer 1."""
    return name if semantics == 1 else f"{name}/{semantics}"
