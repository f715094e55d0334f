"""Attention with its log-sum-exp, by which outputs over disjoint keys are merged."""

from __future__ import annotations

import torch

KeysValues = tuple[torch.Tensor, torch.Tensor]
LOGITS_AT_ONCE = 2**26  # of the attention, all heads, where no kernel computes it: 256 MB in fp32


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output, shape (batch, heads, queries, value width), and its log-sum-exp without the width, in fp32.

    A query that sees no key has the output 0 and the log-sum-exp minus infinity.

    Args:
        query: shape (batch, heads, queries, width).
        key, value: shape (batch, key heads, keys, width); heads are a multiple of key heads.
        mask: bool, broadcast to (batch, 1, queries, keys): which keys a query sees; None: all.
        causal: query i sees keys 0 to i; without a mask.
        softcap: logits x become softcap * tanh(x / softcap).
    """
    if softcap is None and not query.is_cuda and query.shape[-1] == value.shape[-1]:
        return _cpu_flash(query, key, value, mask, causal, scale)
    return _matmul(query, key, value, mask, causal, scale, softcap)


def fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``attend`` without a soft cap, by torch's kernel for the device, with zeros for the log-sum-exp."""
    shared = query.shape[1] != key.shape[1]
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=shared
    )
    return out.float(), torch.zeros(out.shape[:-1], device=out.device)


def merge(
    out: torch.Tensor, lse: torch.Tensor, other: torch.Tensor, other_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output and log-sum-exp over the keys of both; not both see nothing."""
    return out.lerp(other, torch.sigmoid(other_lse - lse)[..., None]), torch.logaddexp(lse, other_lse)


def _cpu_flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's own kernel for CPUs, which gives its log-sum-exp."""
    bias = None
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, float("-inf"))
    found, norm = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=bias, scale=scale
    )
    found, norm = found.float(), norm.float()
    if mask is not None:  # the kernel does not say that a query sees nothing
        blind = ~mask.any(dim=-1)
        found, norm = found.masked_fill(blind[..., None], 0.0), norm.masked_fill(blind, float("-inf"))
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
    """Any attention, in chunks of queries, in fp32."""
    batch, heads, queries = query.shape[:3]
    groups = heads // key.shape[1]
    keys = key.float().repeat_interleave(groups, dim=1).transpose(2, 3)
    values = value.float().repeat_interleave(groups, dim=1)
    if causal:
        mask = torch.ones(queries, keys.shape[-1], dtype=torch.bool, device=query.device).tril()[None, None]
    if mask is not None:
        mask = mask.expand(-1, -1, queries, -1)
    found, norms = [], []
    step = max(1, LOGITS_AT_ONCE // (batch * heads * keys.shape[-1]))
    for start in range(0, queries, step):
        here = slice(start, start + step)
        logits = (query[:, :, here].float() @ keys) * scale
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        if mask is not None:
            logits.masked_fill_(~mask[:, :, here], float("-inf"))
        norm = logits.logsumexp(dim=-1)
        weights = (logits - norm.clamp_min(torch.finfo(torch.float32).min)[..., None]).exp_()
        found.append(weights @ values)
        norms.append(norm)
    return torch.cat(found, dim=2), torch.cat(norms, dim=2)
