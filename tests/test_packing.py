"""Layouts of one optimizer step: they never change which tokens are seen, nor any loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_training import CONFIGS, VOCABULARY, make_samples, tiny_config
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, BloomConfig, modeling_flash_attention_utils

from massive_sft.cost.rank_loads import MICRO_BATCH_TOKENS, cut_by_cost, padded_tokens
from massive_sft.data.samples import Samples, padded_width
from massive_sft.sweep.schema import Setting
from massive_sft.sweep.spec import Layout
from massive_sft.training.kernels import find_layers
from massive_sft.training.loss import SummedLoss, packs_cleanly
from massive_sft.training.packing import NO_TARGET, Limit, collate, fitting_tokens, fullest, plan_step

LIMITS = [Limit(samples=1), Limit(samples=3), Limit(tokens=1), Limit(tokens=50), Limit(tokens=10_000)]


def _model(family: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(family, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model.eval()


def _whole_forward(model: Any, samples: Samples, index: int) -> float:
    """The loss of one sample from the logits of all its positions."""
    tokens, trainable = samples[index]
    ids = torch.from_numpy(tokens.astype(np.int64))
    logits = model(input_ids=ids[None]).logits[0, :-1].float()
    losses = functional.cross_entropy(logits, ids[1:], reduction="none")
    return losses[torch.from_numpy(trainable[1:].copy())].sum().item()


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("limit", LIMITS, ids=str)
@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_plan_step_every_sample_once_and_equal_rounds(limit: Limit, ranks: int, packing: bool) -> None:
    samples = make_samples(9)
    batch = np.array([8, 1, 3, 5, 7, 0, 2])
    plans = plan_step(batch, samples.lengths, ranks, limit, packing)
    assert len(plans) == ranks
    assert len({len(plan) for plan in plans}) == 1
    assert sorted(np.concatenate([part for plan in plans for part in plan])) == sorted(batch)


def test_plan_step_respects_the_limit() -> None:
    samples = make_samples(40)
    batch = np.arange(40)
    for part in plan_step(batch, samples.lengths, 1, Limit(samples=6), False)[0]:
        assert len(part) <= 6
    for part in plan_step(batch, samples.lengths, 1, Limit(tokens=64), False)[0]:
        assert samples.lengths[part].max() * len(part) <= 64
    for part in plan_step(batch, samples.lengths, 1, Limit(tokens=64), True)[0]:
        assert samples.lengths[part].sum() <= 64


def log_normal(mean: int, most: int, samples: int) -> np.ndarray:
    drawn = np.random.default_rng(0).lognormal(np.log(mean) - 0.405, 0.9, samples)
    return np.clip(drawn, 8, most).astype(np.int64)


@pytest.mark.parametrize("packing", [False, True])
def test_plan_step_pads_little_and_shares_well_on_log_normal_lengths(packing: bool) -> None:
    lengths, real, computed, slowest = log_normal(479, 2048, 20 * 32), 0, 0, 0.0
    for batch in np.arange(len(lengths)).reshape(20, 32):
        plans = plan_step(batch, lengths, 8, Limit(tokens=21_000), packing)
        loads = [
            sum(
                int(lengths[cut].sum()) if packing else len(cut) * padded_width(int(lengths[cut].max())) for cut in cuts
            )
            for cuts in [[cut for cut in plan if len(cut)] for plan in plans]
        ]
        real, computed = real + int(lengths[batch].sum()), computed + sum(loads)
        slowest += max(loads) * 8 / sum(loads) / 20
    assert computed / real <= 1.10 and slowest <= 1.15


def test_micro_batches_are_the_cheapest_of_all_cuts_within_the_limit() -> None:
    widths = [480, 464, 240, 240, 224, 96, 80, 64, 16]

    def cost(cuts: list[range]) -> int:
        return sum(padded_tokens(cut, widths) + MICRO_BATCH_TOKENS for cut in cuts)

    def all_cuts(start: int) -> Iterator[list[range]]:
        if start == len(widths):
            yield []
        for end in range(start + 1, len(widths) + 1):
            if end == start + 1 or padded_tokens(range(start, end), widths) <= 900:
                yield from ([range(start, end), *rest] for rest in all_cuts(end))

    assert cost(cut_by_cost(widths, 900)) == min(map(cost, all_cuts(0)))
    assert cut_by_cost([4000, 3000], 900) == [range(1), range(1, 2)]  # a sample that is longer stands alone


def test_no_step_has_a_fuller_micro_batch_than_the_one_that_is_tried_first() -> None:
    lengths = log_normal(100, 900, 640)
    for limit in (Limit(tokens=3_000), Limit(samples=5)):
        tried = fullest(32, lengths, limit, packing=False)
        most = len(tried) * padded_width(int(lengths[tried].max()))
        for batch in np.arange(640).reshape(20, 32):
            cuts = [cut for plan in plan_step(batch, lengths, 2, limit, packing=False) for cut in plan if len(cut)]
            assert max(len(cut) * padded_width(int(lengths[cut].max())) for cut in cuts) <= max(most, 3_000)


def test_plan_step_more_ranks_than_samples_gives_stand_ins() -> None:
    plans = plan_step(np.array([4]), make_samples(5).lengths, 3, Limit(samples=2), False)
    assert [len(plan[0]) for plan in plans] == [1, 0, 0]


def test_limit_halves_down_to_one_sample() -> None:
    assert Limit(samples=5).halved(20) == Limit(samples=3)
    assert Limit(samples=1).halved(20) is None
    assert Limit(tokens=100).halved(20) == Limit(tokens=50)
    assert Limit(tokens=30).halved(20) == Limit(tokens=20)
    assert Limit(tokens=20).halved(20) is None


def test_fitting_tokens_grow_with_memory_and_checkpointing() -> None:
    sizes = {"layers": 32, "hidden": 4096, "vocabulary": 128_000, "setting": Setting(method="full", lr=1e-5, batch=32)}
    whole, chunked = Layout(gpus=1, zero=3), Layout(gpus=1)  # stage 3 has all logits at once
    plain = fitting_tokens(60 * 2**30, **sizes, layout=whole)
    assert 3_000 < plain < 8_000
    assert fitting_tokens(120 * 2**30, **sizes, layout=whole) == pytest.approx(2 * plain, abs=2)
    checkpointed = chunked.model_copy(update={"gradient_checkpointing": True})
    assert fitting_tokens(60 * 2**30, **sizes, layout=checkpointed) > 10 * plain
    assert fitting_tokens(60 * 2**30, **sizes, layout=chunked) > plain
    assert fitting_tokens(-1, **sizes, layout=chunked) == 1


def test_collate_targets_are_the_trainable_tokens_after_their_positions() -> None:
    samples = make_samples(3)
    for packing in (False, True):
        batch = collate(samples, np.array([2, 0, 1]), packing)
        expected = np.concatenate([samples[i][0][samples[i][1]] for i in (2, 0, 1)])
        assert batch.targets[: len(expected)].tolist() == expected.tolist()
        assert set(batch.targets[len(expected) :].tolist()) <= {NO_TARGET}
        assert batch.input_ids.reshape(-1)[batch.keep + 1][: len(expected)].tolist() == expected.tolist()
        assert batch.tokens == samples.lengths.sum()


@pytest.mark.parametrize("family", CONFIGS)
def test_loss_packed_padded_and_one_by_one_equals_the_whole_forward(family: str) -> None:
    samples, model = make_samples(6), _model(family)
    one_by_one = [_whole_forward(model, samples, index) for index in range(6)]
    loss = SummedLoss(model)
    with torch.no_grad():
        single = [float(loss(collate(samples, np.array([index]), False))) for index in range(6)]
        padded = float(loss(collate(samples, np.arange(6), False)))
        packed = float(loss(collate(samples, np.arange(6), True)))
    assert single == pytest.approx(one_by_one, rel=1e-5)
    assert padded == pytest.approx(sum(one_by_one), rel=1e-5)
    assert packed == pytest.approx(sum(one_by_one), rel=1e-5)


@pytest.mark.parametrize("packing", [False, True])
def test_loss_of_samples_that_fill_all_learned_positions(packing: bool) -> None:
    """No padding stands where a model has no position: 18 is no multiple of 16."""
    samples, model = make_samples(11), _model("gpt2", n_positions=18)
    assert samples.lengths.max() == 18
    expected = [_whole_forward(model, samples, index) for index in range(11)]
    with torch.no_grad():
        assert float(SummedLoss(model)(collate(samples, np.arange(11), packing))) == pytest.approx(sum(expected))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_gradient_packed_and_padded_is_that_of_single_samples(family: str) -> None:
    samples, model = make_samples(6), _model(family)
    loss = SummedLoss(model)

    def gradient(parts: list[np.ndarray], packing: bool) -> torch.Tensor:
        model.zero_grad()
        for part in parts:
            loss(collate(samples, part, packing)).backward()
        return torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()])

    singles = gradient([np.array([index]) for index in range(6)], False)
    for packing in (False, True):
        assert torch.allclose(gradient([np.arange(6)], packing), singles, rtol=1e-4, atol=1e-5 * singles.abs().max())


def test_loss_lm_head_sees_only_positions_before_a_target() -> None:
    samples, model = make_samples(4), _model("llama")
    seen = []
    loss = SummedLoss(model)
    model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    loss(collate(samples, np.arange(4), False))
    assert seen == [(1, padded_width(int(samples.trainable.sum())), VOCABULARY)]


def test_loss_released_model_gives_all_logits_again() -> None:
    model = _model("llama")
    SummedLoss(model).release()
    assert model(input_ids=torch.arange(5)[None]).logits.shape == (1, 5, VOCABULARY)


def test_stand_in_has_a_finite_loss() -> None:
    batch = collate(make_samples(2), np.empty(0, dtype=np.int64), False)
    assert not batch.counted and batch.tokens == 0
    assert torch.isfinite(SummedLoss(_model("llama"))(batch))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", CONFIGS)
def test_packs_cleanly_models_with_position_ids_are_accepted(family: str, dtype: torch.dtype) -> None:
    assert packs_cleanly(_model(family).to(dtype), VOCABULARY)


def test_packs_cleanly_a_model_without_position_ids_is_refused(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=1, n_head=2))
    assert not packs_cleanly(model, VOCABULARY)


def test_packs_cleanly_a_model_that_sees_across_samples_is_refused() -> None:
    model = _model("llama")
    # A model that ignores position ids: samples run together as one text.
    model.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "position_ids": None}), with_kwargs=True
    )
    assert not packs_cleanly(model, VOCABULARY)


class Waits(TorchDispatchMode):
    """Counts, within a model's layers, what a GPU's host would wait for: values that it reads to go on."""

    READS = frozenset({"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"})

    def __init__(self, model: Any):
        super().__init__()
        self.found: Counter[str] = Counter()
        self._depth = 0
        for layer in find_layers(model):
            layer.register_forward_pre_hook(lambda *_: setattr(self, "_depth", self._depth + 1))
            layer.register_forward_hook(lambda *_: setattr(self, "_depth", self._depth - 1))

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        if self._depth and operator.name() in self.READS:
            self.found[operator.name()] += 1
        return operator(*arguments, **(keywords or {}))


def _varlen(query: Any, key: Any, value: Any, cu_seqlens_q: Any, max_seqlen_q: Any, **_: Any) -> torch.Tensor:
    """Compute what flash_attn_varlen_func does, shape (tokens, heads, width), on a CPU; the borders are to be right."""
    assert type(max_seqlen_q) is int  # a tensor's value would be waited for
    places = torch.arange(len(query))
    sample = torch.searchsorted(cu_seqlens_q[1:].long(), places, right=True)
    mask = (sample[:, None] == sample) & (places[:, None] >= places)
    mixed = [part.transpose(0, 1) for part in (query, key, value)]
    out = functional.scaled_dot_product_attention(*mixed, attn_mask=mask, enable_gqa=True)
    return out.transpose(0, 1)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash_attention_2"])
@pytest.mark.parametrize("adapted", [False, True])
def test_no_layer_waits_for_the_borders_of_packed_samples(
    attention: str, adapted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, model = make_samples(6), _model("llama")
    with torch.no_grad():
        expected = float(SummedLoss(model)(collate(samples, np.arange(6), packing=True)))
    functions = (
        (None, _varlen, None, None, None),
        (lambda **keywords: {"max_seqlen_q": keywords["max_seqlen_q"]}, None),
    )
    monkeypatch.setattr(modeling_flash_attention_utils, "lazy_import_flash_attention", lambda _: functions)
    model.config._attn_implementation = attention
    if adapted:
        model = get_peft_model(model, LoraConfig(target_modules="all-linear"))
    batch, loss = collate(samples, np.arange(6), packing=True), SummedLoss(model)
    with torch.no_grad(), Waits(model) as waits:
        packed = float(loss(batch))
    assert packed == pytest.approx(expected, rel=1e-5)
    assert waits.found == {}
