"""Chat templates: the end of a turn, the next header, the lead, the clock, chance, refusals."""

import pytest
from real_tokenizers import CHATS, real_tokenizer
from small_tokenizers import CHAT, small_tokenizer

from massive_sft.core.errors import InvalidInput
from massive_sft.data.chat import Chat, RenderError, end_of_turn

TURNS = "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
ASKED = [{"role": "user", "content": "a"}]


def tokenizer(template):
    made = small_tokenizer("<s> $A")
    made.chat_template = template
    return made


@pytest.mark.parametrize(
    ("template", "closing", "token", "lead"),
    [
        (CHAT, "</s>", "</s>", ""),
        (TURNS + "{{ '<|turn|>assistant\n' }}", "</s>", "</s>", ""),  # the next header, asked for or not
        ("{% for m in messages %}Q: {{ m['content'] }}{{ ' ###' }}{% endfor %}", " ###", None, "Q: "),
        ("{% for m in messages %}\nrole: {{ m['content'] }}{% endfor %}\nrole: ", "", None, ""),
        (
            "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
            "{% else %} {{ m['content'] }} </s>{% endif %}{% endfor %}",
            " </s>",
            "</s>",
            " ",
        ),
    ],
)
def test_closing_is_what_every_answer_ends_with(template, closing, token, lead):
    chat = Chat(tokenizer(template), "m")
    assert (chat.closing, chat.end_of_turn, chat.lead) == (closing, token, lead)
    assert end_of_turn(tokenizer(template)) == token


@pytest.mark.parametrize(
    ("chat", "closing", "lead"),
    [
        ("chatml", "<|im_end|>", ""),
        ("llama3_first", "<|eot_id|>", ""),
        ("llama31", "<|eot_id|>", ""),
        ("qwen3", "<|im_end|>", "<think>\n\n</think>\n\n"),
        ("gemma", "<end_of_turn>", ""),
        ("mistral", "</s>", " "),
    ],
)
def test_closing_of_templates_as_real_models_have_them(chat, closing, lead):
    found = Chat(real_tokenizer("llama2", chat), chat)
    assert (found.closing, found.end_of_turn, found.lead) == (closing, closing, lead)
    assert found.reads_the_clock == ("strftime_now" in CHATS[chat])


def test_no_end_of_turn_without_a_template_or_when_it_refuses_all():
    assert end_of_turn(small_tokenizer()) is None
    assert end_of_turn(tokenizer("{{ raise_exception('never') }}")) is None


def test_clock_is_frozen_and_told():
    chat = Chat(tokenizer("{{ strftime_now('%d %b %Y %H:%M:%S') }} " + CHAT), "m")
    assert chat.render(ASKED, True).startswith("26 Jul 2024 00:00:00 ") and chat.reads_the_clock
    assert not Chat(tokenizer(CHAT), "m").reads_the_clock
    defaulted = "{% if not date_string is defined %}{% set date_string = strftime_now('%Y') %}{% endif %}"
    assert Chat(tokenizer(defaulted + "{{ date_string }}" + CHAT), "m").reads_the_clock


@pytest.mark.parametrize(
    ("template", "rule"),
    [
        (None, "chat needs a tokenizer with one chat template of its own"),
        ("{% for m in messages %}", "is no valid Jinja"),
        (CHAT + "{{ range(99999) | random }}", "yields another text each time"),
        (CHAT + "{{ lipsum() }}", "yields another text each time"),
    ],
)
def test_template_that_cannot_be_used_is_refused(template, rule):
    with pytest.raises(InvalidInput, match=f"here: .*{rule}"):
        Chat(tokenizer(template), "here")


@pytest.mark.parametrize(
    ("template", "rule"),
    [
        ("{{ raise_exception('no system role') }}", "is refused by the chat template: no system role"),
        ("{{ messages[0].content + 1 }}", "is refused by the chat template: "),
        ("{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}", "drops .* the system"),
        (CHAT.replace("m['content']", "m['content'] | upper"), "changes the system message"),
    ],
)
def test_conversation_that_the_template_refuses_or_drops_is_refused(template, rule):
    with pytest.raises(RenderError, match=rule):
        Chat(tokenizer(template), "m").render([{"role": "system", "content": "brief"}, *ASKED], True)
