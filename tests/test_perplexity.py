"""Perplexity and token lengths of samples."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from evaluation_world import gpt2, llama, tokenizer
from small_tokenizers import small_tokenizer

from massive_sft.core.checksummed_json import seal
from massive_sft.core.errors import Unsupported
from massive_sft.data.encoding import special_tokens
from massive_sft.data.mixture import build_samples
from massive_sft.data.samples import Samples
from massive_sft.ledger.storage import Folder
from massive_sft.measures.perplexity import Perplexity, load_summary, perplexity
from massive_sft.measures.token_length import token_length
from massive_sft.sweep import spec
from massive_sft.sweep.schema import Dataset, Setting, TemplateText


def samples_of(lengths: list[int], prompts: list[int], seed: int = 0) -> Samples:
    """Random samples; the first ``prompts[i]`` tokens of sample i are not trainable."""
    draw = np.random.default_rng(seed)
    trainable = [np.arange(n) >= max(1, p) for n, p in zip(lengths, prompts, strict=True)]
    return Samples(
        tokens=draw.integers(3, 267, sum(lengths)).astype(np.int32),
        trainable=np.concatenate(trainable),
        offsets=np.cumsum([0, *lengths]),
        part=np.zeros(len(lengths), np.int16),
        row=np.arange(len(lengths)),
        text_bytes=np.array([[n - 1, max(0, n - max(1, p) - 1)] for n, p in zip(lengths, prompts, strict=True)]),
    )


SPECIAL = np.arange(267) < 3
SAMPLES = samples_of([20, 3, 57, 9, 20, 2], [8, 1, 30, 8, 0, 1])


@pytest.mark.parametrize("make", [llama, gpt2])
def test_nll_equals_the_model_s_own_loss_one_sample_at_a_time(make) -> None:
    model = make()
    found = perplexity(model, SAMPLES, SPECIAL, token_budget=64)
    for index in range(len(SAMPLES)):
        tokens, trainable = SAMPLES[index]
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, :-1].double()
        nll = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").numpy()
        assert found.all.nll[index] == pytest.approx(nll.sum(), rel=1e-5)
        assert found.response.nll[index] == pytest.approx(nll[trainable[1:]].sum(), rel=1e-5)
    assert found.all.tokens.tolist() == [19, 2, 56, 8, 19, 1]
    assert found.response.tokens.tolist() == [12, 2, 27, 1, 19, 1]


def test_summary_is_micro_over_tokens_and_macro_over_samples() -> None:
    found = perplexity(llama(), SAMPLES, SPECIAL)
    for part, summary in ((found.response, found.summary()["response"]), (found.all, found.summary()["all"])):
        assert summary["perplexity_micro"] == pytest.approx(math.exp(part.nll.sum() / part.tokens.sum()))
        assert summary["perplexity_macro"] == pytest.approx(math.exp(np.mean(part.nll / part.tokens)))
        low, high = summary["perplexity_micro_interval"]
        assert low < summary["perplexity_micro"] < high
        text = part.text_bytes > 0
        bits = part.nll[text] / math.log(2)
        assert summary["bits_per_byte_micro"] == pytest.approx(bits.sum() / part.text_bytes.sum())
        assert summary["bits_per_byte_macro"] == pytest.approx(np.mean(bits / part.text_bytes[text]))
        assert (summary["samples"], summary["samples_with_text"]) == (6, int(text.sum()))


@pytest.mark.parametrize("loss_on", ["response", "all"])
def test_special_tokens_are_told_apart_and_bits_per_byte_are_of_the_text_alone(loss_on: str) -> None:
    """Two answers of one chat, with BOS, EOS after each and a header before: their bytes are those of the words."""
    tokenizer_, model = tokenizer(), llama()
    words = tokenizer_.encode("yes", add_special_tokens=False)
    sample = np.array([0, 2, *words, 1, 2, *words, 1], dtype=np.int32)
    answers = np.isin(np.arange(len(sample)), [*range(2, 3 + len(words)), *range(4 + len(words), len(sample))])
    trainable = answers if loss_on == "response" else np.arange(len(sample)) > 0
    samples = Samples(
        sample, trainable, np.array([0, len(sample)]), np.zeros(1, np.int16), np.zeros(1, np.int64), np.array([[6, 6]])
    )
    special = special_tokens(tokenizer_)
    assert special[:3].all() and not special[3:].any()
    found = perplexity(model, samples, special).summary()["response"]
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(sample.astype(np.int64))[None]).logits[0, :-1].double()
    nll = torch.nn.functional.cross_entropy(logits, torch.from_numpy(sample[1:].astype(np.int64)), reduction="none")
    nll = np.concatenate([[0.0], nll.numpy()])
    of_text, of_special = nll[trainable & (sample > 2)], nll[trainable & (sample <= 2)]
    assert found["bits_per_byte_micro"] == pytest.approx(of_text.sum() / math.log(2) / 6, rel=1e-5)
    assert found["perplexity_text_micro"] == pytest.approx(math.exp(of_text.mean()), rel=1e-5)
    assert found["perplexity_micro"] == pytest.approx(math.exp(nll[trainable].mean()), rel=1e-5)
    assert found["special_nll"] == pytest.approx(of_special.mean(), rel=1e-5)
    assert (found["tokens"], found["special_tokens"]) == (int(trainable.sum()), 2 if loss_on == "response" else 4)


def test_bits_per_byte_count_no_byte_of_a_first_token_that_nothing_predicts(tmp_path: Path) -> None:
    """Under a model to which all tokens are alike, a byte costs the bits of a token."""
    (tmp_path / "rows.jsonl").write_text('{"question": "hi", "answer": "xyz"}')
    data = Dataset(path=str(tmp_path / "rows.jsonl"), format="gsm8k")
    mixture = spec.Mixture(name="m", parts=(spec.Part(name="rows", dataset=data, count=None),), sample_seed=0)
    setting = Setting(method="full", lr=1e-5, batch=1, template=TemplateText(prompt="{prompt}\t"))
    samples, _ = build_samples(mixture, setting, small_tokenizer(bos=False))  # a token a byte, and EOS
    model = llama()
    torch.nn.init.zeros_(model.lm_head.weight)
    found = perplexity(model, samples, np.arange(300) < 4).summary()
    assert (found["all"]["bytes"], found["response"]["bytes"]) == (len("i\txyz"), len("\txyz"))
    assert found["all"]["bits_per_byte_micro"] == pytest.approx(math.log2(267), rel=1e-5)


def test_unknown_token_is_text() -> None:
    named = tokenizer()
    named.add_special_tokens({"unk_token": "<pad>"})
    assert not special_tokens(named)[2]


def test_uniform_model_has_a_perplexity_of_its_vocabulary() -> None:
    model = llama()
    torch.nn.init.zeros_(model.lm_head.weight)
    summary = perplexity(model, SAMPLES, SPECIAL).summary()
    assert summary["all"]["perplexity_micro"] == pytest.approx(267, rel=1e-5)
    assert summary["response"]["perplexity_macro"] == pytest.approx(267, rel=1e-5)


def test_token_that_cannot_come_leaves_what_does_not_rest_on_it() -> None:
    """A special token of the data has probability 0: text and bits per byte are as without it."""
    model = llama()
    tokens = SAMPLES.tokens.copy()
    tokens[5] = 2
    samples = replace(SAMPLES, tokens=tokens)
    plain = perplexity(model, samples, SPECIAL)
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(267))
    model.lm_head.bias.data[2] = -math.inf
    found = perplexity(model, samples, SPECIAL)
    assert np.isinf(found.all.special_nll[0]) and np.isfinite(found.all.nll).all()
    summary = found.summary()["all"]
    assert (summary["special_nll"], summary["perplexity_micro"], summary["perplexity_macro"]) == (None, None, None)
    assert summary["bits_per_byte_micro"] == pytest.approx(plain.summary()["all"]["bits_per_byte_micro"], rel=0.01)
    seal(found.summary())


def test_model_without_numbers_is_refused() -> None:
    model = llama()
    torch.nn.init.constant_(model.lm_head.weight, math.nan)
    with pytest.raises(Unsupported, match="no numbers"):
        perplexity(model, SAMPLES, SPECIAL)


def test_rerun_is_bit_identical_and_batches_change_little() -> None:
    model = llama()
    first, again, other = (perplexity(model, SAMPLES, SPECIAL, budget) for budget in (64, 64, 4096))
    assert np.array_equal(first.all.nll, again.all.nll)
    assert np.allclose(first.all.nll, other.all.nll, rtol=1e-5)


def test_out_of_memory_splits_the_batch_and_says_so() -> None:
    model = llama()
    expected = perplexity(model, SAMPLES, SPECIAL)

    def refuse(_module: torch.nn.Module, inputs: tuple, named: dict) -> None:
        if len(named["input_ids"]) > 1:
            raise torch.OutOfMemoryError("too many rows for this test's device")

    model.register_forward_pre_hook(refuse, with_kwargs=True)
    found = perplexity(model, SAMPLES, SPECIAL)
    assert expected.memory_splits == 0
    assert found.memory_splits > 0
    assert np.allclose(found.all.nll, expected.all.nll, rtol=1e-5)


def test_saved_files_hold_the_summary_and_every_sample(tmp_path: Path) -> None:
    found = perplexity(llama(), SAMPLES, SPECIAL)
    found.save(Folder(tmp_path))
    assert load_summary(Folder(tmp_path)) == found.summary()
    frame = pq.read_table(tmp_path / "perplexity.parquet").to_pandas()
    assert frame.response_nll.tolist() == found.response.nll.tolist()
    assert len(frame) == len(SAMPLES)


def test_no_samples_have_no_perplexity() -> None:
    empty = Samples(
        *(np.zeros(0, kind) for kind in (np.int32, bool)),
        np.zeros(1, np.int64),
        *(np.zeros(0, kind) for kind in (np.int16, np.int64)),
        np.zeros((0, 2), np.int64),
    )
    found: Perplexity = perplexity(llama(), empty, SPECIAL)
    assert found.summary()["all"]["perplexity_micro"] is None
    assert token_length(empty)["all"] is None


def test_token_length_summarises_all_and_trainable_tokens() -> None:
    found = token_length(SAMPLES)
    assert found["samples"] == 6
    assert found["all"] == {"mean": 18.5, "median": 14.5, "p95": pytest.approx(47.75), "max": 57, "total": 111}
    assert found["response"]["total"] == int(SAMPLES.trainable.sum())
