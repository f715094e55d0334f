"""Attention over a token tree: many sequences in one row, what they share computed once.

The row holds a trie's nodes depth first, so that the descendants of a token are the interval behind it. A token sees
itself and its ancestors. That set is the union of disjoint pieces (a node's own tokens, each ancestor's tokens), each
a dense or a causal block; their outputs are merged by their log-sum-exp, as FlashAttention merges its blocks.

Models call it through transformers' ``AttentionInterface``. Only the attention is registered, not a mask: transformers
then passes no mask, and position ids that jump are not taken for packed samples.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface

from massive_sft.core.errors import Unsupported

NAME = "token_tree"
BLOCK_TOKENS = 256  # subtrees up to this size share one masked block
LOGITS_AT_ONCE = 2**26  # of the attention, all heads, where no kernel computes it: 256 MB in fp32


@dataclass(frozen=True)
class Node:
    """Tokens ``start`` to ``end`` of a row follow each other; all up to ``last`` descend from them."""

    start: int
    end: int
    last: int
    children: tuple[Node, ...]


@dataclass(frozen=True)
class _Piece:
    """Queries ``first:last`` attend to keys ``low:high``; ``kind`` is ``causal``, ``tree`` (masked) or ``dense``."""

    kind: str
    first: int
    last: int
    low: int
    high: int


@dataclass
class TreeRow:
    """One row of tokens.

    Attributes:
        roots: the trie's nodes without a parent.
        tokens: int64, shape (tokens,).
        depths: int64, shape (tokens,): each token's position in its own sequences.
        ends: int64, shape (tokens,): behind the last descendant of each.
        layers: how often a layer has asked for its attention.
    """

    roots: tuple[Node, ...]
    tokens: torch.Tensor
    depths: torch.Tensor
    ends: torch.Tensor
    layers: int = 0
    masks: dict[Any, torch.Tensor | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.own, self.above = _pieces(self.roots)

    def to(self, device: torch.device) -> TreeRow:
        """Return the row on a device."""
        return TreeRow(self.roots, self.tokens.to(device), self.depths.to(device), self.ends.to(device))

    @functools.cached_property
    def levels(self) -> list[_Level]:
        """The calls of a kernel for sequences of unequal lengths."""
        return _levels(self)

    def mask(self, piece: _Piece, window: int | None) -> torch.Tensor | None:
        """Return which keys the queries see, bool, shape (queries, keys); None where they see all."""
        key = (piece, window)
        if key not in self.masks:
            self.masks[key] = self._mask(piece, window)
        return self.masks[key]

    def _mask(self, piece: _Piece, window: int | None) -> torch.Tensor | None:
        device = self.depths.device
        distance = self.depths[piece.first : piece.last, None] - self.depths[None, piece.low : piece.high]
        near = None if window is None or int(distance.max()) < window else distance < window
        if piece.kind == "dense":
            return near
        query = torch.arange(piece.first, piece.last, device=device)[:, None]
        key = torch.arange(piece.low, piece.high, device=device)[None]
        seen = (key <= query) & (query < self.ends[None, piece.low : piece.high])
        return seen if near is None else seen & near


def _pieces(roots: Sequence[Node]) -> tuple[list[_Piece], list[_Piece]]:
    """Return the pieces that hold each token's own key, every token in one, and those of ancestors only."""
    own: list[_Piece] = []
    above: list[_Piece] = []
    levels = [list(roots)]
    while levels:
        small: list[Node] = []
        for node in levels.pop():
            if small and (node.last - small[0].start > BLOCK_TOKENS or node.start != small[-1].last):
                own.append(_forest(small))
                small = []
            if node.last - node.start <= BLOCK_TOKENS:
                small.append(node)
                continue
            own.append(_Piece("causal", node.start, node.end, node.start, node.end))
            if node.children:
                above.append(_Piece("dense", node.end, node.last, node.start, node.end))
                levels.append(list(node.children))
        if small:
            own.append(_forest(small))
    return own, above


def _forest(nodes: Sequence[Node]) -> _Piece:
    single = len(nodes) == 1 and not nodes[0].children
    first, last = nodes[0].start, nodes[-1].last
    return _Piece("causal" if single else "tree", first, last, first, last)


_row: ContextVar[TreeRow | None] = ContextVar("token_tree_row", default=None)


@contextmanager
def attending(row: TreeRow) -> Iterator[None]:
    """Within it, a model with attention ``NAME`` computes that of ``row``."""
    token = _row.set(row)
    try:
        yield
    finally:
        _row.reset(token)


