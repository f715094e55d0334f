"""Workloads: tokens of an epoch, and rows and tokens of a benchmark, each counted or guessed."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from massive_sft.core.errors import Corrupt
from massive_sft.core.files import read_json
from massive_sft.planning.plan import token_key
from massive_sft.planning.requirements import Requirement, Texts
from massive_sft.planning.token_cache import TokenCache
from massive_sft.sweep.cell import Recipe
from massive_sft.sweep.schema import Dataset
from massive_sft.sweep.spec import Part

BYTES_PER_TOKEN = 4.0  # of English under a common tokenizer
TRAINED_SHARE = 0.7  # of a sample's tokens, where only completions are trained and nothing is counted yet
_HEAD_BYTES = 1 << 16  # bytes of a local file that are looked at
_TEXT = 0.8  # of a JSON line that is text, the keys and quotes left out
_JSON = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class TrainingWorkload:
    """An epoch of a mixture under one tokenizer.

    Attributes:
        samples, tokens, targets: in an epoch; targets are tokens with loss.
        longest: tokens of the longest sample, or the most that ``max_length`` lets through.
        bytes_per_token: of the text; None where not counted.
        sure: whether it was counted; else it is a guess.
        widths: (tokens rounded up as micro-batches are, samples) of all samples; empty where not counted.
    """

    samples: int
    tokens: float
    targets: float
    longest: int
    bytes_per_token: float | None
    sure: bool
    widths: tuple[tuple[int, int], ...] = ()

    @property
    def length(self) -> float:
        """Mean tokens of a sample."""
        return self.tokens / self.samples


def training_workload(tokens: TokenCache, recipe: Recipe) -> TrainingWorkload | None:
    """Return an epoch's amount from the token cache, else a guess; None where rows are not known."""
    limit = recipe.setting.max_length
    total, widths = _counted(tokens, recipe)
    if total is not None:
        text = total["text_bytes"] / total["tokens"] if total["text_bytes"] else None
        longest = min(total["longest"], limit)
        return TrainingWorkload(
            total["samples"], total["tokens"], total["trainable_tokens"], longest, text, True, widths
        )
    sizes = [_part_size(part, limit) for part in recipe.mixture.parts]
    if any(size is None for size in sizes):
        return None
    samples = sum(rows for rows, _ in filter(None, sizes))
    guessed = sum(rows * length for rows, length in filter(None, sizes))
    share = 1.0 if recipe.setting.loss_on == "all" else TRAINED_SHARE
    return TrainingWorkload(samples, guessed, share * guessed, limit, None, sure=False)


def _counted(tokens: TokenCache, recipe: Recipe) -> tuple[dict[str, int] | None, tuple[tuple[int, int], ...]]:
    """Return the token cache's totals of a mixture and how long its samples are."""
    try:
        value = tokens.read(token_key(recipe))
        total = value["counts"]["total"]
        wanted = ("samples", "tokens", "trainable_tokens", "longest", "text_bytes")
        counted = {name: int(total[name]) for name in wanted}
        widths = tuple((int(width), int(count)) for width, count in value.get("widths", ()))
    except (KeyError, TypeError, ValueError):
        return None, ()  # not there, or built again
    return (counted, widths) if counted["samples"] and counted["tokens"] else (None, ())


def _part_size(part: Part, limit: int) -> tuple[int, float] | None:
    """Return rows and mean tokens a row of one part of a mixture."""
    rows, length = _typical(part.dataset)
    if part.count is None and part.dataset.limit is not None:
        rows = min(rows or part.dataset.limit, part.dataset.limit)
    count = part.count if part.count is not None else rows
    return None if count is None else (count, min(length, limit))


def _typical(dataset: Dataset) -> tuple[int | None, float]:
    table = _known_datasets()
    if dataset.hub is not None:
        rows, length = table["datasets"].get(dataset.hub, (None, table["typical"]))
        return None if dataset.filter else rows, float(length)
    return _local(str(dataset.path), dataset.files or ("",), float(table["typical"]))


@functools.cache
def _known_datasets() -> dict[str, Any]:
    table: dict[str, Any] = json.loads((Path(__file__).parent / "datasets.json").read_text())
    return table


