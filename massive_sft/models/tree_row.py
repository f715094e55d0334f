"""A token tree as one row: which keys each of its queries attends to, in pieces that kernels can compute."""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from massive_sft.models.lse_attention import KeysValues

# Subtrees up to this size share one masked block: on a CPU a call costs less than the logits that a mask leaves out.
CPU_BLOCK_TOKENS, GPU_BLOCK_TOKENS = 64, 256


@dataclass(frozen=True)
class Node:
    """Tokens ``start`` to ``end`` of a row follow each other; all up to ``last`` descend from them."""

    start: int
    end: int
    last: int
    children: tuple[Node, ...]


@dataclass(frozen=True)
class Piece:
    """Queries ``first:last`` attend to keys ``low:high``.

    ``kind`` is ``causal``, ``tree`` (masked), ``dense``, or ``before``: keys that stand before the row. Queries are
    numbered as those that attend, keys by their places in the row.
    """

    kind: str
    first: int
    last: int
    low: int
    high: int


@dataclass(frozen=True)
class Queries:
    """Tokens of a row that attend to others.

    Attributes:
        places: int64, shape (queries,): where in the row each is, in order.
        depths, ends: of all tokens of the row, as in ``TreeRow``.
        own: pieces that hold the queries' own keys, every query in one.
        above: pieces of ancestors only.
    """

    places: torch.Tensor
    depths: torch.Tensor
    ends: torch.Tensor
    own: Sequence[Piece]
    above: Sequence[Piece]
    masks: dict[Any, torch.Tensor | None] = field(default_factory=dict)

    def at(self, places: torch.Tensor) -> Queries:
        """Return those of all tokens of a row that are at some places, in order: their pieces have a mask each."""
        listed = places.tolist()

        def cut(pieces: Sequence[Piece]) -> list[Piece]:
            bounds = [(bisect_left(listed, one.first), bisect_left(listed, one.last)) for one in pieces]
            return [
                replace(one, kind="tree" if one.kind == "causal" else one.kind, first=first, last=last)
                for one, (first, last) in zip(pieces, bounds, strict=True)
                if first < last
            ]

        return Queries(places, self.depths, self.ends, cut(self.own), cut(self.above))

    def mask(self, piece: Piece, window: int | None) -> torch.Tensor | None:
        """Return which keys the queries see, bool, shape (queries, keys); None where they see all."""
        key = (piece, window)
        if key not in self.masks:
            self.masks[key] = self._mask(piece, window)
        return self.masks[key]

    def _mask(self, piece: Piece, window: int | None) -> torch.Tensor | None:
        device = self.depths.device
        query = self.places[piece.first : piece.last]
        keys = torch.arange(piece.high, device=device) if piece.kind == "before" else self.depths
        distance = self.depths[query, None] - keys[None, piece.low : piece.high]
        near = None if window is None or int(distance.max()) < window else distance < window
        if piece.kind in ("dense", "before"):
            return near
        key = torch.arange(piece.low, piece.high, device=device)[None]
        seen = (key <= query[:, None]) & (query[:, None] < self.ends[None, piece.low : piece.high])
        return seen if near is None else seen & near


@dataclass
class TreeRow:
    """One row of tokens.

    Attributes:
        roots: the trie's nodes without a parent.
        tokens: int64, shape (tokens,).
        depths: int64, shape (tokens,): each token's position in its own sequences.
        ends: int64, shape (tokens,): behind the last descendant of each.
        before: keys and values, layer by layer, of the tokens in front of all roots: shapes (1, key heads, tokens,
            width). None of them: the roots begin their sequences.
        keep: where each layer's keys and values are put, for rows that go on from this one; None: nowhere.
        layers: how often a layer has asked for its attention.
        known: keys and values of the last layer, where only a part of the tokens attends in it; see ``last_layer``.
        read: that part, while the layer is computed for it.
        every: all tokens, as those that attend.
    """

    roots: tuple[Node, ...]
    tokens: torch.Tensor
    depths: torch.Tensor
    ends: torch.Tensor
    before: Sequence[KeysValues] = ()
    keep: list[KeysValues] | None = None
    layers: int = 0
    known: list[KeysValues] | None = None
    read: Queries | None = None

    def __post_init__(self) -> None:
        block = CPU_BLOCK_TOKENS if self.ends.device.type == "cpu" else GPU_BLOCK_TOKENS
        own, above = _pieces(self.roots, block)
        if self.before:
            above.append(Piece("before", 0, len(self.tokens), 0, self.before[0][0].shape[2]))
        places = torch.arange(len(self.tokens), device=self.ends.device)
        self.every = Queries(places, self.depths, self.ends, own, above)

    @property
    def queries(self) -> int:
        """How many tokens attend to others."""
        return len(self.tokens if self.read is None else self.read.places)

    def to(self, device: torch.device) -> TreeRow:
        """Return the row on a device."""
        tokens, depths, ends = (part.to(device) for part in (self.tokens, self.depths, self.ends))
        return TreeRow(self.roots, tokens, depths, ends, self.before, self.keep)

    @functools.cached_property
    def levels(self) -> list[Level]:
        """The calls of a kernel for sequences of unequal lengths."""
        return _levels(self)


def _pieces(roots: Sequence[Node], block: int) -> tuple[list[Piece], list[Piece]]:
    """Return the pieces that hold each token's own key, every token in one, and those of ancestors only.

    Args:
        block: tokens of the subtrees that share one masked block.
    """
    own: list[Piece] = []
    above: list[Piece] = []
    levels = [list(roots)]
    while levels:
        small: list[Node] = []
        for node in levels.pop():
            if small and (node.last - small[0].start > block or node.start != small[-1].last):
                own.append(_forest(small))
                small = []
            if node.last - node.start <= block:
                small.append(node)
                continue
            own.append(Piece("causal", node.start, node.end, node.start, node.end))
            if node.children:
                above.append(Piece("dense", node.end, node.last, node.start, node.end))
                levels.append(list(node.children))
        if small:
            own.append(_forest(small))
    return own, above


def _forest(nodes: Sequence[Node]) -> Piece:
    single = len(nodes) == 1 and not nodes[0].children
    first, last = nodes[0].start, nodes[-1].last
    return Piece("causal" if single else "tree", first, last, first, last)


@dataclass(frozen=True)
class Level:
    """Sequences of one call: where queries and keys are (None: all in order), and their bounds (int32)."""

    queries: torch.Tensor | None
    keys: torch.Tensor | None
    query_bounds: torch.Tensor
    key_bounds: torch.Tensor
    longest_query: int
    longest_key: int


def _levels(row: TreeRow) -> list[Level]:
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
    found = [Level(None, None, bounds(sizes), bounds(sizes), max(sizes), max(sizes))]
    for level in nodes:
        parents = [node for node in level if node.children]
        if parents:
            below, own = [n.last - n.end for n in parents], [n.end - n.start for n in parents]
            queries = torch.cat([torch.arange(n.end, n.last, device=device) for n in parents])
            keys = torch.cat([torch.arange(n.start, n.end, device=device) for n in parents])
            found.append(Level(queries, keys, bounds(below), bounds(own), max(below), max(own)))
    return found
