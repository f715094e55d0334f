"""Tokenizers and chat templates as real models have them: encode, mask, decode, preview; the prompt that scoring makes."""

from itertools import groupby

import pytest
from real_tokenizers import CHATS, NAMED, real_tokenizer

from massive_sft.core.errors import InvalidInput
from massive_sft.data.encoding import RowEncoder
from massive_sft.data.findings import Findings
from massive_sft.data.rows import Row
from massive_sft.evaluation import wrapping
from massive_sft.evaluation.encoding import RequestEncoder
from massive_sft.sweep import template
from massive_sft.sweep.schema import Setting

ANSWERS = ("Paris", "42", "apple 7 é 😀", "日本", "a city.\n\nThe name is Paris")
TEMPLATES = {"chatml", "llama3_first", "llama31", "qwen3", "gemma", "mistral", "clock"}
KINDS = sorted(NAMED)
SPACED = ("\nParis", "\n\nParis", "  Paris", " \n Paris", "\t42", "\n")
"""Answers whose beginning byte-level tokenizers join to the line end of a header."""
SPLIT = {(kind, chat) for kind in ("gpt2", "smollm2") for chat in ("llama3_first", "llama31")}
"""These split the two newlines that end the prompt of Llama-3's templates once a letter follows."""
PAIRS = [(kind, chat) for kind in KINDS for chat in sorted(TEMPLATES) if (kind, chat) not in SPLIT]
ENDS = {"chatml": "<|im_end|>", "qwen3": "<|im_end|>", "clock": "<|im_end|>", "gemma": "<end_of_turn>"}
ENDS |= {"llama3_first": "<|eot_id|>", "llama31": "<|eot_id|>"}


def encode(tokenizer, form, *turns, system=None):
    findings = Findings()
    encoder = RowEncoder(tokenizer, Setting(method="full", lr=1e-5, batch=1, template=form))
    samples = encoder.encode([Row(0, turns, system, "d.jsonl", 1)], "d", findings)
    findings.raise_if_any()
    return samples[0]


def trained(tokenizer, sample):
    """Return the text of each trained run of tokens, without the space that a decoder strips off a text."""
    runs, shown = [], ""
    for mark, run in groupby(enumerate(sample.trainable), key=lambda item: item[1]):
        decoded = tokenizer.decode(sample.tokens[: [place for place, _ in run][-1] + 1].tolist())
        if mark:
            runs.append(decoded[len(shown) :])
        shown = decoded
    return runs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["paper", "plain"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_text_template_trains_the_answer_and_eos(kind, form, answer):
    tokenizer = real_tokenizer(kind)
    sample = encode(tokenizer, form, ("What is the name? ", answer), ("Question", answer))
    assert [run.strip(" ") for run in trained(tokenizer, sample)] == [answer + tokenizer.eos_token] * 2
    begins = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id and kind in ("llama2", "llama3", "gemma")
    assert (sample.tokens[0] == tokenizer.bos_token_id) == begins and sample.head == int(begins)


@pytest.mark.parametrize("kind", KINDS)
def test_scoring_encodes_as_the_tokenizer_does_and_never_cuts(kind):
    tokenizer = real_tokenizer(kind)
    texts = [*ANSWERS, *SPACED, "What is the name? " * 50, "Paris" + tokenizer.eos_token]
    expected = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    encoder = RequestEncoder(tokenizer)
    tokenizer("a b", truncation=True, max_length=1, padding="max_length" if tokenizer.pad_token else False)
    assert [encoder.pair("", text)[1] for text in texts] == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_prompt_without_its_last_space_is_how_the_training_text_begins(kind, answer):
    tokenizer = real_tokenizer(kind)
    sample = encode(tokenizer, "paper", ("What is the name?", answer))
    prompt = template.PROMPTS["paper"].replace("{prompt}", "What is the name?").rstrip()
    tokens = RequestEncoder(tokenizer).encode(prompt)
    assert sample.tokens[: len(tokens)].tolist() == tokens
    assert not sample.trainable[: len(tokens)].any() and sample.trainable[len(tokens) :].all()


@pytest.mark.parametrize(("kind", "chat"), PAIRS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_chat_template_trains_the_answer_and_its_end_after_the_prompt_that_scoring_makes(kind, chat, answer):
    tokenizer = real_tokenizer(kind, chat)
    sample = encode(tokenizer, "chat", ("What is the name?", answer))
    (run,) = trained(tokenizer, sample)
    lead = "<think>\n\n</think>\n\n" if chat == "qwen3" else ""
    assert run.replace(" ", "") == (lead + answer).replace(" ", "") + ENDS.get(chat, tokenizer.eos_token)
    prompt = wrapping.chat(tokenizer).render([{"role": "user", "content": "What is the name?"}])
    tokens = RequestEncoder(tokenizer).encode(prompt)
    assert sample.tokens[: len(tokens)].tolist() == tokens
    assert not sample.trainable[: len(tokens)].any() and sample.trainable[len(tokens) :].all()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "llama2"])
