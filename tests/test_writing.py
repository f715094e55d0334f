"""The text of an answer: what stands before it, and what ends it."""

from pathlib import Path

import pytest
import yaml
from evaluation_world import own_datasets_cache, write_tasks
from small_tokenizers import CHAT, small_tokenizer
from transformers import PreTrainedTokenizerFast

from massive_sft.evaluation import build, wrapping
from massive_sft.evaluation import requests as sets
from massive_sft.evaluation.writing import Endings, Prompt, Writing
from massive_sft.sweep import schema

__all__ = ["own_datasets_cache"]
SPACED = (  # as Mistral's: a space between the prompt and an answer, which it does not write for a prompt
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
HEADED = "{% for m in messages %}<|head|>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"


def chatty(template: str, special: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer with a chat template, to which ``<|head|>`` is a special token, or an added one that is text."""
    made = small_tokenizer("<s> $A")
    made.add_tokens(["<|head|>"], special_tokens=special)
    made.chat_template = template
    return made


def write(tokenizer: PreTrainedTokenizerFast, text: str, until: tuple[str, ...] = ()) -> tuple[str, str | None]:
    """Return the text and the end of what a model answers that writes ``text`` after a chat's prompt."""
    wrap = wrapping.chat(tokenizer)
    prompt = Prompt([1, 2], wrap.lead, (*until, *wrap.stops), 30)
    writing = Writing(prompt, Endings(tokenizer, [tokenizer.eos_token_id]))
    for token in tokenizer.encode(text, add_special_tokens=False):
        if writing.finish is None:
            writing.take(token)
    return writing.answer().text, writing.finish


@pytest.mark.parametrize("special", [True, False])
def test_header_that_a_chat_template_has_a_model_write_is_no_part_of_its_answer(special: bool) -> None:
    headed = chatty(HEADED, special)
    lead = "<|head|>assistant\n"
    assert wrapping.chat(headed).lead == lead
    assert write(headed, f"{lead}Paris\nmore</s>") == ("Paris\nmore", "eos")
    assert write(headed, f"{lead}Paris\nmore</s>", ("\n",)) == ("Paris", "stop")
    assert write(headed, "assistant\nParis</s>") == ("assistant\nParis", "eos"), "the header was not written"
    assert write(headed, "assist</s>") == ("assist", "eos")


def test_requests_with_a_special_token_before_the_answer_are_others_than_those_without(tmp_path: Path) -> None:
    paths = write_tasks(tmp_path)

    def built(name: str, tokenizer: PreTrainedTokenizerFast) -> sets.RequestSet:
        task = schema.Task(path=str(paths[name]), shots=(0,))
        return build.build(task, 0, schema.Fewshot(), wrapping.chat(tokenizer), tmp_path / "requests")

    special, text = built("tiny_gen", chatty(HEADED)), built("tiny_gen", chatty(HEADED, special=False))
    assert special.leaves == text.leaves
    assert special.id != text.id
    assert sets.read_set(special.folder).identity() == special.identity()
    assert built("tiny_mc", chatty(HEADED)).id == built("tiny_mc", chatty(HEADED, special=False)).id
    assert not built("tiny_gen", chatty(CHAT)).marked_lead


def test_answer_that_the_prompt_begins_has_no_lead(tmp_path: Path) -> None:
    """``gen_prefix``: the lead stands before it, in the prompt. What the model writes first is of the answer."""
    path = write_tasks(tmp_path)["tiny_gen"]

    def first(**begun: str) -> sets.Generation:
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | begun))
        task = schema.Task(path=str(path), shots=(0,))
        asked = build.build(task, 0, schema.Fewshot(), wrapping.chat(chatty(SPACED)), tmp_path / "requests")
        request = sets.read_requests(asked, asked.leaves[0])[0]
        assert isinstance(request, sets.Generation)
        return request

    assert (first().lead, first().context[-8:]) == (" ", " [/INST]")
    begun = first(gen_prefix="def f():\n")
    assert (begun.lead, begun.context[-18:]) == ("", " [/INST] def f():\n")
