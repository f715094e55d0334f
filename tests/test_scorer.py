"""The scorer against lm-eval's own Hugging Face backend, its determinism, and generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import evaluation_world as world
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, get_peft_model
from small_models import SIZES
from tokenizers import processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from massive_sft.core.errors import InvalidInput, Unsupported
from massive_sft.evaluation import batching, token_files
from massive_sft.evaluation.encoding import RequestEncoder
from massive_sft.evaluation.logits import chosen_logits, target_logprobs
from massive_sft.evaluation.requests import Generation, Likelihood, Request, Rolling
from massive_sft.evaluation.scorer import PlainScorer
from massive_sft.evaluation.writing import cut
from massive_sft.models.snapshots import load_for_scoring
from massive_sft.sweep import schema

CONTEXTS = ["Question: red?\nAnswer:", "the answer is ", "", "<s>the road", "x" * 300, "two cats \n", "   "]
CONTINUATIONS = [" blue", "red", " the long yellow road", "ünï", " y"]
MODELS = {
    "llama with BOS": (world.llama, True),
    "llama without BOS": (world.llama, False),
    "gpt2 without BOS": (world.gpt2, False),
    "gemma2 with BOS": (world.gemma2, True),
}


def pairs() -> list[tuple[str, str]]:
    return [(context, continuation) for context in CONTEXTS for continuation in CONTINUATIONS]


def likelihoods(texts: list[tuple[str, str]]) -> list[Request]:
    return [Likelihood(i, i, 0, "", 1, *text) for i, text in enumerate(texts)]


def instances(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, argument, i) for i, argument in enumerate(arguments)]


@pytest.fixture(params=list(MODELS))
def peers(request: pytest.FixtureRequest) -> tuple[PlainScorer, HFLM]:
    """Our scorer and lm-eval's backend over the same random model in fp32."""
    make, adds_bos = MODELS[request.param]
    model, tokenizer = make(), world.tokenizer(adds_bos)
    # With its logits_cache, lm-eval 0.4.13 reads the wrong positions where two requests feed equal tokens and predict
    # different numbers of them.
    return PlainScorer(model, tokenizer, token_budget=600), HFLM(
        model, tokenizer=tokenizer, batch_size=4, device="cpu", logits_cache=False
    )


def test_loglikelihood_of_any_pair_equals_lm_eval(peers: tuple[PlainScorer, HFLM]) -> None:
    scorer, reference = peers
    texts = [pair for pair in pairs() if pair[0].strip() or pair[0] == ""]  # lm-eval stops at a blank context
    expected = reference.loglikelihood(instances("loglikelihood", texts), disable_tqdm=True)
    found, _ = scorer.score(likelihoods(texts))
    assert [r.logprob for r in found] == pytest.approx([logprob for logprob, _ in expected], abs=1e-4)
    assert [r.greedy for r in found] == [greedy for _, greedy in expected]


def test_rolling_loglikelihood_over_several_windows_equals_lm_eval(peers: tuple[PlainScorer, HFLM]) -> None:
    scorer, reference = peers
    texts = ["red", "the long yellow road " * 40, "ünï " * 57, "a" * 256, "a" * 257]
    expected = reference.loglikelihood_rolling(
        instances("loglikelihood_rolling", [(t,) for t in texts]), disable_tqdm=True
    )
    found, _ = scorer.score([Rolling(i, i, 0, "", 1, text) for i, text in enumerate(texts)])
    assert [r.logprob for r in found] == pytest.approx(expected, rel=1e-6)


def test_generation_of_any_batch_equals_lm_eval(peers: tuple[PlainScorer, HFLM]) -> None:
    scorer, reference = peers
    until, length = ["e", "\n\n", "ab"], 40
    # None starts with BOS: lm-eval then leaves it out of the whole batch.
    contexts = ["Question: red?\nAnswer:", "the answer is ", "two cats \n", "seven", "no " * 30, "x" * 300]
    arguments = {"until": until, "max_gen_toks": length, "do_sample": False}
    expected = reference.generate_until(instances("generate_until", [(c, arguments) for c in contexts]), True)
    found, _ = scorer.score([Generation(i, i, 0, "", 1, c, tuple(until), length) for i, c in enumerate(contexts)])
    assert [r.text for r in found] == expected
    assert len({r.tokens for r in found}) > 1


class CountingTokenizer(PreTrainedTokenizerFast):
    """Counts the texts that it encodes."""

    texts = 0

    def encode(self, text: str, **options: Any) -> list[int]:  # type: ignore[override]
        self.texts += 1
        return list(super().encode(text, **options))


