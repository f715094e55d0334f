"""Attention for many sequences that grow at once, each in a slot of one cache of keys and values.

The new tokens of all sequences stand in one row, without padding; so a model's linear layers see no other token. Keys
and values of what all sequences begin with (the head) are kept once. The attention to the head and that to a slot are
merged by their log-sum-exp.

Models call it through transformers' ``AttentionInterface``, and keep no cache of their own. Only the attention is
registered, not a mask: transformers then passes no mask, and positions that jump are not taken for packed samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface

from massive_sft.models.lse_attention import KeysValues, attend, fused, merge
from massive_sft.models.row_pass import RowPass

NAME = "slots"
# A CPU's kernels round fewer rows of queries than these, and a rest of keys, otherwise than whole ones: with whole ones
# a query's attention is the same to a bit, whatever is computed beside it (seen in bf16; in fp32 with 512 keys).
ROWS, KEYS = 4, 128


def whole_keys(tokens: int) -> int:
    """Return how many keys of a slot are read where it holds so many."""
    return -(-tokens // KEYS) * KEYS


class SlotCache:
    """Keys and values of ``slots`` sequences of up to ``capacity`` tokens behind a head that they have in common.

    Memory for a layer is taken when the layer first asks for it.
    """

    def __init__(self, slots: int, capacity: int):
        self.slots, self.capacity = slots, capacity
        self.head: list[KeysValues] = []
        self._layers: list[KeysValues] = []

    @property
    def head_tokens(self) -> int:
        return int(self.head[0][0].shape[2]) if self.head else 0

    @property
    def nbytes(self) -> int:
        """Memory of the slots, in bytes."""
        return sum(part.nbytes for layer in self._layers for part in layer)

    def as_head(self) -> list[KeysValues]:
        """Return what the first slot holds as a head for others; it is full."""
        return [(key[:1].transpose(1, 2), value[:1].transpose(1, 2)) for key, value in self._layers]

    def layer(self, number: int, key: torch.Tensor, value: torch.Tensor) -> KeysValues:
        """Return a layer's keys and values, shapes (slots, capacity, key heads, width); those of ``key`` and ``value``.

        Zeros where nothing was written: what is masked has no weight, but nothing times NaN is NaN.
        """
        if number == len(self._layers):
            shapes = [(self.slots, self.capacity, part.shape[1], part.shape[3]) for part in (key, value)]
            self._layers.append((key.new_zeros(shapes[0]), value.new_zeros(shapes[1])))
        return self._layers[number]

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first tokens of one slot over those of another."""
        for layer in self._layers:
            for part in layer:
                part[target, :tokens] = part[source, :tokens]


@dataclass(frozen=True)
class Piece:
    """Queries of slots ``first`` to ``last``, as many of each.

    Attributes:
        tokens: int64, shape (slots x queries,): where they are in the row; some may be there twice.
        positions: int64, shape (slots, queries): of each in its slot, behind the head.
        longest: keys of a slot that any of them sees.
    """

    first: int
    last: int
    tokens: torch.Tensor
    positions: torch.Tensor
    longest: int