@pytest.mark.parametrize("answer", SPACED)
def test_answer_that_begins_with_white_space_begins_behind_the_prompt_that_scoring_makes(kind, answer):
    tokenizer = real_tokenizer(kind, "chatml")
    sample = encode(tokenizer, "chat", ("What?", answer), ("And?", answer))
    prompt = wrapping.chat(tokenizer).render([{"role": "user", "content": "What?"}])
    tokens = RequestEncoder(tokenizer).encode(prompt)
    assert sample.tokens[: len(tokens)].tolist() == tokens
    assert not sample.trainable[: len(tokens)].any() and sample.trainable[len(tokens)]
    assert trained(tokenizer, sample) == [answer + "<|im_end|>"] * 2
    assert sample.joined is None and sample.text_bytes[sample.trainable].sum() == 2 * len(answer)


def test_answer_joined_to_a_header_is_noted_where_pieces_of_a_text_get_a_space_before_them():
    tokenizer = real_tokenizer("llama2", "chatml")
    assert encode(tokenizer, "chat", ("What?", "\nParis")).joined == "\n\n"
    assert encode(tokenizer, "chat", ("What?", "Paris")).joined is None


@pytest.mark.parametrize(("kind", "chat"), PAIRS)
def test_chat_template_of_several_turns_trains_every_answer_with_its_end(kind, chat):
    tokenizer = real_tokenizer(kind, chat)
    system = None if chat == "gemma" else "Be brief."
    sample = encode(
        tokenizer, "chat", ("Hello", " Hello there\n"), ("the name?", ""), ("a", "assistant"), system=system
    )
    end = ENDS.get(chat, tokenizer.eos_token)
    first, second, third = trained(tokenizer, sample)
    lead = "<think>\n\n</think>\n\n" if chat == "qwen3" else ""
    assert (first.strip().removesuffix(end).strip(), second.strip(" ")) == ("Hello there", end)
    assert third.replace(" ", "") == lead + "assistant" + end
    assert first.endswith(end) and sample.tokens.tolist().count(tokenizer.convert_tokens_to_ids(end)) >= 3


@pytest.mark.parametrize(("kind", "chat"), sorted(SPLIT))
def test_chat_template_whose_prompt_is_split_another_way_once_an_answer_follows_is_refused(kind, chat):
    with pytest.raises(InvalidInput, match=r"^template: chat does not fit this tokenizer"):
        encode(real_tokenizer(kind, chat), "chat", ("a", "b"))


def test_thought_in_the_data_is_trained_where_the_template_keeps_it_and_refused_where_it_does_not():
    tokenizer = real_tokenizer("qwen", "qwen3")
    thought = "<think>\na city\n</think>\n\nParis"
    assert trained(tokenizer, encode(tokenizer, "chat", ("What?", thought))) == [thought + "<|im_end|>"]
    with pytest.raises(InvalidInput, match="changes the completion; use turns: first, or a template of your own"):
        encode(tokenizer, "chat", ("What?", thought), ("And?", "Paris"))


@pytest.mark.parametrize(
    ("chat", "rule"),
    [
        ("gemma", "is refused by the chat template: System role not supported"),
        ("drops_system", "drops or changes the system message"),
        ("raises", "is refused by the chat template: this model does not chat"),
    ],
)
def test_chat_template_that_refuses_or_drops_the_system_message_is_told(chat, rule):
    assert chat in CHATS
    with pytest.raises(InvalidInput, match=f"d: d.jsonl:1: .*{rule}"):
        encode(real_tokenizer("llama3", chat), "chat", ("a", "b"), system="Be brief.")


def test_bos_that_the_chat_template_writes_is_there_once():
    for kind in ("llama2", "llama3", "gemma"):
        tokenizer = real_tokenizer(kind, "llama31")
        assert encode(tokenizer, "chat", ("a", "b")).tokens.tolist().count(tokenizer.bos_token_id) == 1
