"""Text: one BOS, a trained EOS, the mask by characters, truncation, chat templates, special tokens in data."""

import json

import numpy as np
import pytest
from real_tokenizers import real_tokenizer
from small_tokenizers import CHAT, SPECIAL, small_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from massive_sft.core.errors import InvalidInput
from massive_sft.data.encoding import RowEncoder, special_tokens, truncate
from massive_sft.data.findings import Findings
from massive_sft.data.rows import Row
from massive_sft.models.tokenizer import load_tokenizer
from massive_sft.sweep.schema import Model, Setting, TemplateText

BOS, EOS, PAD, TURN = range(len(SPECIAL))


def setting(**fields):
    return Setting(method="full", lr=1e-5, batch=1, **fields)


def row(*turns, system=None):
    return Row(0, tuple(turns), system, "d.jsonl", 1)


def encode(tokenizer, *turns, system=None, **fields):
    findings = Findings()
    samples = RowEncoder(tokenizer, setting(**fields)).encode([row(*turns, system=system)], "d", findings)
    findings.raise_if_any()
    return samples[0]


def texts(tokenizer, sample):
    """Return (whole text, [trained runs]) of a sample, special tokens included."""
    runs, run = [], []
    for token, trained in zip([*sample.tokens, 0], [*sample.trainable, False], strict=True):
        if trained:
            run.append(int(token))
        elif run:
            runs.append(tokenizer.decode(run))
            run = []
    return tokenizer.decode(sample.tokens.tolist()), runs


# Beginning and end


@pytest.mark.parametrize(
    ("tokenizer", "begins"),
    [
        (small_tokenizer("<s> $A"), True),
        (small_tokenizer("<s> $A </s>"), True),
        (small_tokenizer("<s> <s> $A"), True),
        (small_tokenizer(None), False),
        (small_tokenizer("$A </s>", bos=False), False),
    ],
)
def test_encoder_begins_as_the_tokenizer_does_and_ends_with_one_eos(tokenizer, begins):
    sample = encode(tokenizer, ("Where?", "Paris"))
    dressed = tokenizer("a")["input_ids"]
    assert sample.tokens.tolist().count(BOS) == dressed.count(BOS)
    assert (sample.tokens[0] == BOS) == begins
    assert sample.tokens.tolist().count(EOS) == 1 and sample.tokens[-1] == EOS and sample.trainable[-1]


def test_encoder_adds_no_second_bos_to_a_template_that_writes_it():
    template = TemplateText(prompt="<s>Q: {prompt} A:")
    for tokenizer in (small_tokenizer("<s> $A"), small_tokenizer(None)):
        sample = encode(tokenizer, ("Where?", " Paris"), template=template)
        assert sample.tokens.tolist().count(BOS) == 1 and sample.head == 1


def test_encoder_trains_eos_also_when_it_is_the_padding_token():
    sample = encode(small_tokenizer("<s> $A", pad_token="</s>"), ("Where?", "Paris"))
    assert sample.tokens[-1] == EOS and sample.trainable[-1]


def test_encoder_ignores_truncation_and_padding_that_a_tokenizer_file_brings():
    tokenizer = small_tokenizer("<s> $A")
    expected = encode(tokenizer, ("Where? " * 9, "Paris")).tokens
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    assert np.array_equal(encode(tokenizer, ("Where? " * 9, "Paris")).tokens, expected)


# Mask


def test_paper_template_trains_the_completion_the_space_before_it_and_eos_alone():
    tokenizer = small_tokenizer("<s> $A")
    whole, trained = texts(tokenizer, encode(tokenizer, ("Where?", "In\nParis")))
    assert whole == "<s>###Question: Where?\n###Answer: In\nParis</s>"
    assert trained == [" In\nParis</s>"]


def test_token_that_straddles_the_border_is_trained():
    tokenizer = small_tokenizer("<s> $A")
    sample = encode(tokenizer, ("Where?", "Paris"))
    tokens = tokenizer.convert_ids_to_tokens(sample.tokens.tolist())
    assert tokens[-2:] == ["ĠParis", "</s>"] and sample.trainable[-2:].all() and sample.trainable.sum() == 2
    assert sample.text_bytes[-2] == 6  # the token covers the template's space too


def test_white_space_at_the_border_is_trained_where_it_is_a_token_of_its_own():
    """A prompt for generation ends before it: whether it stands alone or not depends on the answer."""
    tokenizer = small_tokenizer("<s> $A")
    assert texts(tokenizer, encode(tokenizer, ("Where?", "\tParis")))[1] == [" \tParis</s>"]
    assert texts(tokenizer, encode(tokenizer, ("How many?", "42")))[1] == [" 42</s>"]
    both = encode(tokenizer, ("a? ", "42"), template="plain")
    assert texts(tokenizer, both)[1] == [" 42</s>"]