def counting(adds_bos: bool = True) -> CountingTokenizer:
    plain = world.tokenizer(adds_bos)
    bos = {"bos_token": "<s>"} if adds_bos else {}
    return CountingTokenizer(tokenizer_object=plain.backend_tokenizer, eos_token="</s>", pad_token="<pad>", **bos)


@pytest.mark.parametrize("adds_bos", [True, False])
def test_kept_tokens_are_those_of_lm_eval_and_are_encoded_once(adds_bos: bool, tmp_path: Path) -> None:
    model = world.llama()
    reference = HFLM(model, tokenizer=world.tokenizer(adds_bos), batch_size=1, device="cpu")
    texts = [pair for pair in pairs() if pair[0].strip()]
    asked = [Likelihood(i, i, 0, "", 1, *text) for i, text in enumerate(texts)]
    rolling = Rolling(len(asked), 99, 0, "", 1, "the long yellow road")
    first, again = RequestEncoder(counting(adds_bos)), RequestEncoder(counting(adds_bos))
    made = token_files.encode([*asked, rolling], first, tmp_path)
    assert made[:-1] == [reference._encode_pair(*text) for text in texts]
    assert made[-1] == ([], reference.tok_encode(rolling.text))
    prepared = again._tokenizer.texts
    assert token_files.encode([*asked, rolling], again, tmp_path) == made
    assert again._tokenizer.texts == prepared + 1  # of an empty text, for the fingerprint
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("head", [("<pad>", "<s>"), ("</s>",)], ids=["two tokens, no BOS", "EOS in place of BOS"])
def test_what_a_tokenizer_puts_before_a_text_is_fed_as_lm_eval_and_training_feed_it(head: tuple[str, ...]) -> None:
    raw = world.tokenizer(adds_bos=False).backend_tokenizer
    ids = [raw.token_to_id(token) for token in head]
    raw.post_processor = processors.TemplateProcessing(
        single=" ".join((*head, "$A")), special_tokens=list(zip(head, ids, strict=True))
    )  # as GLM-4's and XGLM's
    named: dict[str, Any] = {"bos_token": "<s>"} if len(head) == 1 else {"extra_special_tokens": list(head)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", pad_token="<pad>", **named)
    model = world.llama()
    scorer = PlainScorer(model, tokenizer)
    reference = HFLM(model, tokenizer=tokenizer, batch_size=1, device="cpu", logits_cache=False)
    texts = [pair for pair in pairs() if pair[0].strip()]
    expected = reference.loglikelihood(instances("loglikelihood", texts), disable_tqdm=True)
    rolled = reference.loglikelihood_rolling(instances("loglikelihood_rolling", [("the red road",)]), disable_tqdm=True)
    asked = [*likelihoods(texts), Rolling(len(texts), 99, 0, "", 1, "the red road")]
    found = [response.logprob for response in scorer.score(asked)[0]]
    assert found == pytest.approx([*(logprob for logprob, _ in expected), *rolled], abs=1e-4)
    encoder = RequestEncoder(tokenizer)
    assert encoder.encode("red") == [*ids, *tokenizer.encode("red", add_special_tokens=False)]
    assert encoder.encode("".join(head) + "red") == encoder.encode("red")
    assert encoder.fingerprint != RequestEncoder(world.tokenizer(adds_bos=False)).fingerprint


def test_context_of_several_choices_is_encoded_once() -> None:
    tokenizer = counting()
    scorer = PlainScorer(world.llama(), tokenizer)
    before = tokenizer.texts
    scorer.score(likelihoods([("Question: red?", f" {choice}") for choice in ("blue", "red", "green", "seven")]))
    assert tokenizer.texts - before == 5


def test_kept_tokens_that_are_damaged_are_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scorer = PlainScorer(world.llama(), world.tokenizer())
    asked = likelihoods(pairs())
    expected, _ = scorer.score(asked, tmp_path)
    (path,) = tmp_path.iterdir()
    sound = path.read_bytes()
    for damaged in (b"", sound[:-1], sound[:200] + bytes([sound[200] ^ 1]) + sound[201:]):
        path.write_bytes(damaged)
        assert scorer.score(asked, tmp_path)[0] == expected
        assert path.read_bytes() == sound and "does not match its checksum; it is made again" in caplog.text


def test_truncation_that_a_tokenizer_s_file_asks_for_makes_it_no_other_tokenizer() -> None:
    cutting = world.tokenizer()
    cutting.backend_tokenizer.enable_truncation(4)
    assert RequestEncoder(cutting).fingerprint == RequestEncoder(world.tokenizer()).fingerprint


def test_kept_tokens_are_of_one_tokenizer_and_its_requests(tmp_path: Path) -> None:
    larger = world.tokenizer()
    larger.add_tokens(["qzx"])
    model = world.llama()
    model.resize_token_embeddings(268)
    PlainScorer(model, larger).score(likelihoods([("a", "b")]), tmp_path)
    PlainScorer(model, larger).score(likelihoods([("a", "qzx")]), tmp_path)
    PlainScorer(model, world.tokenizer()).score(likelihoods([("a", "b")]), tmp_path)
    PlainScorer(model, world.tokenizer(adds_bos=False)).score(likelihoods([("a", "b")]), tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    with pytest.raises(Unsupported, match="must know every token id of its tokenizer, below 267, got 267"):
        PlainScorer(world.llama(), larger).score(likelihoods([("a", "qzx")]), tmp_path)


FAMILIES = ["llama", "qwen2", "gemma2", "cohere", "granite", "olmo", "gpt_neox", "phi"]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_at_chosen_positions_are_the_model_s_own_in_every_family(family: str) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, **SIZES | {"num_attention_heads": 4}, num_key_value_heads=4, head_dim=8, vocab_size=99
    )
    config.update({"logits_scaling": 3.0} if family == "granite" else {})
    config.pad_token_id = config.bos_token_id = config.eos_token_id = 0
    model = AutoModelForCausalLM.from_config(config).eval()
    tokens = torch.randint(1, 99, (3, 11))
    rows, columns = torch.tensor([0, 0, 2, 1]), torch.tensor([0, 10, 4, 7])
    with torch.inference_mode():
        expected = model(input_ids=tokens, use_cache=False).logits[rows, columns]
    found = chosen_logits(model, tokens, rows, columns)
    assert torch.allclose(found, expected, atol=1e-6)
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_log_probabilities_over_a_large_vocabulary_are_nearer_to_the_truth_than_torch_s_softmax() -> None:
    torch.manual_seed(0)
    logits = torch.randn(8, 131072) * 3 + 10  # some large, most so small that a sum in one go loses them
    rows, targets = torch.arange(8).repeat_interleave(64), torch.randint(131072, (512,))
    truth = logits.double().log_softmax(dim=-1)[rows, targets]
    found, _ = target_logprobs(logits, rows, targets)
    off = (found - truth).abs()
    assert off.max() < 3e-6 and off.mean() < 1e-6
    assert off.mean() < (logits.log_softmax(dim=-1)[rows, targets] - truth).abs().mean() / 2


def test_scores_do_not_depend_on_the_order_or_company_of_requests() -> None:
    scorer = PlainScorer(world.llama(), world.tokenizer(), token_budget=600)
    asked = likelihoods(pairs())
    together, _ = scorer.score(asked)
    again, _ = scorer.score(asked)
    assert together == again
    backwards, _ = scorer.score(asked[::-1])
    alone = [scorer.score([request])[0][0] for request in asked]
    for found in (backwards[::-1], alone):
        assert [r.logprob for r in found] == pytest.approx([r.logprob for r in together], abs=1e-4)
        assert [r.greedy for r in found] == [r.greedy for r in together]


def test_scores_after_running_out_of_memory_are_equal_and_say_so() -> None:
    model = world.llama()
    asked = likelihoods(pairs())
    expected, happened = PlainScorer(model, world.tokenizer()).score(asked)
    assert happened["memory_splits"] == 0

    def refuse(_module: torch.nn.Module, inputs: tuple, named: dict) -> None:
        if len(named["input_ids"]) > 3:
            raise torch.OutOfMemoryError("too many rows for this test's device")

    model.register_forward_pre_hook(refuse, with_kwargs=True)
    found, happened = PlainScorer(model, world.tokenizer()).score(asked)
    assert happened["memory_splits"] > 0
    assert [r.greedy for r in found] == [r.greedy for r in expected]
    assert [r.logprob for r in found] == pytest.approx([r.logprob for r in expected], abs=1e-4)


def test_batch_of_one_that_does_not_fit_is_refused_with_a_sentence() -> None:
    def fail(_batch: list[int]) -> list[int]:
        raise torch.OutOfMemoryError("no")

    with pytest.raises(Unsupported, match="does not fit into memory"):
        batching.run_split([0, 1], fail)


def test_error_other_than_memory_is_not_taken_for_it() -> None:
    def fail(_batch: list[int]) -> list[int]:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        batching.run_split([0, 1], fail)


def test_batches_stay_within_the_budget_and_hold_every_index_once() -> None:
    lengths = [5, 100, 7, 7, 30, 1, 64]
    batches = batching.plan(lengths, 64)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 64 for batch in batches)
    assert batches == batching.plan(lengths, 64)


