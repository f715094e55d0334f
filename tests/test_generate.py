"""Generation in slots: lm-eval's texts, whatever is written at once; stops, drafts, memory, and what falls back."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import evaluation_world as world
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from real_tokenizers import NAMED, real_tokenizer
from small_models import small_config, with_varied_picks
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from massive_sft.core.errors import Unsupported
from massive_sft.evaluation import slots
from massive_sft.evaluation.drafts import Draft
from massive_sft.evaluation.earlier_answers import EarlierAnswers
from massive_sft.evaluation.encoding import RequestEncoder
from massive_sft.evaluation.generate import Generator
from massive_sft.evaluation.requests import Generation, checksum, to_line
from massive_sft.evaluation.slots import Room, wave_of
from massive_sft.evaluation.writing import Endings, GeneratedText, Prompt
from massive_sft.ledger.storage import Folder
from massive_sft.models import slot_attention

HEAD = "the long yellow road " * 10
CONTEXTS = ["Question: red?\nAnswer:", "the answer is ", "two cats \n", "seven", "no " * 20, "x" * 9]
UNTIL = ("e", "\n\n", "ab")


def family(name: str, vocabulary: int = 267) -> Any:
    """A random model of a family whose picks vary."""
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "max_position_embeddings": 400}
    return with_varied_picks(small_config(name, vocabulary, initializer_range=0.3, **ends))


def writes_letters() -> Any:
    """A model that writes letters that its tokenizer never joins, so that a text becomes the tokens it was made of."""
    model, vocabulary = family("llama"), world.tokenizer().get_vocab()
    others = sorted(set(range(267)) - {vocabulary[letter] for letter in "abcfgijklmnopquvwxyz"})
    with torch.no_grad():
        model.lm_head.weight[others] = 0.0
    return model


def asked(contexts: list[str], until: tuple[str, ...] = UNTIL, limits: tuple[int, ...] = (40,)) -> list[Generation]:
    return [Generation(i, i, 0, "", 1, text, until, limits[i % len(limits)]) for i, text in enumerate(contexts)]


def generator(model: Any, tokenizer: Any = None, max_length: int = 400) -> Generator:
    tokenizer = tokenizer or world.tokenizer()
    return Generator(model, tokenizer, RequestEncoder(tokenizer), [tokenizer.eos_token_id], max_length, 600)


def of_lm_eval(model: Any, tokenizer: Any, requests: list[Generation]) -> list[str]:
    peer = HFLM(model, tokenizer=tokenizer, batch_size=3, device="cpu", max_length=400)
    arguments = [{"until": list(r.until), "max_gen_toks": r.max_tokens, "do_sample": False} for r in requests]
    instances = [
        Instance("generate_until", {}, (request.context, one), i)
        for i, (request, one) in enumerate(zip(requests, arguments, strict=True))
    ]
    return peer.generate_until(instances, disable_tqdm=True)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "neox"])
def test_answers_behind_a_common_head_are_those_of_lm_eval(name: str) -> None:
    model, tokenizer = family(name), world.tokenizer()
    requests = asked([HEAD + context for context in CONTEXTS])
    found, happened = generator(model).generate(requests)
    assert [answer.text for answer in found] == of_lm_eval(model, tokenizer, requests)
    assert happened["steps"] <= 41 and len({answer.tokens for answer in found}) > 1


@pytest.mark.parametrize("kind", sorted(NAMED))
def test_answers_with_a_real_tokenizer_end_where_those_of_lm_eval_do(kind: str) -> None:
    tokenizer = real_tokenizer(kind)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = family("llama", len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id  # lm-eval's backend ends at what this says
    requests = asked(["What is it?", "one, two\n", "The end of the"], (". ", "th", "\n\n", "é"), (48,))
    found, happened = generator(model, tokenizer).generate(requests)
    assert [answer.text for answer in found] == of_lm_eval(model, tokenizer, requests)
    assert "steps" in happened


def prompts_of(contexts: list[str], most: int = 40) -> list[Prompt]:
    return [Prompt(world.tokenizer().encode(text), "", (*UNTIL, "</s>"), most) for text in contexts]


def test_answer_does_not_depend_on_what_is_written_at_once_or_on_a_draft() -> None:
    model, endings = family("gemma2"), Endings(world.tokenizer(), [1])
    prompts = prompts_of([HEAD + context for context in CONTEXTS], 30)
    alone = [slots.write(model, [prompt], [[]], endings, Room(1, 2**20, 600))[0][0] for prompt in prompts]
    texts, made = [answer.answer() for answer in alone], [answer.made for answer in alone]
    drafts: dict[str, list[list[int]]] = {
        "none": [[] for _ in made],
        "the answer": made,
        "half of it": [[*tokens[: len(tokens) // 2], 5, *tokens[len(tokens) // 2 + 1 :]] for tokens in made],
        "another": made[1:] + made[:1],
        "longer": [[*tokens, 7, 8, 9] for tokens in made],
    }
    steps = {}
    for name, draft in drafts.items():
        for room in (Room(4, 2**20, 30), Room(64, 2**30, 4096)):
            written, counts = slots.write(model, prompts, draft, endings, room)
            assert [answer.answer() for answer in written] == texts, (name, room)
            assert [answer.made for answer in written] == made
        steps[name] = counts.steps
    assert steps["the answer"] * 2 < steps["none"] and steps["half of it"] < steps["none"]


def test_answers_are_bit_equal_again() -> None:
    requests = asked([HEAD + context for context in CONTEXTS], limits=(40, 7, 23))
    model = family("llama")
    first, second = generator(model).generate(requests), generator(model).generate(requests)
    assert first == second


def test_draft_of_a_request_saves_steps_and_changes_no_answer() -> None:
    model, requests = writes_letters(), asked(CONTEXTS, ())
    plain, before = generator(model).generate(requests)
    found, after = generator(model).generate(requests, [answer.text for answer in plain])
    assert found == plain
    assert 2 * after["steps"] <= before["steps"] and after["guessed_right"] > 0


def test_draft_changes_no_answer_in_bf16_and_is_not_used_where_blocks_round_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, requests = writes_letters().to(torch.bfloat16), asked([HEAD + context for context in CONTEXTS], ())
    plain, before = generator(model).generate(requests)
    own = [answer.text for answer in plain]
    for drafts in (own, [text[: len(text) // 2] + "x" + text for text in own], own[1:] + own[:1]):
        writer = generator(model)
        found, after = writer.generate(requests, drafts)
        assert found == plain
        assert writer.uses_drafts is (after["guessed"] > 0)  # which kernels a machine has decides
    monkeypatch.setattr(slots, "rounds_alike", lambda *_: False)
    assert generator(model).generate(requests, own) == (plain, before)


def test_blocks_of_tokens_are_told_from_single_ones_where_attention_rounds_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, tokens = family("llama").to(torch.bfloat16), [world.tokenizer().encode(HEAD + text) for text in CONTEXTS[:3]]
    answers = [line[5:25] for line in tokens]
    together = slot_attention.fused

    def rounded(query: torch.Tensor, *others: Any) -> Any:
        out, norm = together(query, *others)
        return out * (1 + 0.01 * query.shape[2]), norm  # by how many queries there are

    monkeypatch.setattr(slot_attention, "fused", rounded)
    monkeypatch.setattr(slots, "head_of", lambda _: [])
    assert not slots.rounds_alike(model, tokens, answers)


def test_draft_proposes_what_follows_and_finds_its_place_again() -> None:
    draft = Draft(list(range(40)))
    assert draft.propose([], 50) == list(range(8))
    draft.learn(8, 8, list(range(9)))
    assert draft.propose(list(range(9)), 50) == list(range(9, 25))
    draft.learn(16, 2, [9, 10, 77])
    assert draft.propose([*range(11), 77], 50) == []
    draft.learn(0, 0, [20])
    draft.learn(0, 0, [21])
    assert draft.propose([*range(11), 77, 20, 21], 1) == [22]
    assert Draft().propose([1, 2, 3], 9) == []


def test_earlier_answers_are_found_by_their_requests_and_damaged_ones_are_none(tmp_path: Path) -> None:
    requests = asked(["a", "b"])
    header = {"requests": checksum([*map(to_line, requests), ""])}
    lines = [json.dumps(line) for line in (header, {"text": "one"}, {"logprob": -1.0})]
    for place in ("near/p/a.task/00000", "far/p/a.task/00001"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / f"{place}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    places = [Folder(tmp_path / name) for name in ("none", "near", "far")]
    assert EarlierAnswers(places).texts(requests) == ["one", ""]
    assert EarlierAnswers(places).texts(requests[:1]) == EarlierAnswers().texts(requests) == []
    near = tmp_path / "near/p/a.task/00000.jsonl.gz"
    for damaged in (near.read_bytes()[:-20], gzip.compress(b"{"), gzip.compress(b"[]"), gzip.compress(b""), b""):
        near.write_bytes(damaged)
        assert EarlierAnswers(places[:2]).texts(requests) == []
        assert EarlierAnswers(places).texts(requests) == ["one", ""]


def test_memory_that_runs_out_halves_the_slots_and_keeps_what_is_finished() -> None:
    model = family("llama")
    requests = asked(CONTEXTS, limits=(40, 7, 23))
    expected, _ = generator(model).generate(requests)

    def refuse(_module: torch.nn.Module, _inputs: tuple, named: dict) -> None:
        if named["input_ids"].shape[1] > 100:
            raise torch.OutOfMemoryError("too many tokens for this test's device")

    hook = model.register_forward_pre_hook(refuse, with_kwargs=True)
    found, happened = generator(model).generate(requests)
    assert found == expected and happened["memory_splits"] > 0
    with pytest.raises(Unsupported, match="a single sequence does not fit into memory"):
        generator(model).generate(asked([HEAD]))
    hook.remove()


class Counting(PreTrainedTokenizerFast):
    decoded = 0

    def decode(self, *arguments: Any, **options: Any) -> Any:
        self.decoded += 1
        return super().decode(*arguments, **options)


def test_text_is_decoded_only_where_a_stop_may_end() -> None:
    tokenizer = Counting(
        tokenizer_object=world.tokenizer().backend_tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    writer = generator(family("llama"), tokenizer)
    contexts = [f"{context} {i}" for i in range(4) for context in CONTEXTS]
    writer.generate(asked(contexts, ("never met ~",), (60,)))
    before = tokenizer.decoded
    found, _ = writer.generate(asked(contexts, ("never met ~",), (60,)))
    made = sum(answer.tokens for answer in found)
    # Two a finished text, and tokens with a part of a character, which this tokenizer has many of.
    assert all(answer.finish != "stop" for answer in found)
    assert tokenizer.decoded - before < made


def test_contexts_and_answers_of_odd_kinds() -> None:
    model = family("llama")
    writer = generator(model, max_length=60)
    long, empty = writer.generate(asked(["x" * 300, ""], ("never met",), (20,)))[0]
    assert long.finish in ("length", "eos") and empty.tokens > 0
    (cut,) = writer.generate(asked(["x" * 39 + "x"], ("never met",), (20,)))[0]
    assert cut == long  # of the long one only the last 40 tokens are read
    first = generator(model).generate(asked(["seven"], (), (5,)))[0][0].text
    (nothing,) = generator(model).generate(asked(["seven"], (first[:1],), (5,)))[0]
    assert nothing == GeneratedText("", nothing.tokens, "stop")
    assert generator(model).generate(asked(["seven"], (), (0,)))[0] == [GeneratedText("", 0, "length")]
    assert generator(model).generate([]) == ([], {"memory_splits": 0})
    with pytest.raises(Unsupported, match="leaves no room in the model's 60"):
        writer.generate(asked(["a"], (), (60,)))
    assert writer.generate(asked(["x" * 300, "a", "x" * 90], (), (20,)))[1]["contexts_cut"] == 2
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    with pytest.raises(Unsupported, match=r"gives no numbers \(NaN\)"):
        writer.generate(asked(["a"], (), (20,)))


def test_family_that_does_not_compute_by_slots_answers_in_padded_batches_and_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, tokenizer = family("bloom"), world.tokenizer()
    requests = asked(CONTEXTS)
    writer = generator(model)
    found, happened = writer.generate(requests)
    assert [answer.text for answer in found] == of_lm_eval(model, tokenizer, requests)
    assert happened == {"memory_splits": 0}
    assert caplog.text.count("answers are written in padded batches: the family bloom") == 1


class Elsewhere(LlamaForCausalLM):
    """A family that computes something else by slots, and does not say so."""

    def forward(self, *arguments: Any, position_ids: Any = None, **named: Any) -> Any:
        if self.config._attn_implementation == "slots":
            position_ids = position_ids // 3
        return super().forward(*arguments, position_ids=position_ids, **named)


def test_answers_that_a_plain_pass_does_not_confirm_are_written_again(caplog: pytest.LogCaptureFixture) -> None:
    right = family("llama")
    wrong = Elsewhere(right.config).eval()
    wrong.load_state_dict(right.state_dict())
    expected, _ = generator(right).generate(asked(CONTEXTS))
    found, _ = generator(wrong).generate(asked(CONTEXTS))
    assert found == expected
    assert "a plain pass finds token" in caplog.text


def test_wave_of_answers_is_as_large_as_memory_allows() -> None:
    needs = [10, 100, 40, 90, 60]
    assert wave_of(needs, Room(64, 10**9, 1), 8) == ([1, 3, 4, 2, 0], 5)
    assert wave_of(needs, Room(64, 2 * 100 * 8, 1), 8) == ([1, 3, 4], 2)
    assert wave_of(needs, Room(2, 10**9, 1), 8) == ([1, 3, 4, 2, 0], 2)
    assert wave_of(needs, Room(64, 1, 1), 8) == ([1, 3, 4], 1)
