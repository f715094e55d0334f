"""Rows to tokens: the full text is encoded once, the loss mask follows from character offsets.

Rules:
    - The text begins with what the tokenizer itself puts in front of a text (BOS for Llama, nothing for Qwen), once:
      not when the template already begins with it. What the tokenizer puts behind a text is left out.
    - EOS follows every completion and is trained, by its position: it may be the padding token too. A chat template
      that ends an answer with a token of its own gets no second one.
    - A token is trained when it holds at least one character of a completion, so a token that straddles the border,
      such as `` Paris`` after ``Answer: ``, is trained. So is a token of nothing but the white space at the border,
      such as the space before ``42`` where digits stand alone: no prompt that ends in ``Answer:`` tells which it will
      be, so the model has to. A sample's first token never is.
    - A chat's answer begins with a token of its own, for the generation prompt ends in a whole one: where the tokenizer
      joins the answer's first line end or spaces to the header's, the text is encoded in two pieces.
    - Elsewhere a token may join a prompt's last text and its answer's first (``?a`` of ``plain``). It is trained, and
      told, for no generation prompt can hold it (``data.cautions``).
    - An answer that its row says not to train, EOS included, is not, whatever ``loss_on`` says.
    - A special token's text inside data is an error: encoded, it would be the token and not the text.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.data.chat import RenderError
from massive_sft.data.findings import Findings
from massive_sft.data.render import TEMPLATE, Rendered, renderer
from massive_sft.data.rows import Row
from massive_sft.models.tokenizer import text_head
from massive_sft.sweep.schema import Setting
from massive_sft.sweep.template import CHAT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sample before or after truncation.

    Attributes:
        tokens: int32, shape (tokens,).
        trainable: bool, same shape.
        text_bytes: int32, same shape; UTF-8 bytes of the text that each token covers, 0 for special tokens.
        head: how many tokens stand before the text (BOS).
        answer: index of the last completion's first token.
        joined: the text of the first token that holds a prompt's end and its answer's beginning; None without one.
    """

    tokens: np.ndarray
    trainable: np.ndarray
    text_bytes: np.ndarray
    head: int
    answer: int
    joined: str | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def cut(self, keep: np.ndarray | slice) -> Encoded:
        """Return only the tokens that ``keep`` selects; what is first then is no target."""
        trainable = self.trainable[keep].copy()
        trainable[:1] = False
        return replace(self, tokens=self.tokens[keep], trainable=trainable, text_bytes=self.text_bytes[keep])


def special_tokens(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """Return bool, shape (largest id + 1,): the tokens that stand for no text, such as EOS and a chat's end of turn."""
    found = _special_texts(tokenizer)
    # Not ``len(tokenizer)``: a vocabulary that was trimmed has fewer tokens than its largest id says.
    special = np.zeros(max([*tokenizer.get_vocab().values(), *found]) + 1, dtype=bool)
    # An unknown character becomes the unknown token rightly: it stands for text.
    special[[index for index in found if index != tokenizer.unk_token_id]] = True
    return special


def _special_texts(tokenizer: PreTrainedTokenizerFast) -> dict[int, str]:
    added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {**added, **dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))}


