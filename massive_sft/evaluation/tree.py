"""The tree engine: requests that begin alike share what they share, in one row, without a KV cache."""

from __future__ import annotations

import copy
import functools
import logging
import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from massive_sft.core.errors import Unsupported
from massive_sft.core.memory import free_bytes
from massive_sft.evaluation.beginnings import common
from massive_sft.evaluation.logits import dense_budget
from massive_sft.evaluation.scorer import Batches, PlainScorer, Row, Value, in_groups, reads, summed
from massive_sft.evaluation.token_tree import plan_rows, tree_row
from massive_sft.models.last_layer import at_reads
from massive_sft.models.lse_attention import KeysValues
from massive_sft.models.row_pass import Asked
from massive_sft.models.tree_attention import NAME, PASS
from massive_sft.models.tree_row import TreeRow
from massive_sft.models.tree_support import as_tree, refusal

log = logging.getLogger(__name__)
CPU_ROW_TOKENS = 1024  # of twice as many the activations are given back to the system and fetched again, layer by layer
GPU_ROW_TOKENS = 32768
HEAD_TOKENS = 32  # that all rows begin with: fewer are computed again for each row of trees
READS_AT_ONCE = 256  # of rows whose output layer is computed at once: its weights take longer to read than few products
READ_SHARE = 0.5  # of a row's tokens: where more is read, there is nothing to save in the last layer
PROOF_ROWS = 8
PROOF_SHARE = 50  # of the tokens that the plain engine would compute, one in so many proves the tree
# How far a log-probability may be from that of a plain forward pass. In fp32: a fixed part and one for each token, or
# nat where these are more (SmolLM2 differs from itself by 1.1e-5 of 3 nats at two batch sizes). Of less precise
# weights rounding errors add up like a random walk: over the root of the tokens they were 0.14 at most and 0.08 in
# the mean of eight rows, in bf16, over families with large random weights (SmolLM2: 0.07 and 0.03), both sides with
# the exact output layer. Families that are wrong were off by 0.2 nats at least, most by several; some tuned models
# round as much (SmolLM2: plain passes in bf16 are off by up to 0.24 in the mean). Beyond the limits fp32 decides.
_EXACT = (1e-4, 1e-5)
_ROUNDED = 0.2
_ROUNDED_MEAN = 0.1
_AS_MUCH = 2.0  # times the distance from fp32 of plain passes that trees may have, where fp32 decides
_FAILURES = (Unsupported, RuntimeError, TypeError, ValueError, AttributeError, IndexError)


@dataclass(frozen=True)
class Trees:
    """Rows whose tokens form a trie, a trie a forward pass.

    Attributes:
        row_tokens: of a pass, behind what its sequences begin with.
        last_at_reads: whether the last layer is computed where something is read alone.
    """

    model: Any
    row_tokens: int
    last_at_reads: bool

    def values(self, rows: Sequence[Row]) -> tuple[list[list[Value]], int]:
        """Return the value of every span of every row, and the memory splits.

        Groups are a pure function of the rows. What all rows begin with is computed once where there are several.
        """
        head = _head(rows) if self.model.device.type == "cpu" else 0  # a GPU's kernel knows of no keys before the row
        groups = self._groups(rows, head)
        if len(groups) == 1:
            head = 0
        answer = functools.partial(self._answer, self._keep(rows[0][0].tokens[:head]))
        return in_groups(_joined(groups, rows), rows, answer)

    def _keep(self, head: tuple[int, ...]) -> list[KeysValues]:
        """Return the keys and values of each layer for what all rows begin with; nothing for no tokens."""
        kept: list[KeysValues] = []
        if head:
            row, _ = tree_row([head])
            row.keep = kept
            self._logits([(row, [len(head) - 1])])
        return kept

    def _groups(self, rows: Sequence[Row], head: int) -> list[list[int]]:
        """Group rows by the tokens of their tries behind a head, and by how many logits they ask for."""
        tails = [row[0].tokens[head:] for row in rows]
        most_reads = dense_budget(self.model, self.row_tokens)
        return plan_rows(tails, self.row_tokens, [reads(row) for row in rows], most_reads)

    def _answer(self, before: Sequence[KeysValues], rows: Sequence[Row]) -> list[list[Value]]:
        head = before[0][0].shape[2] if before else 0
        asked: list[tuple[TreeRow, list[int]]] = []
        read: list[tuple[int, int]] = []  # of each target: its place among the logits, and the token
        for group in self._groups(rows, head):  # in order already
            own = [rows[i] for i in group]
            row, paths = tree_row([spans[0].tokens[head:] for spans in own], before, head)
            found = [
                (position, target)
                for spans, path in zip(own, paths, strict=True)
                for span in spans
                for position, target in zip(path[-len(span.continuation) :], span.continuation, strict=True)
            ]
            places = sorted({position for position, _ in found})
            number = {position: i for i, position in enumerate(places, sum(len(earlier) for _, earlier in asked))}
            read += [(number[position], target) for position, target in found]
            asked.append((row, places))
        logits = self._logits(asked)
        return summed(rows, logits, torch.tensor(read, device=logits.device).T)

    @torch.inference_mode()
    def _logits(self, asked: Sequence[tuple[TreeRow, Sequence[int]]]) -> torch.Tensor:
        """Return logits of trees' tokens at some places each, in order, shape (reads, vocabulary).

        Raises:
            Unsupported: as ``RowPass.logits_of`` and ``last_layer.at_reads``.
        """
        with as_tree(self.model), exact_head(self.model):
            return PASS.logits_of(self.model, [self._asked(row.to(self.model.device), reads) for row, reads in asked])

    def _asked(self, row: TreeRow, reads: Sequence[int]) -> Asked[TreeRow]:
        few = self.last_at_reads and len(reads) <= READ_SHARE * len(row.tokens)
        return Asked(row, row.depths, reads, at_reads(self.model, row, reads) if few else nullcontext())


