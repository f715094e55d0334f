"""The grid of the model study as trainings and cells with what each takes: 317 trajectories, 1,016 rows, 11 base rows.

Facts of the paper (arXiv 2506.14681), its released table and its repository: the blocks; half a GPU hour for 10,000
sample passes of training; seconds to score one model zero-shot and few-shot for three of the base models. The other
base models' seconds are not published: each takes here what the nearest of the three takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

PASS_S = 0.18  # GPU seconds of one sample in one epoch
FULL_BYTES, LORA_BYTES = 15e9, 0.08e9  # of a snapshot
QWEN_S, LLAMA_S, MISTRAL_S = 1_809 + 8_032, 4_890 + 26_568, 10_950 + 45_861
SCORING_S = {
    "OLMo-7B-hf": QWEN_S,
    "Meta-Llama-3-8B": LLAMA_S,
    "Mistral-7B-v0.1": MISTRAL_S,
    "Gemma2-9B": LLAMA_S,
    "Qwen2.5-7B": QWEN_S,
    "llama-3-chinese-8b": LLAMA_S,
    "Chinese-Mistral-7B-v0.1": MISTRAL_S,
    "Yi-1.5-9B": LLAMA_S,
    "LLM-jp-3-7B": QWEN_S,
    "Llama-3-Swallow-8B-v0.1": LLAMA_S,
    "Sarashina2-7B": LLAMA_S,
}
THREE = ("OLMo-7B-hf", "Qwen2.5-7B", "LLM-jp-3-7B")


@dataclass(frozen=True)
class Trajectory:
    """A training with its cells.

    Attributes:
        gpu_s: GPU seconds of the training.
        epochs: that it takes.
        snapshots: epochs that are scored.
        cell_s: seconds to score each.
        cell_bytes: of each snapshot.
    """

    model: str
    full: bool
    gpu_s: float
    epochs: int
    snapshots: tuple[int, ...]
    cell_s: float
    cell_bytes: float


def trajectories() -> list[Trajectory]:
    """Return the 317 of them."""
    return [_make(*item) for item in _blocks()]


def _blocks() -> Iterator[tuple[str, bool, int, tuple[int, ...]]]:
    every = tuple(range(1, 11))
    for model in SCORING_S:
        for full in (True, False):
            for dataset in range(10):
                if not (model == "Gemma2-9B" and full and dataset == 0):
                    yield model, full, 1_000, (10,)  # block A
            if not (model == "Gemma2-9B" and full):
                yield model, full, 10_000, every  # block B
    for model in THREE:
        for dataset in range(10):
            yield model, True, 1_000, every[:9] if dataset == 0 else every  # block C
        for _ in range(9):
            yield model, True, 20_000, every  # block D
    for _ in range(10):
        for full in (True, False):
            yield "OLMo-7B-hf", full, 9_000, (10,)  # block E


def _make(model: str, full: bool, samples: int, snapshots: tuple[int, ...]) -> Trajectory:
    size = FULL_BYTES if full else LORA_BYTES
    epochs = snapshots[-1]
    return Trajectory(model, full, samples * epochs * PASS_S, epochs, snapshots, SCORING_S[model], size)
