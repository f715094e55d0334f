"""A model that learnt a set by heart answers it exactly: scoring asks with the tokens that training taught."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from evaluation_world import own_datasets_cache, write_rows
from real_tokenizers import real_tokenizer
from small_models import small_config
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from massive_sft.data.encoding import RowEncoder
from massive_sft.data.findings import Findings
from massive_sft.data.rows import Row
from massive_sft.evaluation.build import prepare
from massive_sft.evaluation.encoding import RequestEncoder
from massive_sft.evaluation.end_tokens import ends_of
from massive_sft.evaluation.evaluate import evaluate
from massive_sft.evaluation.protocol import ScoreCache
from massive_sft.evaluation.requests import Generation, read_requests
from massive_sft.evaluation.scorer import PlainScorer
from massive_sft.evaluation.wrapping import choose_wrapping
from massive_sft.ledger.storage import Folder
from massive_sft.sweep import schema

__all__ = ["own_datasets_cache"]
ANSWERS = ["apple", "Paris is a city", "42", "7", "the name", "日本", "Hello\nthere", "- a friend"]
QUESTIONS = [f"What is answer {number}?" for number in range(len(ANSWERS))]
PROTOCOL = schema.Protocol(dtype="fp32")


def own(prompt: str) -> schema.TemplateText:
    return schema.TemplateText(prompt=prompt)


@cache
def learnt(
    kind: str, chat: str | None, template: Any, before: str = ""
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train a two-layer Llama on the eight rows until it knows them; ``before`` begins each answer."""
    tokenizer = real_tokenizer(kind, chat)
    setting = schema.Setting(method="full", lr=1e-3, batch=8, template=template)
    rows = [Row(i, ((q, before + a),), None, "d", i) for i, (q, a) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))]
    findings = Findings()
    samples = RowEncoder(tokenizer, setting).encode(rows, "d", findings)
    findings.raise_if_any()
    longest = max(map(len, samples))
    tokens, labels = torch.zeros(len(rows), longest, dtype=torch.long), torch.full((len(rows), longest), -100)
    for row, sample in enumerate(samples):
        tokens[row, : len(sample)] = torch.tensor(sample.tokens)
        labels[row, : len(sample)] = torch.where(torch.tensor(sample.trainable), tokens[row, : len(sample)], -100)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
    model = LlamaForCausalLM(small_config("llama", len(tokenizer), **sizes, max_position_embeddings=256))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(150):
        loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.01:
            break
    assert loss < 0.02
    model.generation_config.eos_token_id = None
    return model.eval(), tokenizer


def exact_matches(folder: Path, kind: str, chat: str | None, template: Any, before: str = "") -> float:
    model, tokenizer = learnt(kind, chat, template, before)
    write_rows(folder / "q.jsonl", [{"q": q, "a": before + a} for q, a in zip(QUESTIONS, ANSWERS, strict=True)])
    config = {
        "task": "heart",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "q.jsonl"}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": [], "max_gen_toks": 16, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "heart.yaml").write_text(yaml.safe_dump(config))
    task, wrapping = schema.Task(path=str(folder / "heart.yaml")), choose_wrapping(PROTOCOL, template, tokenizer)
    prepared = prepare((task,), schema.Fewshot(), wrapping, folder / "requests")
    cache = ScoreCache(Folder(folder / "cache"))
    done = evaluate(prepared, PROTOCOL, "w", lambda: PlainScorer(model, tokenizer), Folder(folder / "cell"), cache)
    assert not done.missing
    return float(done.scores["heart-0shot"]["tasks"]["heart"]["exact_match,none"]["value"])


BORDERS = [
    *((kind, "paper") for kind in ("gpt2", "llama3", "llama2", "gemma")),
    ("llama3", own("Q: {prompt}\nA:\n")),  # which has `:` and a newline as one token
    ("llama3", own("Q: {prompt}\nA:\n ")),
    ("gpt2", own("Q: {prompt}\n\nA\n\n")),  # one token alone, two before a word
    ("gpt2", own("Q: {prompt} A\t")),
    ("gpt2", own("- {prompt}\n")),  # a header that an answer begins with, too
]


@pytest.mark.parametrize(("kind", "template"), BORDERS, ids=str)
def test_answers_are_exact_whatever_the_tokenizer_does_at_the_border(tmp_path: Path, kind: str, template: Any) -> None:
    assert exact_matches(tmp_path, kind, None, template) == 1.0


def test_white_space_at_the_border_is_no_stop_and_takes_no_token_of_the_answer_s(tmp_path: Path) -> None:
    model, tokenizer = learnt("gpt2", None, "paper")
    context, lead = f"###Question: {QUESTIONS[2]}\n###Answer:", " "  # 42, which stands apart from the space
    requests = [Generation(i, i, 0, "", 1, context, (" ",), most, lead) for i, most in enumerate((1, 2, 16))]
    answers, _ = PlainScorer(model, tokenizer).score(requests)
    tokens = len(tokenizer.encode("42"))
    assert [answer.text for answer in answers] == [tokenizer.decode(tokenizer.encode("42")[:1]), "42", "42"]
    assert [answer.tokens - 1 for answer in answers] == [1, tokens, tokens + 1]