def _joined(groups: Sequence[list[int]], rows: Sequence[Row]) -> list[list[int]]:
    """Join groups that follow each other while few logits are read: the output layer is computed at once for them."""
    found: list[list[int]] = []
    read = 0
    for group in groups:
        more = sum(reads(rows[i]) for i in group)
        if found and read + more <= READS_AT_ONCE:
            found[-1] = found[-1] + group
            read += more
        else:
            found.append(group)
            read = more
    return found


def _head(rows: Sequence[Row]) -> int:
    """Return how many tokens all rows begin with, before anything is predicted; 0 where they are few."""
    sequences = [row[0].tokens for row in rows]
    shared = common(min(sequences), max(sequences))
    head = min(shared, *(len(row[0].tokens) - reads(row) for row in rows))
    return head if head >= HEAD_TOKENS else 0


class TreeScorer(PlainScorer):
    """Scores likelihoods over a trie of their tokens; generates as the plain engine does.

    A model that a tree cannot be exact for is scored plainly: one refused by its configuration, and one that gives
    other scores in a tree than in a plain forward pass. That is looked at in rows of its first requests, and again
    where sequences are longer than any that were looked at.

    Args:
        as in ``PlainScorer``; ``token_budget`` is of a tree's row too.
    """

    engine = "trie"
    _proven_tokens = 0  # of the longest sequence that the tree was right for
    _disproof: str | None = None
    _last_refused: str | None = None

    @functools.cached_property
    def _refusal(self) -> str | None:
        why = refusal(self.model.config)
        if why is not None:
            log.warning("scored by the plain engine: %s", why)
        return why

    @property
    def fallback(self) -> str | None:
        """Why the plain engine answers; None while the tree does."""
        return self._refusal or self._disproof

    @property
    def last_layer_refused(self) -> str | None:
        """Why the tree's last layer is computed for all tokens; None while it is for those that are read alone."""
        return self._last_refused

    @property
    def attention(self) -> str:
        """As ``PlainScorer.attention``, with the reason where it is not the tree's."""
        return NAME if self.fallback is None else f"{super().attention}, for {self.fallback}"

    def values(self, rows: Sequence[Row]) -> tuple[list[list[Value]], dict[str, int]]:
        """See ``PlainScorer.values``; counts ``plain_requests`` as well, which the tree did not answer."""
        if self.fallback is None and rows:
            found, self._disproof = self._proven(rows)
            if found is not None:
                return found
            log.warning("scored by the plain engine: %s", self._disproof)
        values, happened = super().values(rows)
        if rows and self.fallback is not None:
            happened["plain_requests"] = len({span.owner for row in rows for span in row})
        return values, happened

    def _proven(self, rows: Sequence[Row]) -> tuple[tuple[list[list[Value]], dict[str, int]] | None, str | None]:
        """Return what the tree gives, proven; or None, and why it cannot be used.

        On a CPU the last layer is computed where something is read alone, until that gives something else.
        """
        trying = self._last_refused is None and self.model.device.type == "cpu"
        if trying:
            found, self._last_refused = self._tried(rows, last_at_reads=True)
            if found is not None:
                return found, None
        found, why = self._tried(rows, last_at_reads=False)
        if trying and found is not None:
            log.info("the last layer is computed for all tokens: %s", self._last_refused)
        return found, why

    def _tried(
        self, rows: Sequence[Row], last_at_reads: bool
    ) -> tuple[tuple[list[list[Value]], dict[str, int]] | None, str | None]:
        try:
            values, splits = self._trees(self.model, last_at_reads).values(rows)
        except _FAILURES as error:
            return None, f"the tree fails: {error}"  # where the requests are at fault, the plain engine says so
        longest = max(len(row[0].tokens) for row in rows)
        if longest > self._proven_tokens:
            looked_at = proof_rows(rows) if self._proven_tokens == 0 else proof_rows(rows)[:1]
            own, given = [rows[i] for i in looked_at], [values[i] for i in looked_at]
            with exact_head(self.model):
                expected, _ = self._batches.values(own)
            difference = find_difference(paired(own, given, expected), self.model.dtype)
            if difference is not None and not self._rounds_as_plain(own, given, expected, last_at_reads):
                return None, difference
            self._proven_tokens = longest
        return (values, {"memory_splits": splits}), None

    def _trees(self, model: Any, last_at_reads: bool) -> Trees:
        own = CPU_ROW_TOKENS if model.device.type == "cpu" else GPU_ROW_TOKENS
        return Trees(model, self.token_budget or own, last_at_reads)

    def _rounds_as_plain(
        self, rows: Sequence[Row], trees: list[list[Value]], plain: list[list[Value]], last_at_reads: bool
    ) -> bool:
        """Whether trees are exact in fp32, and in this precision about as far from that as plain passes are.

        It takes a copy of the model; where that has no room it counts as no, as it does for weights in fp32.
        """
        if self.model.dtype == torch.float32 or not _has_room_in_fp32(self.model):
            return False
        try:
            exact = copy.deepcopy(self.model).float()
            truth, _ = Batches(exact, self._batches.token_budget).values(rows)
            found, _ = self._trees(exact, last_at_reads).values(rows)
        except _FAILURES as error:
            log.info("trees cannot be looked at in fp32: %s", error)
            return False
        if find_difference(paired(rows, found, truth), torch.float32) is not None:
            return False
        own, theirs = (statistics.fmean(_roots(paired(rows, values, truth))) for values in (trees, plain))
        log.info("by %.3g nats in the mean trees are off fp32, plain passes by %.3g", own, theirs)
        return own <= _AS_MUCH * theirs