def tree_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers' layers call.

    Args:
        query: shape (1, heads, tokens, width).
        key, value: shape (1, key heads, tokens, width); heads are a multiple of key heads.
        attention_mask: None: the row says who sees whom.
        scaling: of the logits; the inverse root of the width when None.
        sliding_window: keys further back than this, itself included, are not seen.
        softcap: logits x become softcap * tanh(x / softcap).
        s_aux: one more logit of each head that attends to nothing, shape (heads,).

    Returns:
        Shape (1, tokens, heads, value width), and None for the weights.

    Raises:
        Unsupported: outside ``attending``, or the layer brings a mask of its own.
    """
    row = _row.get()
    if row is None or attention_mask is not None or query.shape[0] != 1 or query.shape[2] != len(row.tokens):
        raise Unsupported("a layer asks for attention that is not the tree's")
    row.layers += 1
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window if sliding_window and sliding_window > 0 else None
    if window is not None and int(row.depths.max()) < window:
        window = None
    fused = softcap is None and query.shape[-1] == value.shape[-1]
    if fused and query.is_cuda and query.dtype != torch.float32 and window is None:
        out, lse = _varlen(row, query[0], key[0], value[0], scale)
    else:
        one = _cpu_flash if fused and not query.is_cuda else _matmul
        out, lse = _by_pieces(row, one, query, key, value, scale, window, softcap)
    if s_aux is not None:
        out = out * torch.sigmoid(lse - s_aux.float().reshape(-1, 1))[..., None]
    return out.to(query.dtype).transpose(0, 1)[None], None


def _by_pieces(
    row: TreeRow,
    compute: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (output, log-sum-exp) in fp32, shapes (heads, tokens, width) and (heads, tokens)."""
    heads, tokens = query.shape[1:3]
    out = torch.empty(heads, tokens, value.shape[-1], dtype=torch.float32, device=query.device)
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=query.device)
    for piece in (*row.own, *row.above):
        here = slice(piece.first, piece.last)
        causal = piece.kind == "causal" and window is None and compute is _cpu_flash
        mask = None if causal else row.mask(piece, window)
        keys, values = key[:, :, piece.low : piece.high], value[:, :, piece.low : piece.high]
        found, norm = compute(query[:, :, here], keys, values, mask, causal, scale, softcap)
        if piece.kind == "dense":
            total = torch.logaddexp(lse[:, here], norm)
            found = out[:, here] * (lse[:, here] - total).exp()[..., None] + found * (norm - total).exp()[..., None]
            norm = total
        out[:, here], lse[:, here] = found, norm
    return out, lse


def _cpu_flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's own kernel for CPUs, which gives its log-sum-exp; shapes as ``tree_attention``'s, without the batch."""
    bias = None
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, float("-inf"))
    found, norm = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=bias, scale=scale
    )
    found, norm = found[0].float(), norm[0].float()
    if mask is not None:  # a query that sees no key of a piece has no weight in it, which the kernel does not say
        blind = ~mask.any(dim=1)
        found, norm = found.masked_fill(blind[:, None], 0.0), norm.masked_fill(blind, float("-inf"))
    return found, norm


def _matmul(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Any attention, in chunks of queries; logits in fp32."""
    heads, queries = query.shape[1:3]
    groups = heads // key.shape[1]
    keys = key[0].float().repeat_interleave(groups, dim=0)
    values = value[0].float().repeat_interleave(groups, dim=0)
    found, norms = [], []
    step = max(1, LOGITS_AT_ONCE // (heads * keys.shape[1]))
    for start in range(0, queries, step):
        logits = (query[0, :, start : start + step].float() @ keys.transpose(1, 2)) * scale
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        if mask is not None:
            logits.masked_fill_(~mask[start : start + step], float("-inf"))
        norm = logits.logsumexp(dim=-1)
        weights = (logits - norm.clamp_min(torch.finfo(torch.float32).min)[..., None]).exp_()
        found.append(weights @ values)
        norms.append(norm)
    return torch.cat(found, dim=1), torch.cat(norms, dim=1)


def _varlen(
    row: TreeRow, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """FlashAttention over sequences of unequal lengths: one causal call for all nodes, one for each level above."""
    query, key, value = (part.transpose(0, 1).contiguous() for part in (query, key, value))
    out = lse = None
    for level in row.levels:
        picked = (query, key, value)
        if level.queries is not None:
            picked = (query[level.queries], key[level.keys], value[level.keys])
        found, norm = torch.ops.aten._flash_attention_forward(
            *picked, level.query_bounds, level.key_bounds, level.longest_query, level.longest_key, 0.0,
            level.queries is None, False, scale=scale,
        )[:2]  # fmt: skip
        found, norm = found.float(), norm.float()
        norm = norm.transpose(0, 1) if norm.shape[0] != len(found) else norm  # (tokens, heads)
        if out is None or lse is None:
            out, lse = found, norm.clone()
            continue
        old = lse[level.queries]
        total = torch.logaddexp(old, norm)
        kept, added = (old - total).exp()[..., None], (norm - total).exp()[..., None]
        out[level.queries] = out[level.queries] * kept + found * added
        lse[level.queries] = total
    assert out is not None and lse is not None
    return out.transpose(0, 1), lse.transpose(0, 1)


@dataclass(frozen=True)
class _Level:
    """Sequences of one call: where queries and keys are (None: all in order), and their bounds (int32)."""

    queries: torch.Tensor | None
    keys: torch.Tensor | None
    query_bounds: torch.Tensor
    key_bounds: torch.Tensor
    longest_query: int
    longest_key: int


def _levels(row: TreeRow) -> list[_Level]:
    device = row.depths.device
    nodes: list[list[Node]] = []
    level = list(row.roots)
    while level:
        nodes.append(level)
        level = [child for node in level for child in node.children]

    def bounds(lengths: Sequence[int]) -> torch.Tensor:
        return torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)

    every = sorted((node for level in nodes for node in level), key=lambda node: node.start)
    sizes = [node.end - node.start for node in every]
    found = [_Level(None, None, bounds(sizes), bounds(sizes), max(sizes), max(sizes))]
    for level in nodes:
        parents = [node for node in level if node.children]
        if parents:
            below, own = [n.last - n.end for n in parents], [n.end - n.start for n in parents]
            queries = torch.cat([torch.arange(n.end, n.last, device=device) for n in parents])
            keys = torch.cat([torch.arange(n.start, n.end, device=device) for n in parents])
            found.append(_Level(queries, keys, bounds(below), bounds(own), max(below), max(own)))
    return found


AttentionInterface.register(NAME, tree_attention)