def test_token_that_only_ends_in_white_space_of_the_border_is_not_trained():
    backend = Tokenizer(models.BPE())  # as Llama-3's, it joins a newline to the punctuation before it
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=261, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    backend.train_from_iterator([":\n"] * 4, trainer)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    sample = encode(tokenizer, ("a?", "42"), template=TemplateText(prompt="{prompt} A:\n"))
    assert ":Ċ" in tokenizer.convert_ids_to_tokens(sample.tokens.tolist())
    assert texts(tokenizer, sample)[1] == ["42</s>"]


def test_mask_is_the_same_for_a_tokenizer_that_trims_spaces_off_its_offsets():
    trims, plain = small_tokenizer(trims=True), small_tokenizer()
    for completion in ("  Paris", "x \n   y", "   ", " ", "é 😀 "):
        one, other = encode(trims, ("Where? ", completion)), encode(plain, ("Where? ", completion))
        assert np.array_equal(one.tokens, other.tokens) and np.array_equal(one.trainable, other.trainable)
        assert texts(plain, one)[1][0].strip(" ").startswith((completion + "</s>").strip(" "))


def test_braces_and_format_fields_in_data_are_text():
    tokenizer = small_tokenizer("<s> $A")
    whole, trained = texts(tokenizer, encode(tokenizer, ("{prompt} {0} %s", "{x}\\1"), template="plain"))
    assert whole == "<s>{prompt} {0} %s{x}\\1</s>" and trained == ["{x}\\1</s>"]


def test_loss_on_all_trains_every_token_but_the_first():
    for tokenizer in (small_tokenizer("<s> $A"), small_tokenizer()):
        sample = encode(tokenizer, ("Where?", "Paris"), loss_on="all")
        assert not sample.trainable[0] and sample.trainable[1:].all()


def test_first_token_is_never_trained_even_without_a_prompt():
    tokenizer = small_tokenizer()
    sample = encode(tokenizer, ("", "Paris!"), template="plain")
    assert not sample.trainable[0] and sample.trainable[1:].all()


def test_every_turn_trains_its_completion_and_an_eos_of_its_own():
    tokenizer = small_tokenizer("<s> $A")
    sample = encode(
        tokenizer, ("a?", "b"), ("c?", "d"), system="Be brief.", template=TemplateText(prompt="Q {prompt}\nA\t")
    )
    whole, trained = texts(tokenizer, sample)
    assert whole == "<s>Q Be brief.\na?\nA\tb</s>\nQ c?\nA\td</s>"
    assert trained == ["\tb</s>", "\td</s>"]
    assert sample.tokens.tolist().count(EOS) == 2


def test_empty_completion_trains_the_border_and_eos_alone():
    tokenizer = small_tokenizer("<s> $A")
    assert texts(tokenizer, encode(tokenizer, ("a?", "")))[1] == [" </s>"]


@pytest.mark.parametrize("tokenizer", [small_tokenizer("<s> $A"), small_tokenizer(trims=True)])
@pytest.mark.parametrize("completion", ["Paris", "日本 é 😀", "  x  "])
def test_text_bytes_add_up_to_the_text_and_special_tokens_count_nothing(tokenizer, completion):
    sample = encode(tokenizer, ("où?", completion), ("b", "c"), template=TemplateText(prompt="{prompt}\t"))
    assert sample.text_bytes.sum() == len(f"où?\t{completion}\nb\tc".encode())
    assert sample.text_bytes[sample.trainable].sum() == len(f"\t{completion}\tc".encode())


@pytest.mark.parametrize(("form", "loss_on"), [("plain", "completion"), ("chat", "completion"), ("plain", "all")])
def test_answer_that_is_not_to_be_trained_is_masked_with_its_end(form, loss_on):
    tokenizer = chat_tokenizer()

    def runs(*untrained):
        told = Row(0, (("a", "!"), ("c", "?")), None, "d.jsonl", 1, untrained)
        encoder = RowEncoder(tokenizer, setting(template=form, loss_on=loss_on))
        return texts(tokenizer, encoder.encode([told], "d", Findings())[0])[1]

    between = "\nc" if loss_on == "all" else ""
    assert [run.removeprefix("a").removeprefix(between) for run in runs(0)][-1] == "?</s>" and "!" not in "".join(
        runs(0)
    )
    assert "".join(runs(1)).removeprefix("a") == "!</s>" + between and "?" not in "".join(runs(1))


# Truncation


