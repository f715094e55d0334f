"""A mixture as training samples, with everything that happened on the way counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.data.encoding import Encoded, RowEncoder, truncate
from massive_sft.data.file_readers import load_rows
from massive_sft.data.findings import Findings
from massive_sft.data.row_sampling import draw
from massive_sft.data.rows import Row
from massive_sft.data.samples import Samples
from massive_sft.sweep import spec
from massive_sft.sweep.schema import Setting, StrictModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BATCH = 512  # rows encoded in one call: enough to be fast, few enough to hold their offsets in memory


class PartCounts(StrictModel):
    """What became of one part, or of the whole mixture (``name`` is then the mixture's).

    Attributes:
        source_rows: rows of the source before any filter.
        available: rows after filter and limit.
        drawn: samples that the mixture asked for; ``drawn = samples + dropped``.
        repeated: drawn samples whose row had been drawn before (``max_repeats``).
        duplicates: drawn rows, repeats aside, whose texts (system, prompts, completions) all equal those of an
            earlier drawn row: of this part, or in the total of any part.
        dropped: samples left out by truncation ``drop``.
        truncated: samples that lost tokens to truncation ``right`` or ``left``.
        samples: samples that are trained on.
        tokens, trainable_tokens: of these samples, after truncation.
        text_bytes, trainable_text_bytes: UTF-8 bytes that these tokens cover (special tokens count nothing).
        empty_prompts, empty_completions: drawn samples with a turn whose prompt or completion is blank.
        longest: tokens of the longest drawn sample before truncation.
        joined: of the samples, those in which a token holds the end of a prompt and the beginning of its answer, which
            no generation prompt can hold.
        first_joined: the row of the first of them and the token's text; None without one.
    """

    name: str
    source_rows: int
    available: int
    drawn: int
    repeated: int
    duplicates: int
    dropped: int
    truncated: int
    samples: int
    tokens: int
    trainable_tokens: int
    text_bytes: int
    trainable_text_bytes: int
    empty_prompts: int
    empty_completions: int
    longest: int
    joined: int
    first_joined: tuple[int, str] | None = None


class Counts(StrictModel):
    """What is recorded about a mixture's data: each part in order, and the total."""

    parts: tuple[PartCounts, ...]
    total: PartCounts


def build_samples(
    mixture: spec.Mixture, setting: Setting, tokenizer: PreTrainedTokenizerFast
) -> tuple[Samples, Counts]:
    """Read, draw, render, encode and truncate a mixture.

    Returns:
        The samples in canonical order (parts as given, within a part the order in which it draws), and the counts.

    Raises:
        InvalidInput: with the problems of all parts at once: files and rows (``file_readers.load_rows``), counts
            (``sampling.draw``), special-token texts in data, samples beyond ``max_length`` under ``refuse``,
            samples without a trainable token, a mixture that is empty after ``drop``.
    """
    encoder = RowEncoder(tokenizer, setting)
    kept: list[_Part] = []
    problems: list[Problem] = []
    for part in mixture.parts:
        try:
            kept.append(_build_part(part, mixture, setting, encoder))
        except InvalidInput as error:
            problems += error.problems
    if not problems and not any(part.samples for part in kept):
        problems.append(Problem(mixture_place(mixture), "has no sample left; raise max_length or change truncation"))
    if problems:
        raise InvalidInput(problems)
    return _joined(kept), Counts(parts=tuple(part.counts for part in kept), total=_total(mixture.name, kept))


class _Part:
    """One part on its way: the drawn rows, their samples, the counts."""

    def __init__(self, name: str, rows: Sequence[Row], source_rows: int, available: int):
        self.name, self.source_rows, self.available = name, source_rows, available
        self.drawn = len(rows)
        distinct = {row.index: row for row in rows}
        self.repeated = len(rows) - len(distinct)
        self.texts = [(row.system, row.turns) for row in distinct.values()]
        self.empty_prompts = sum(not all(prompt.strip() for prompt, _ in row.turns) for row in rows)
        self.empty_completions = sum(not all(completion.strip() for _, completion in row.turns) for row in rows)
        self.samples: list[Encoded] = []
        self.rows: list[int] = []
        self.joined: list[tuple[int, str]] = []
        self.dropped = self.truncated = self.longest = 0

    @property
    def counts(self) -> PartCounts:
        return PartCounts(
            name=self.name,
            source_rows=self.source_rows,
            available=self.available,
            drawn=self.drawn,
            repeated=self.repeated,
            duplicates=len(self.texts) - len(set(self.texts)),
            dropped=self.dropped,
            truncated=self.truncated,
            samples=len(self.samples),
            tokens=sum(map(len, self.samples)),
            trainable_tokens=sum(int(sample.trainable.sum()) for sample in self.samples),
            text_bytes=sum(int(sample.text_bytes.sum()) for sample in self.samples),
            trainable_text_bytes=sum(int(sample.text_bytes[sample.trainable].sum()) for sample in self.samples),
            empty_prompts=self.empty_prompts,
            empty_completions=self.empty_completions,
            longest=self.longest,
            joined=len(self.joined),
            first_joined=self.joined[0] if self.joined else None,
        )


def mixture_place(mixture: spec.Mixture) -> str:
    """Return the place of what is wrong with a mixture."""
    return f"mixtures.{mixture.name}"


def _build_part(part: spec.Part, mixture: spec.Mixture, setting: Setting, encoder: RowEncoder) -> _Part:
    dataset = f"datasets.{part.name}"
    loaded = load_rows(part.dataset, dataset)
    is_alone = [one.name for one in mixture.parts] == [mixture.name]
    place = mixture_place(mixture) + ("" if is_alone else f": {part.name}")
    rows = loaded.at(draw(loaded.indices, part.count, mixture.sample_seed, part.max_repeats, place))
    built = _Part(part.name, rows, loaded.source_rows, len(loaded.rows))
    findings = Findings()
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        samples = encoder.encode(batch, dataset, findings)
        if not findings:  # with problems, rows and samples no longer pair up, and nothing will be returned
            for row, sample in zip(batch, samples, strict=True):
                _add(built, row, sample, setting, findings)
    findings.raise_if_any()
    return built


def _add(built: _Part, row: Row, sample: Encoded, setting: Setting, findings: Findings) -> None:
    """Truncate one sample and add it to its part."""
    place = f"datasets.{built.name}: {row.place}"
    built.longest = max(built.longest, len(sample))
    if setting.truncation == "refuse" and len(sample) > setting.max_length:
        rule = f"is longer than max_length {setting.max_length} (truncation: refuse); raise it, or truncate or drop"
        findings.add("samples beyond max_length", place, rule, len(sample))
        return
    short = truncate(sample, setting.max_length, setting.truncation)
    if short is None:
        built.dropped += 1
        return
    if not short.trainable.any():
        rule = f"has no trainable token left in max_length {setting.max_length}; raise it, or set truncation "
        rule += "drop" if setting.truncation == "left" else "left or drop"
        if len(short) == len(sample):
            rule = "has no trainable token: nothing comes before its only one; take the row out of the data"
        findings.add("samples without a trainable token", place, rule)
        return
    built.truncated += len(short) < len(sample)
    built.samples.append(short)
    built.rows.append(row.index)
    if short.joined is not None:
        built.joined.append((row.index, short.joined))


def _joined(parts: Sequence[_Part]) -> Samples:
    samples = [sample for part in parts for sample in part.samples]
    lengths = np.array([len(sample) for sample in samples], dtype=np.int64)
    return Samples(
        tokens=np.concatenate([sample.tokens for sample in samples]),
        trainable=np.concatenate([sample.trainable for sample in samples]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        part=np.repeat(np.arange(len(parts)), [len(part.samples) for part in parts]).astype(np.int16),
        row=np.array([row for part in parts for row in part.rows], dtype=np.int64),
        text_bytes=np.array(
            [(sample.text_bytes[1:].sum(), sample.text_bytes[sample.trainable].sum()) for sample in samples],
            dtype=np.int64,
        ),
    )


def _total(name: str, parts: Sequence[_Part]) -> PartCounts:
    counts = [part.counts.model_dump() for part in parts]
    summed = PartCounts.model_fields.keys() - {"name", "first_joined"}
    total = {key: sum(count[key] for count in counts) for key in summed}
    texts = [text for part in parts for text in part.texts]
    total["duplicates"] = len(texts) - len(set(texts))
    total["longest"] = max(count["longest"] for count in counts)
    return PartCounts(name=name, **total)