def paired(
    rows: Sequence[Row], found: Sequence[list[Value]], expected: Sequence[list[Value]]
) -> list[tuple[int, float, float]]:
    """Return of every span its number of tokens and both log-probabilities."""
    return [
        (len(span.continuation), one, other)
        for row, ours, theirs in zip(rows, found, expected, strict=True)
        for span, (one, _), (other, _) in zip(row, ours, theirs, strict=True)
    ]


def _has_room_in_fp32(model: Any) -> bool:
    """Whether a copy of a model in fp32 fits twice into what is free on its device."""
    needed = 4 * sum(weights.numel() for weights in model.parameters())
    on_gpu = model.device.type == "cuda"
    return 2 * needed <= (torch.cuda.mem_get_info(model.device)[0] if on_gpu else free_bytes())


def proof_rows(rows: Sequence[Row]) -> list[int]:
    """Return the places of the rows that show whether the tree is right: the longest, then ones spread over all.

    The longest are what windows and scaled positions go wrong on. Those after the first are as many as cost little.
    """
    longest = max(range(len(rows)), key=lambda i: (len(rows[i][0].tokens), -i))
    left = sum(len(row[0].tokens) for row in rows) // PROOF_SHARE - len(rows[longest][0].tokens)
    chosen = [longest]
    for number in range(PROOF_ROWS - 1):
        place = number * len(rows) // (PROOF_ROWS - 1)
        left -= len(rows[place][0].tokens)
        if left < 0 and len(chosen) > 1:
            break
        if place not in chosen:
            chosen.append(place)
    return chosen


def find_difference(compared: Sequence[tuple[int, float, float]], dtype: torch.dtype) -> str | None:
    """Return how log-probabilities of a tree differ from plain ones by more than rounding; None where they agree.

    Args:
        compared: how many tokens each is of, the tree's and the plain one.
        dtype: of the weights.
    """
    roots = _roots(compared)
    for (tokens, one, other), root in zip(compared, roots, strict=True):
        most = _EXACT[0] + _EXACT[1] * max(tokens, abs(other))
        if not (root <= _ROUNDED if dtype != torch.float32 else root * math.sqrt(tokens) <= most):
            return f"the tree gives {one:.6g} where the plain engine gives {other:.6g}"
    mean = statistics.fmean(roots)
    if dtype != torch.float32 and mean > _ROUNDED_MEAN:
        return f"the tree's log-probabilities differ from the plain engine's by {mean:.3g} in the mean"
    return None


def _roots(compared: Sequence[tuple[int, float, float]]) -> list[float]:
    """Return how far apart both are of each, over the root of its tokens; 0 where neither is a number."""
    return [
        0.0 if math.isnan(one) and math.isnan(other) else abs(one - other) / math.sqrt(tokens)
        for tokens, one, other in compared
    ]


@contextmanager
def exact_head(model: Any) -> Iterator[None]:
    """Within it the output layer multiplies in fp32, where it is an ordinary one of less precision."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.weight.dtype == torch.float32:
        yield
        return

    def multiply(hidden: torch.Tensor) -> torch.Tensor:
        bias = None if head.bias is None else head.bias.float()
        return nn.functional.linear(hidden.float(), head.weight.float(), bias)

    vars(head)["forward"] = multiply  # instead of the class's own: a hook could only multiply a second time
    try:
        yield
    finally:
        del vars(head)["forward"]