@dataclass
class SlotRow:
    """The new tokens of a forward pass.

    Attributes:
        cache: where their keys and values go.
        tokens, positions: int64, shape (tokens,): ids, and places in their sequences, the head counted.
        slots: int64, shape (tokens,): whose they are.
        starts: where sequences that begin here lie in the row: first token and the one behind the last.
        pieces: queries of sequences that go on; a later piece overwrites an earlier one.
        layers: how often a layer has asked for its attention.
    """

    cache: SlotCache
    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    starts: Sequence[tuple[int, int]]
    pieces: Sequence[Piece]
    layers: int = 0
    _masks: dict[Any, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.own = self.positions - self.cache.head_tokens
        self.longest = int(self.positions.max()) + 1

    @property
    def queries(self) -> int:
        """How many tokens attend to others: all."""
        return len(self.tokens)

    def piece_mask(self, piece: Piece, window: int | None) -> torch.Tensor:
        """Return which keys of its slot each query sees: bool, shape (slots, 1, queries, keys)."""
        return self._once((piece.first, piece.last, window), lambda: self._near(piece, window))

    def _near(self, piece: Piece, window: int | None) -> torch.Tensor:
        distance = piece.positions[:, None, :, None] - torch.arange(piece.longest, device=piece.positions.device)
        seen = distance >= 0
        return seen if window is None else seen & (distance < window)

    def head_mask(self, window: int | None) -> torch.Tensor | None:
        """Return which keys of the head each token sees, bool, shape (1, 1, tokens, keys); None where all."""
        if window is None:
            return None
        keys = torch.arange(self.cache.head_tokens, device=self.positions.device)
        return self._once(window, lambda: (self.positions[:, None] - keys < window)[None, None])

    def start_mask(self, tokens: int, window: int) -> torch.Tensor:
        """Return which of a new sequence's keys each of its tokens sees: bool, shape (1, 1, tokens, tokens)."""
        places = torch.arange(tokens, device=self.positions.device)
        distance = places[:, None] - places
        return self._once(("start", tokens, window), lambda: ((distance >= 0) & (distance < window))[None, None])

    def _once(self, key: Any, make: Any) -> torch.Tensor:
        if key not in self._masks:
            self._masks[key] = make()
        return self._masks[key]


PASS = RowPass[SlotRow]("slots")
"""Passes of a model with attention ``NAME``."""


def slot_attention(
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
    """The attention function that transformers' layers call; arguments and result as of ``tree_attention``.

    Raises:
        Unsupported: as ``RowPass.enter_layer``.
    """
    row, number = PASS.enter_layer(query, attention_mask)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window if sliding_window and 0 < sliding_window < row.longest else None
    keys, values = row.cache.layer(number, key, value)
    keys[row.slots, row.own] = key[0].transpose(0, 1)
    values[row.slots, row.own] = value[0].transpose(0, 1)
    compute = attend if row.cache.head or s_aux is not None or softcap is not None else fused
    heads, tokens = query.shape[1:3]
    out = torch.empty(heads, tokens, value.shape[-1], dtype=torch.float32, device=query.device)
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=query.device)
    for first, last in row.starts:
        asked, seen, read = (part[:, :, first:last] for part in (query, key, value))
        mask = None if window is None or last - first <= window else row.start_mask(last - first, window)
        found, norm = compute(asked, seen, read, mask, mask is None, scale, softcap)
        out[:, first:last], lse[:, first:last] = found[0], norm[0]
    for piece in row.pieces:
        found, norm = _continued(row, piece, query, (keys, values), compute, window, scale, softcap)
        out[:, piece.tokens], lse[:, piece.tokens] = found, norm
    if row.cache.head:
        found, norm = _to_head(query, row.cache.head[number], row.head_mask(window), scale, softcap)
        out, lse = merge(out, lse, found, norm)
    if s_aux is not None:
        out = out * torch.sigmoid(lse - s_aux.float().reshape(-1, 1))[..., None]
    return out.to(query.dtype).transpose(0, 1)[None], None


def _continued(
    row: SlotRow,
    piece: Piece,
    query: torch.Tensor,
    cached: KeysValues,
    compute: Any,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output and log-sum-exp of a piece's queries over their slots, shapes (heads, queries[, width]).

    Query heads that share a key head are its queries, so that its keys are read once.
    """
    slots, queries = piece.positions.shape
    heads, width = query.shape[1], query.shape[3]
    keys, values = (part[piece.first : piece.last, : piece.longest].transpose(1, 2) for part in cached)
    shared = keys.shape[1]
    groups = heads // shared
    asked = query[0][:, piece.tokens].view(shared, groups, slots, queries, width)
    asked = asked.permute(2, 0, 1, 3, 4).reshape(slots, shared, groups * queries, width)
    mask = row.piece_mask(piece, window)
    if groups > 1:
        mask = mask.repeat(1, 1, groups, 1)
    rows = groups * queries
    whole = _whole_rows(rows, query.device)
    found, norm = compute(asked[:, :, whole], keys, values, mask[:, :, whole], False, scale, softcap)
    found, norm = found[:, :, :rows], norm[:, :, :rows]
    found = found.reshape(slots, shared, groups, queries, -1).permute(1, 2, 0, 3, 4)
    norm = norm.reshape(slots, shared, groups, queries).permute(1, 2, 0, 3)
    return found.reshape(heads, slots * queries, -1), norm.reshape(heads, slots * queries)


def _to_head(
    query: torch.Tensor, head: KeysValues, mask: torch.Tensor | None, scale: float, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output and log-sum-exp of all tokens over the head, shapes (heads, tokens[, width])."""
    heads, tokens, width = query.shape[1:]
    shared = head[0].shape[1]
    asked = query.reshape(1, shared, heads // shared * tokens, width)
    rows = asked.shape[2]
    whole = _whole_rows(rows, query.device)
    if mask is not None:
        mask = mask.repeat(1, 1, heads // shared, 1)[:, :, whole]
    found, norm = attend(asked[:, :, whole], *head, mask, False, scale, softcap)
    found, norm = found[:, :, :rows], norm[:, :, :rows]
    return found.reshape(heads, tokens, -1), norm.reshape(heads, tokens)


def _whole_rows(rows: int, device: torch.device) -> Any:
    """Return the places of rows, the last one repeated until there are whole ``ROWS``."""
    missing = -rows % ROWS
    return torch.arange(rows + missing, device=device).clamp(max=rows - 1) if missing else slice(None)


AttentionInterface.register(NAME, slot_attention)