@pytest.mark.parametrize(
    ("kind", "chat"),
    [("smollm2", "chatml"), ("qwen", "qwen3"), ("llama3", "llama3_first"), ("gemma", "gemma"), ("llama2", "mistral")],
)
def test_chat_answers_end_at_the_template_s_end_of_turn_whatever_the_task_lists(
    tmp_path: Path, kind: str, chat: str
) -> None:
    assert exact_matches(tmp_path, kind, chat, "chat") == 1.0


@pytest.mark.parametrize("kind", ["smollm2", "llama3"])
def test_chat_answers_that_begin_with_white_space_are_exact(tmp_path: Path, kind: str) -> None:
    assert exact_matches(tmp_path, kind, "chatml", "chat", before="\n\n") == 1.0


def test_special_tokens_end_an_answer_where_they_are_listed_and_are_never_part_of_it(tmp_path: Path) -> None:
    model, tokenizer = learnt("llama3", "llama3_first", "chat")
    wrapping = choose_wrapping(schema.Protocol(template="chat"), "chat", tokenizer)
    assert wrapping.render is not None
    context = wrapping.render([{"role": "user", "content": QUESTIONS[1]}])
    stops = [(), ("<|eot_id|>",), (" is", "<|eot_id|>"), ("city<|eot_id|>",), ("<|eot_id|>\n", "ity<|")]
    requests = [Generation(i, i, 0, "", 1, context, until, 24) for i, until in enumerate(stops)]
    endless, *ended = PlainScorer(model, tokenizer, ends=()).score(requests)[0]
    assert endless.finish == "length" and endless.text.startswith("Paris is a city") and "<|" not in endless.text
    assert [(answer.text, answer.finish) for answer in ended] == [
        ("Paris is a city", "stop"),
        ("Paris", "stop"),
        ("Paris is a ", "stop"),
        ("Paris is a c", "stop"),
    ]


def test_prompt_ends_where_the_prompt_of_training_did() -> None:
    for kind, template in BORDERS:
        tokenizer = real_tokenizer(kind, None)
        setting = schema.Setting(method="full", lr=1e-3, batch=8, template=template)
        encoder, scoring, findings = RowEncoder(tokenizer, setting), RequestEncoder(tokenizer), Findings()
        wrapping = choose_wrapping(PROTOCOL, template, tokenizer)
        assert wrapping.render is not None
        whole = wrapping.render([{"role": "user", "content": "a?"}])
        prompt, lead = scoring.prompt(whole.rstrip(), whole[len(whole.rstrip()) :])
        for answer in ANSWERS:
            (sample,) = encoder.encode([Row(0, (("a?", answer),), None, "d", 1)], "d", findings)
            first = int(sample.trainable.argmax())
            assert sample.tokens[:first].tolist() == prompt
            written = tokenizer.decode(sample.tokens[first:-1])
            assert written.removeprefix(lead) == answer, (kind, template)
            context, continuation = scoring.pair(whole, answer, joined=bool(whole[len(whole.rstrip()) :].strip(" ")))
            assert [*context, *continuation] == sample.tokens[:-1].tolist(), (kind, template)


def test_likelihood_after_a_template_that_ends_in_a_line_is_of_the_tokens_that_training_had(tmp_path: Path) -> None:
    model, tokenizer = learnt("llama3", None, own("Q: {prompt}\nA:\n"))
    write_rows(tmp_path / "q.jsonl", [{"q": q, "a": a} for q, a in zip(QUESTIONS, ANSWERS, strict=True)])
    config = {
        "task": "choices",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "q.jsonl"}},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "choices.yaml").write_text(yaml.safe_dump(config))
    task = schema.Task(path=str(tmp_path / "choices.yaml"))
    wrapping = choose_wrapping(PROTOCOL, own("Q: {prompt}\nA:\n"), tokenizer)
    (built,) = prepare((task,), PROTOCOL.fewshot, wrapping, tmp_path / "requests").benchmarks
    requests = read_requests(built.requests, built.requests.leaves[0])
    answers = PlainScorer(model, tokenizer, ends=()).score(requests)[0]
    assert all(answer.greedy and answer.logprob > -0.1 for answer in answers)


def test_end_tokens_are_those_of_the_generation_configuration_and_eos() -> None:
    tokenizer = real_tokenizer("llama3", "llama3_first")
    config = learnt("llama3", "llama3_first", "chat")[0].generation_config
    assert ends_of(config, tokenizer) == {tokenizer.eos_token_id}