def _local(path: str, names: tuple[str, ...], typical: float) -> tuple[int | None, float]:
    """Guess rows and tokens a row of local files from the first bytes of each."""
    rows, tokens = 0.0, 0.0
    try:
        for name in names:
            file = Path(path) / name if name else Path(path)
            if file.suffix not in _JSON:
                return None, typical
            with file.open("rb") as opened:
                head = opened.read(_HEAD_BYTES)
            if not head:
                continue
            whole = head.rfind(b"\n") + 1 or len(head)  # bytes of whole lines
            mean = whole / max(head.count(b"\n"), 1)
            rows += file.stat().st_size / mean
            tokens += file.stat().st_size * _TEXT / BYTES_PER_TOKEN
    except OSError:
        return None, typical
    return (round(rows), tokens / rows) if rows else (None, typical)


@dataclass(frozen=True)
class ScoringWorkload:
    """What a benchmark asks of a model.

    Attributes:
        tokens: read in all, to score or as prompts; by the tree engine what neighbours begin with alike is read once.
        answers: texts to generate.
        prompt: mean tokens before an answer.
        answer: mean tokens of an answer.
        sure: whether the requests were counted; else it is a guess.
    """

    tokens: float
    answers: float
    prompt: float
    answer: float
    sure: bool


class ScoringWorkloads:
    """Loads of benchmarks: from the request cache under a storage root, else from the table of well-known ones.

    Args:
        root: of the storage.
        is_tree: whether the tree engine answers.
    """

    def __init__(self, root: Path, is_tree: bool = False):
        self.root, self.is_tree = root, is_tree

    @functools.cached_property
    def _sizes(self) -> dict[tuple[str, int | None], Mapping[str, float]]:
        """By label and limit, what ``evaluation.build`` counted of a request set."""
        by_label = {}
        for path in sorted((self.root / "cache" / "requests").glob("*/manifest.json")):
            try:
                manifest = read_json(path)
                by_label[(manifest["label"], manifest["limit"])] = manifest["provenance"]["size"]
            except (OSError, Corrupt, KeyError, TypeError):
                continue  # built before sizes were counted, or built again
        return by_label

    def load(self, item: Requirement, bytes_per_token: float) -> ScoringWorkload | None:
        """Return a benchmark's load, or None where nothing is known of it."""
        if item.texts is not None:
            return _texts_load(item.texts, bytes_per_token)
        size = self._sizes.get((item.label, item.limit))
        if size is not None:
            answers = size["answers"]
            prompt = size["prompt_bytes"] / bytes_per_token
            most = size["answer_tokens"] / answers if answers else 0.0
            if self.is_tree and "tree_bytes" in size:  # else the requests were built before these were counted
                tokens = (size["tree_bytes"] + size["prompt_tree_bytes"]) / bytes_per_token
            else:
                tokens = (size["bytes"] + size["prompt_bytes"]) / bytes_per_token
            return ScoringWorkload(
                tokens, answers, prompt / answers if answers else 0.0, typical_answer_tokens(most), sure=True
            )
        if item.task is None:
            return None
        title = item.task.name or Path(str(item.task.path)).stem
        return _known_load(title, item.shots or 0, item.task.limit, self.is_tree)


def _texts_load(texts: Texts, bytes_per_token: float) -> ScoringWorkload | None:
    """Guess the load of a set of texts from its file: all of it, for who limits it knows a small part of the cost."""
    try:
        size = texts.path.stat().st_size
    except OSError:
        return None
    return ScoringWorkload(size * _TEXT / bytes_per_token, 0.0, 0.0, 0.0, sure=False)


def typical_answer_tokens(most: float) -> float:
    """Return the tokens of an answer that may have so many: models end or ramble, so half of them."""
    return most / 2


def _known_load(title: str, shots: int, limit: int | None, is_tree: bool) -> ScoringWorkload | None:
    """Return what is known of a benchmark; with a tree a question is read once, and its shots with it."""
    row = _known_benchmarks().get(title)
    if row is None:
        return None
    questions = row["questions"] if limit is None else min(row["questions"], limit * row["subtasks"])
    context = row["context"] + shots * row["shot"]
    tokens = questions * (1 if is_tree else max(row["rows"], 1)) * context
    answers = questions if row["answer"] else 0
    return ScoringWorkload(tokens, answers, context if answers else 0.0, row["answer"], sure=False)


@functools.cache
def _known_benchmarks() -> dict[str, dict[str, float]]:
    table = json.loads((Path(__file__).parent / "benchmarks.json").read_text())
    return {name: dict(zip(table["columns"], row, strict=True)) for name, row in table["benchmarks"].items()}
