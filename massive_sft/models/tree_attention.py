"""Attention over a token tree: many sequences in one row, what they share computed once.

The row holds a trie's nodes depth first, so that the descendants of a token are the interval behind it. A token sees
itself and its ancestors. That set is the union of disjoint pieces (a node's own tokens, each ancestor's tokens), each
a dense or a causal block; their outputs are merged by their log-sum-exp, as FlashAttention merges its blocks.

Models call it through transformers' ``AttentionInterface``. Only the attention is registered, not a mask: transformers
then passes no mask, and position ids that jump are not taken for packed samples.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface

from massive_sft.models import last_layer
from massive_sft.models.lse_attention import KeysValues, attend
from massive_sft.models.row_pass import RowPass
from massive_sft.models.tree_row import Queries, TreeRow

NAME = "token_tree"
PASS = RowPass[TreeRow]("the tree")
"""Passes of a model with attention ``NAME``."""


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
        query: shape (1, heads, queries, width): of all tokens, or in the last layer of those that are read.
        key, value: shape (1, key heads, queries, width); heads are a multiple of key heads.
        attention_mask: None: the row says who sees whom.
        scaling: of the logits; the inverse root of the width when None.
        sliding_window: keys further back than this, itself included, are not seen.
        softcap: logits x become softcap * tanh(x / softcap).
        s_aux: one more logit of each head that attends to nothing, shape (heads,).

    Returns:
        Shape (1, queries, heads, value width), and None for the weights.

    Raises:
        Unsupported: as ``RowPass.enter_layer``.
        KeysKnown: as ``last_layer.keys_values``.
    """
    row, layer = PASS.enter_layer(query, attention_mask)
    key, value = last_layer.keys_values(row, key, value)
    if row.keep is not None:
        row.keep.append((key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window if sliding_window and sliding_window > 0 else None
    if window is not None and int(row.depths.max()) < window:
        window = None
    before = row.before[layer] if row.before else None
    fused = softcap is None and query.shape[-1] == value.shape[-1]
    kernel = fused and query.is_cuda and query.dtype != torch.float32 and row.read is None
    if kernel and window is None and before is None:
        out, lse = _varlen(row, query[0], key[0], value[0], scale)
    else:
        out, lse = _by_pieces(row.read or row.every, query, (key, value), before, scale, window, softcap)
    if s_aux is not None:
        out = out * torch.sigmoid(lse - s_aux.float().reshape(-1, 1))[..., None]
    return out.to(query.dtype).transpose(0, 1)[None], None


def _by_pieces(
    queries: Queries,
    query: torch.Tensor,
    own: KeysValues,
    before: KeysValues | None,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (output, log-sum-exp) in fp32, shapes (heads, tokens, width) and (heads, tokens)."""
    heads, tokens = query.shape[1:3]
    # A token's heads lie side by side, as the model's output projection reads them.
    out = torch.empty(tokens, heads, own[1].shape[-1], dtype=torch.float32, device=query.device).transpose(0, 1)
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=query.device)
    for piece in (*queries.own, *queries.above):
        here = slice(piece.first, piece.last)
        causal = piece.kind == "causal" and window is None
        mask = None if causal else queries.mask(piece, window)
        mask = None if mask is None else mask[None, None]
        key, value = before if piece.kind == "before" and before is not None else own
        keys, values = key[:, :, piece.low : piece.high], value[:, :, piece.low : piece.high]
        found, norm = attend(query[:, :, here], keys, values, mask, causal, scale, softcap)
        if piece.kind in ("dense", "before"):
            out[:, here].lerp_(found[0], torch.sigmoid(norm[0] - lse[:, here])[..., None])
            lse[:, here] = torch.logaddexp(lse[:, here], norm[0])
        else:
            out[:, here], lse[:, here] = found[0], norm[0]
    return out, lse


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


AttentionInterface.register(NAME, tree_attention)