def test_continuation_that_merges_into_its_context_is_not_scored_as_empty() -> None:
    class Merging(RequestEncoder):
        def encode(self, text: str) -> list[int]:
            return [7]  # whatever the text: context and whole are one token

    context, continuation = Merging(world.tokenizer()).pair("a", "b")
    assert context == [7]
    assert continuation == world.tokenizer().encode("b", add_special_tokens=False)


def test_empty_text_and_empty_continuation_are_certain() -> None:
    scorer = PlainScorer(world.llama(), world.tokenizer(adds_bos=False))
    found, _ = scorer.score([Rolling(0, 0, 0, "", 1, ""), Likelihood(1, 1, 0, "", 1, "a", "")])
    assert [(r.logprob, r.greedy, r.tokens) for r in found] == [(0.0, True, 0)] * 2


def test_continuation_longer_than_the_model_is_refused() -> None:
    with pytest.raises(Unsupported, match="longer than the model's 256"):
        PlainScorer(world.llama(), world.tokenizer()).score(likelihoods([("a", "b" * 300)]))


def test_text_with_a_token_that_the_model_lacks_is_refused_in_a_sentence() -> None:
    larger = world.tokenizer()
    larger.add_tokens(["qzx"])
    scorer = PlainScorer(world.llama(), larger)
    common = {"index": 0, "doc": 0, "choice": 0, "doc_hash": "", "repeats": 1}
    for request in (
        Likelihood(**common, context="a qzx", continuation="b"),
        Likelihood(**common, context="", continuation="qzx"),
        Rolling(**common, text="a qzx"),
        Generation(**common, context="a qzx", until=(), max_tokens=1),
    ):
        with pytest.raises(Unsupported, match="must know every token id of its tokenizer, below 267, got 267"):
            scorer.score([request])
    assert len(scorer.score([Likelihood(**common, context="a", continuation="b")])[0]) == 1