class RowEncoder:
    """Encodes rows with a setting's template and loss mask.

    Args:
        tokenizer: a fast tokenizer with an EOS token (``models.tokenizer.load_tokenizer`` sees to it).
        setting: its ``template`` and ``loss_on`` are used.

    Raises:
        InvalidInput: for template ``chat`` when the tokenizer has no chat template that can be used, or splits the
            generation prompt another way once an answer follows.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, setting: Setting):
        special = tuple(sorted({*_special_texts(tokenizer).values()}, key=len, reverse=True))
        self._special = re.compile("|".join(map(re.escape, special)))
        self._is_special = special_tokens(tokenizer)
        self._bos, self._eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._all = setting.loss_on == "all"
        self._render = renderer(setting.template, tokenizer)
        # A copy without the post-processor adds nothing to the text and leaves the offsets alone; GPT-2's kind
        # of post-processor trims spaces off them, and then a token of spaces would seem to be empty.
        self._backend = copy.deepcopy(tokenizer.backend_tokenizer)
        self._backend.post_processor = None
        self._backend.no_truncation()
        self._backend.no_padding()
        self._head = np.array(text_head(tokenizer), dtype=np.int32)
        # A tokenizer that puts a space before every text would put one between two pieces of a text, too.
        self._cuts = setting.template == CHAT and self._plain("\na").ids == self._plain("\n").ids + self._plain("a").ids
        if setting.template == CHAT:
            self._require_prompt_tokens()

    def _require_prompt_tokens(self) -> None:
        """Raise InvalidInput unless the generation prompt, encoded alone, is how the encoded conversation begins."""
        try:
            text, spans, _ = self._render(Row(0, (("a", "a"),), None, "", None))
        except RenderError:  # each row says so
            return
        prompt = text[: spans[0][1]]
        alone, whole = (self._plain(part).ids for part in (prompt, text))
        if whole[: len(alone)] != alone:
            rule = (
                "chat does not fit this tokenizer: it splits the end of the generation prompt another way once an "
                "answer follows, so no prompt would be what was trained; use a template text"
            )
            raise InvalidInput(Problem(TEMPLATE, rule, prompt[-20:]))

    def _plain(self, text: str) -> Any:
        """Return the encoding of a text with nothing put around it."""
        return self._backend.encode(text, add_special_tokens=False)

    def encode(self, rows: Sequence[Row], place: str, findings: Findings) -> list[Encoded]:
        """Return the rows' samples, untruncated, in order. A row with a problem is noted and has no sample."""
        rendered = []
        for row in rows:
            if self._holds_special(row, place, findings):
                continue
            try:
                rendered.append((self._render(row), row))
            except RenderError as error:
                findings.add("rows that the chat template cannot render", f"{place}: {row.place}", str(error))
        encodings = self._backend.encode_batch([item.text for item, *_ in rendered], add_special_tokens=False)
        samples = []
        for (item, row), encoding in zip(rendered, encodings, strict=True):
            ids, offsets = _arrays(encoding)
            joined = _joined(item, row.untrained, offsets)
            if joined and self._cuts:
                ids, offsets = self._in_pieces(item.text, [start for start, _ in joined])
                joined = []
            samples.append(self._sample(item, row.untrained, ids, offsets, joined[0][1] if joined else None))
        return samples

    def _in_pieces(self, text: str, cuts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Encode a text cut at these characters, so that no token reaches over one; as ``_arrays``."""
        pieces = [(begin, *_arrays(self._plain(text[begin:end]))) for begin, end in pairwise([0, *cuts, len(text)])]
        ids, offsets = [ids for _, ids, _ in pieces], [begin + offsets for begin, _, offsets in pieces]
        return np.concatenate(ids), np.concatenate(offsets)

    def _holds_special(self, row: Row, place: str, findings: Findings) -> bool:
        texts = [text for turn in row.turns for text in turn]
        found = {match for text in (row.system or "", *texts) for match in self._special.findall(text)}
        for token in sorted(found):
            rule = f"holds the text of a special token; remove it with strip: [{token!r}]"
            findings.add("special tokens in data", f"{place}: {row.place}", rule, token)
        return bool(found)

    def _sample(
        self, rendered: Rendered, untrained: tuple[int, ...], ids: np.ndarray, offsets: np.ndarray, joined: str | None
    ) -> Encoded:
        """Mask one encoded text. ids: int32 (n,); offsets: int32 (n, 2), characters that each token covers."""
        starts, ends = offsets[:, 0], offsets[:, 1]
        trainable = np.full(len(ids), self._all)
        first = last = len(ids)
        for turn, (border, start, end) in enumerate(rendered.spans):
            begun = (ends > start) | ((starts >= border) & (ends > starts))
            # The last clause keeps a token without width, which a normaliser may insert in the middle.
            inside = begun & ((starts < end) | (ends <= end))
            trainable[inside] = turn not in untrained
            first = int(inside.argmax()) if inside.any() else last
        text_bytes = np.diff(_bytes_until(rendered.text)[np.maximum.accumulate(ends)], prepend=0)
        text_bytes[self._is_special[ids]] = 0
        head = self._head[:0] if np.array_equal(ids[: len(self._head)], self._head) else self._head
        tail = [] if rendered.closed else [self._eos]
        tokens = np.concatenate([head, ids, tail]).astype(np.int32)
        ended = len(rendered.spans) - 1 not in untrained
        mask = np.concatenate([np.full(len(head), self._all), trainable, np.full(len(tail), ended)])
        mask[:1] = False
        padded = np.concatenate([np.zeros(len(head)), text_bytes, np.zeros(len(tail))]).astype(np.int32)
        # A BOS that the template wrote itself is kept by truncation like one that was added.
        kept = len(self._head) or int(len(ids) > 0 and ids[0] == self._bos)
        return Encoded(tokens, mask, padded, kept, len(head) + first, joined)


def _arrays(encoding: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return an encoding's ids, int32 (n,), and the characters that each covers, int32 (n, 2)."""
    return np.array(encoding.ids, dtype=np.int32), np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)


def _joined(rendered: Rendered, untrained: tuple[int, ...], offsets: np.ndarray) -> list[tuple[int, str]]:
    """Return (start of the answer, text of the token) where a token holds what comes before and after a border."""
    found = []
    for turn, (border, start, _) in enumerate(rendered.spans):
        over = (offsets[:, 0] < border) & (offsets[:, 1] > start)
        if over.any() and turn not in untrained:
            begin, end = offsets[over.argmax()]
            found.append((start, rendered.text[begin:end]))
    return found


def _bytes_until(text: str) -> np.ndarray:
    """Return int64 (characters + 1,): UTF-8 bytes before each character."""
    if text.isascii():
        return np.arange(len(text) + 1)
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate([[0], np.cumsum(widths)])


def truncate(sample: Encoded, max_length: int, truncation: str) -> Encoded | None:
    """Return a sample of at most ``max_length`` tokens; None when it is too long and ``truncation`` is drop.

    ``right`` keeps the first tokens: a truncated sample has no EOS, so the model is not taught to stop midway.
    ``left`` takes tokens away from what precedes the last completion (after BOS), and from the completion's end only
    when that is not enough.
    """
    excess = len(sample) - max_length
    if excess <= 0:
        return sample
    if truncation == "drop":
        return None
    if truncation == "left":
        spare = max(0, min(excess, sample.answer - sample.head))
        keep = np.r_[0 : sample.head, sample.head + spare : len(sample)]
        sample = sample.cut(keep)
    return sample.cut(slice(0, max_length))