def test_right_truncation_keeps_the_beginning_and_loses_eos():
    sample = encode(small_tokenizer("<s> $A"), ("a" * 10, "bcdefgh"), template="plain")
    short = truncate(sample, 14, "right")
    assert np.array_equal(short.tokens, sample.tokens[:14]) and EOS not in short.tokens
    assert short.trainable.sum() == 3 and truncate(sample, len(sample), "right") is sample
    assert not truncate(sample, 11, "right").trainable.any()


def test_left_truncation_keeps_bos_the_completion_and_eos():
    tokenizer = small_tokenizer("<s> $A")
    sample = encode(tokenizer, ("0123456789", "bcdefgh"), template="plain")
    assert texts(tokenizer, truncate(sample, 12, "left")) == ("<s>789bcdefgh</s>", ["bcdefgh</s>"])
    assert texts(tokenizer, truncate(sample, 9, "left")) == ("<s>bcdefgh</s>", ["bcdefgh</s>"])
    assert texts(tokenizer, truncate(sample, 5, "left")) == ("<s>bcde", ["bcde"])


def test_left_truncation_without_bos_never_trains_what_comes_first():
    tokenizer = small_tokenizer()
    sample = encode(tokenizer, ("0123456789", "bcdefgh"), template="plain")
    assert texts(tokenizer, truncate(sample, 8, "left")) == ("bcdefgh</s>", ["cdefgh</s>"])


def test_left_truncation_of_turns_gives_up_the_older_ones():
    tokenizer = small_tokenizer("<s> $A")
    sample = encode(tokenizer, ("a?", "b"), ("c?", "d"), template=TemplateText(prompt="{prompt}\t"))
    assert texts(tokenizer, truncate(sample, 6, "left")) == ("<s>c?\td</s>", ["\td</s>"])


def test_drop_gives_up_only_what_is_too_long():
    sample = encode(small_tokenizer("<s> $A"), ("a", "b"))
    assert truncate(sample, len(sample), "drop") is sample and truncate(sample, len(sample) - 1, "drop") is None


# Chat templates


def chat_tokenizer(template=CHAT, post="<s> $A"):
    tokenizer = small_tokenizer(post)
    tokenizer.chat_template = template
    return tokenizer


def test_chat_template_trains_each_answer_with_its_end_token_and_no_other():
    tokenizer = chat_tokenizer()
    sample = encode(tokenizer, ("a", "b"), ("a", "b"), system="s", template="chat")
    whole, trained = texts(tokenizer, sample)
    turns = "<|turn|>user\na</s>\n<|turn|>assistant\nb</s>"
    assert whole == f"<s><|turn|>system\ns</s>\n{turns}\n{turns}" and trained == ["b</s>", "b</s>"]


def test_chat_template_that_writes_bos_gets_no_second():
    tokenizer = chat_tokenizer("{{ bos_token }}" + CHAT)
    assert encode(tokenizer, ("a", "b"), template="chat").tokens.tolist().count(BOS) == 1


def test_chat_template_without_an_end_token_gets_eos():
    tokenizer = chat_tokenizer("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")
    whole, trained = texts(tokenizer, encode(tokenizer, ("a", "b"), template="chat"))
    assert whole == "<s>user: a\nassistant: b\n</s>" and trained[0].endswith("b\n</s>")


HEADED = "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}END\n{% endfor %}"
HEADED += "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
LAST = "{% if loop.last and m['role'] == 'assistant' %}</s>"


@pytest.mark.parametrize(
    ("template", "rule"),
    [
        (HEADED.replace("END", LAST + "{% endif %}"), "it ends the last with '</s>' alone"),
        (HEADED.replace("END", LAST + "{% else %}<pad>{% endif %}"), "it ends the last with '</s>' alone"),
        (
            HEADED.replace("END", "") + "{{ '' if add_generation_prompt else eos_token }}",
            "it ends the last with '\\n</s>'",
        ),
        ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}", "it has no token for it"),
    ],
)
def test_chat_template_that_ends_the_last_answer_only_is_refused_where_earlier_ones_are_trained(template, rule):
    tokenizer = chat_tokenizer(template)
    with pytest.raises(InvalidInput) as caught:
        encode(tokenizer, ("a", "b"), ("a", "b"), template="chat")
    said = str(caught.value)
    assert said.startswith(
        "d: d.jsonl:1: trains answers whose end its chat template (settings: template) does not write"
    )
    assert rule in said and "use turns: first, or weight 0 for earlier answers, or a template of your own" in said
    assert texts(tokenizer, encode(tokenizer, ("a", "b"), template="chat"))[1][0].endswith("</s>")
    only_the_last = Row(0, (("a", "b"), ("a", "b")), None, "d.jsonl", 1, (0,))
    (sample,) = RowEncoder(tokenizer, setting(template="chat")).encode([only_the_last], "d", Findings())
    assert sample.trainable[-1] and sample.tokens[-1] == EOS