def test_answer_as_long_as_the_model_is_refused() -> None:
    with pytest.raises(Unsupported, match="leaves no room"):
        PlainScorer(world.llama(), world.tokenizer()).score([Generation(0, 0, 0, "", 1, "a", (), 256)])


def test_generation_says_why_it_ended() -> None:
    scorer = PlainScorer(world.llama(), world.tokenizer())
    free, stopped = (
        scorer.score([Generation(0, 0, 0, "", 1, "seven", until, 12)])[0][0]
        for until in ((), ("e", "t", "r", "a", "o"))
    )
    assert (free.finish, free.tokens) in {("length", 12), ("eos", free.tokens)}
    assert stopped.text == cut(free.text, ("e", "t", "r", "a", "o"))


@pytest.mark.parametrize(
    ("text", "until", "expected"),
    [("one\ntwo", ("\n",), "one"), ("abcd", ("cd", "bc"), "a"), ("abc", (), "abc"), ("abc", ("x",), "abc")],
)
def test_cut_ends_before_the_first_stop(text: str, until: tuple[str, ...], expected: str) -> None:
    assert cut(text, until) == expected


def saved_base(folder: Path) -> schema.Model:
    world.llama().save_pretrained(folder)
    world.tokenizer().save_pretrained(folder)
    return schema.Model(path=str(folder))


def test_adapter_snapshot_is_scored_unmerged_or_merged_with_equal_fp32_scores(tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base")
    torch.manual_seed(1)
    tuned = get_peft_model(world.llama(), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    asked = likelihoods(pairs())
    scores = {}
    for adapters in ("unmerged", "merged"):
        model = load_for_scoring(base, tmp_path / "adapter", "fp32", adapters)
        assert any("lora" in name for name, _ in model.named_modules()) == (adapters == "unmerged")
        scores[adapters] = [r.logprob for r in PlainScorer(model, world.tokenizer()).score(asked)[0]]
    expected = [r.logprob for r in PlainScorer(tuned.eval(), world.tokenizer()).score(asked)[0]]
    untuned = [r.logprob for r in PlainScorer(load_for_scoring(base, None, "fp32"), world.tokenizer()).score(asked)[0]]
    assert scores["unmerged"] == expected
    assert scores["merged"] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert max(abs(a - b) for a, b in zip(untuned, expected, strict=True)) > 1


def test_full_snapshot_folder_is_scored_with_its_own_weights(tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base")
    world.llama(seed=5).save_pretrained(tmp_path / "snapshot")
    model = load_for_scoring(base, tmp_path / "snapshot", "fp32")
    asked = likelihoods(pairs())
    found, _ = PlainScorer(model, world.tokenizer()).score(asked)
    assert found == PlainScorer(world.llama(seed=5), world.tokenizer()).score(asked)[0]


def test_folder_without_a_model_is_no_snapshot(tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="is no snapshot"):
        load_for_scoring(base, tmp_path / "empty", "fp32")
