"""Models whose positions are computed otherwise beyond a length (longrope): no batch has samples on both sides of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import evaluation_world as world
import numpy as np
import pytest
import torch
from small_models import small_config
from tiny_training import VOCABULARY, make_samples, make_spec, train
from transformers import AutoModelForCausalLM

from massive_sft.evaluation import batching
from massive_sft.evaluation.requests import Likelihood
from massive_sft.evaluation.scorer import PlainScorer
from massive_sft.measures.perplexity import perplexity
from massive_sft.models.configuration import length_borders
from massive_sft.training.packing import Limit, plan_step

BORDER = 16
SAMPLES = make_samples(11, longest=30)


def model_of(vocabulary: int, **changes: Any) -> Any:
    """A random model that computes positions otherwise beyond ``BORDER`` tokens, of weights so large that it matters."""
    torch.manual_seed(0)
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": BORDER}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, **factors}
    config = small_config("phi3", vocabulary, rope_parameters=rope, original_max_position_embeddings=BORDER, **changes)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    model_of(VOCABULARY).save_pretrained(folder)
    return folder


def test_borders_are_those_of_longrope_alone() -> None:
    assert length_borders(model_of(VOCABULARY).config) == (BORDER,)
    assert [length_borders(small_config(family, VOCABULARY)) for family in ("llama", "gpt2", "gemma3")] == [()] * 3
    config = small_config("gemma3", VOCABULARY)
    config.rope_parameters["full_attention"] |= {"rope_type": "longrope", "original_max_position_embeddings": 8}
    assert length_borders(config) == (8,)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("limit", [Limit(samples=3), Limit(tokens=96)], ids=str)
@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_no_micro_batch_has_samples_on_both_sides_of_a_border(limit: Limit, ranks: int, packing: bool) -> None:
    lengths, batch = np.array([27, 12, 6, 16, 17, 23, 8, 26, 15, 5, 9]), np.array([8, 1, 3, 4, 7, 0, 2])
    plans = plan_step(batch, lengths, ranks, limit, packing, (8, 16))
    assert len({len(plan) for plan in plans}) == 1
    cuts = [cut for plan in plans for cut in plan if len(cut)]
    assert sorted(np.concatenate(cuts)) == sorted(batch)
    assert all(len(set(np.searchsorted((8, 16), lengths[cut]))) == 1 for cut in cuts)
    beyond = plan_step(batch, lengths, ranks, limit, packing, (4, 27))  # all lie between
    plain = plan_step(batch, lengths, ranks, limit, packing)
    assert [[cut.tolist() for cut in plan] for plan in beyond] == [[cut.tolist() for cut in plan] for plan in plain]


def test_no_batch_has_lengths_on_both_sides_of_a_border() -> None:
    lengths = [5, 16, 7, 17, 30, 1]
    assert batching.plan(lengths, 200, (16,)) == [[4, 3], [1, 2, 0, 5]]
    assert batching.plan(lengths, 200, (30,)) == batching.plan(lengths, 200) == [[4, 3, 1, 2, 0, 5]]


def test_every_layout_trains_the_same(base: Path, tmp_path: Path) -> None:
    losses = []
    for number, layout in enumerate(
        [{"micro_batch": 1}, {"micro_batch": 4}, {"micro_batch": "auto"}, {"packing": True}]
    ):
        _, steps = train(make_spec(base, layout={"zero": "auto", **layout}), SAMPLES, tmp_path / str(number))
        losses.append([step.loss for step in steps])
    assert all(one == pytest.approx(losses[0], abs=2e-6) for one in losses[1:])


def test_perplexity_is_from_the_sample_alone() -> None:
    model, special = model_of(VOCABULARY), np.zeros(VOCABULARY, bool)
    together, alone = (perplexity(model, SAMPLES, special, token_budget=budget).all.nll for budget in (4096, 1))
    assert together == pytest.approx(alone, rel=1e-5)


def test_scores_and_texts_are_those_of_each_alone() -> None:
    texts = ["abc", "the answer to a question", "a question and the answer to it is long", "yes"]
    model, tokenizer = model_of(267, bos_token_id=0, eos_token_id=1, pad_token_id=2), world.tokenizer()
    together, alone = (PlainScorer(model, tokenizer, token_budget=budget) for budget in (4096, 1))
    assert [pair[0] for pair in together.log_likelihoods(texts)] == pytest.approx(
        [pair[0] for pair in alone.log_likelihoods(texts)], rel=1e-5
    )
    requests = [Likelihood(i, i, 0, "", 1, text, " no") for i, text in enumerate(texts)]
    found = [[response.logprob for response in scorer.score(requests)[0]] for scorer in (together, alone)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