def test_token_over_the_border_of_a_text_template_is_noted_unless_it_is_white_space_or_not_trained():
    tokenizer = real_tokenizer("smollm2")
    for form, answer, joined in (
        (TemplateText(prompt="{prompt}\nanswer"), "s", None),
        (TemplateText(prompt="Q: {prompt}\n##"), "# a", "###"),
        (TemplateText(prompt="Q: {prompt}\n## "), "# a", None),
        ("plain", "ris", " Paris"),
        ("paper", "ris", None),
    ):
        assert encode(tokenizer, ("the Pa", answer), template=form).joined == joined, form
    rows = [Row(0, (("Pa", "ris"), ("a", "b")), None, "d.jsonl", 1, untrained) for untrained in ((), (0,))]
    samples = RowEncoder(tokenizer, setting(template="plain")).encode(rows, "d", Findings())
    assert [sample.joined for sample in samples] == ["Paris", None]


@pytest.mark.parametrize(
    ("template", "rule"),
    [
        (
            "{{ messages | length }}" + CHAT,
            "whose generation prompt is not how an answer begins; use a template of your own",
        ),
        (CHAT.replace("m['content']", "m['content'] | replace('b', 'B')"), "changes the completion; use a template"),
        (CHAT.replace("m['content']", "m['content'] | upper"), "drops or changes the user message"),
        ("{{ raise_exception('no system role') }}", "is refused by the chat template: no system role"),
    ],
)
def test_chat_template_that_hides_the_completion_is_refused(template, rule):
    with pytest.raises(InvalidInput, match=f"d: d.jsonl:1: .*{rule}"):
        encode(chat_tokenizer(template), ("a", "b"), template="chat")


def test_chat_without_a_chat_template_is_refused():
    with pytest.raises(InvalidInput, match=r"^template: chat needs a tokenizer with one chat template"):
        RowEncoder(small_tokenizer(), setting(template="chat"))


# Special tokens in data


@pytest.mark.parametrize("token", SPECIAL)
@pytest.mark.parametrize("place", ["prompt", "completion", "system"])
def test_special_token_text_in_data_names_row_token_and_remedy(token, place):
    said = {"prompt": "a", "completion": "b", "system": "c"}
    said[place] = f"x{token}y"
    with pytest.raises(InvalidInput) as caught:
        encode(small_tokenizer("<s> $A"), (said["prompt"], said["completion"]), system=said["system"])
    rule = f"holds the text of a special token; remove it with strip: ['{token}'], got '{token}'"
    assert str(caught.value) == f"d: d.jsonl:1: {rule}"


def test_unknown_characters_are_text_but_the_unknown_tokens_text_is_not():
    words = {token: index for index, token in enumerate(["<unk>", "</s>", "a", "b"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    sample = encode(tokenizer, ("a", "éb"), template="plain")
    assert sample.tokens.tolist() == [2, 0, 3, 1] and sample.text_bytes.tolist() == [1, 2, 1, 0]
    with pytest.raises(InvalidInput, match="special token"):
        encode(tokenizer, ("a", "<unk>"))


def test_tokens_of_a_trimmed_vocabulary_have_ids_beyond_their_number():
    words = {"<unk>": 2, "</s>": 0, "a": 1, "b": 9}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    assert encode(tokenizer, ("a", "b"), template="plain").tokens.tolist() == [1, 9, 0]
    assert np.flatnonzero(special_tokens(tokenizer)).tolist() == [0] and len(special_tokens(tokenizer)) == 10


# Tokenizer folders


def test_load_tokenizer_refuses_a_slow_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    with pytest.raises(InvalidInput, match="slow tokenizer without character offsets"):
        load_tokenizer(Model(path=str(tmp_path)))


def test_load_tokenizer_refuses_one_without_eos(tmp_path):
    small_tokenizer(eos_token=None).save_pretrained(tmp_path)
    with pytest.raises(InvalidInput, match="without an end-of-sequence token"):
        load_tokenizer(Model(path=str(tmp_path)))


def test_load_tokenizer_gives_what_was_saved(tmp_path):
    small_tokenizer("<s> $A").save_pretrained(tmp_path)
    loaded = load_tokenizer(Model(path=str(tmp_path)))
    assert (
        encode(loaded, ("Where?", "Paris")).tokens.tolist()
        == encode(small_tokenizer("<s> $A"), ("Where?", "Paris")).tokens.tolist()
    )
