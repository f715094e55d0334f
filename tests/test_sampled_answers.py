"""Sampled answers: drawn as the softmax says, and a function of the request alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import evaluation_world as world
import pytest
import torch
from evaluation_world import write_tasks
from scipy.stats import chisquare
from test_generate import asked, family, generator, prompts_of
from test_requests import edited
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from massive_sft.evaluation import aggregate, build, requests, slots, wrapping
from massive_sft.evaluation.build import BenchmarkRequests
from massive_sft.evaluation.gold import read_gold
from massive_sft.evaluation.requests import Generation
from massive_sft.evaluation.responses import GenerationResponse, shard_bytes, shard_key
from massive_sft.evaluation.sampled_tokens import picked
from massive_sft.evaluation.sampling import Draw, Sampling
from massive_sft.evaluation.slots import Room
from massive_sft.evaluation.writing import Endings
from massive_sft.ledger.storage import Folder
from massive_sft.models import slot_attention
from massive_sft.sweep import schema

CONTEXTS = ["Question: red?\nAnswer:", "the answer is ", "two cats \n", "seven", "no " * 20]
WARM = Sampling(temperature=0.9, seed=7)


@pytest.mark.parametrize(
    "sampling", [WARM, replace(WARM, top_k=4), replace(WARM, top_p=0.8), replace(WARM, top_k=6, top_p=0.7)]
)
def test_tokens_are_drawn_as_often_as_transformers_says(sampling: Sampling) -> None:
    logits = torch.randn(1, 9, generator=torch.Generator().manual_seed(3)) * 2
    wanted = TemperatureLogitsWarper(sampling.temperature)(None, logits)
    if sampling.top_k:
        wanted = TopKLogitsWarper(sampling.top_k)(None, wanted)
    wanted = TopPLogitsWarper(sampling.top_p)(None, wanted).softmax(dim=-1)[0]
    count = 3000
    draws = [Draw(replace(sampling, seed=sampling.seed + n % 30), n // 30) for n in range(count)]
    drawn = torch.bincount(picked(logits.expand(count, -1), draws), minlength=9)
    assert drawn[wanted == 0].sum() == 0
    likely = wanted > 0
    assert (
        chisquare(drawn[likely].numpy(), (count * wanted[likely].double() / wanted[likely].double().sum())).pvalue
        > 1e-3
    )


def sampled(count: int = 1) -> list[Generation]:
    drawn = [
        replace(request, sampling=replace(WARM, seed=100 * number + request.doc))
        for request in asked(CONTEXTS)
        for number in range(count)
    ]
    return [replace(request, index=index) for index, request in enumerate(drawn)]


def test_answers_do_not_depend_on_batches_engines_or_drafts() -> None:
    model = family("gemma2")
    listed = sampled(2)
    together, _ = generator(model).generate(listed)
    assert len({answer.text for answer in together}) == len(listed)  # other numbers, other answers
    assert [generator(model).generate([one])[0][0] for one in listed] == together
    padded = generator(model)
    padded._disproof = "slots are not asked"
    assert padded.generate(listed)[0] == together
    prompts = [
        replace(prompt, sampling=one.sampling) for prompt, one in zip(prompts_of(CONTEXTS * 2), listed, strict=True)
    ]
    endings, room = Endings(world.tokenizer(), [1]), Room(4, 2**20, 600)
    written, counts = slots.write(model, prompts, [[]] * len(prompts), endings, room)
    drafted, with_drafts = slots.write(model, prompts, [answer.made for answer in written], endings, room)
    assert [answer.made for answer in drafted] == [answer.made for answer in written]
    assert with_drafts.steps < counts.steps / 3


def test_greedy_and_sampled_answers_stand_side_by_side() -> None:
    model = family("llama")
    greedy, listed = asked(CONTEXTS), sampled()
    apart = [*generator(model).generate(greedy)[0], *generator(model).generate(listed)[0]]
    assert generator(model).generate([*greedy, *listed])[0] == apart
    assert generator(model).generate([replace(one, sampling=None) for one in listed])[0] == apart[: len(greedy)]


def test_slots_that_compute_otherwise_are_found_out_by_sampled_answers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    right = slot_attention.PASS.logits
    monkeypatch.setattr(slot_attention.PASS, "logits", lambda *call: right(*call).roll(1, dims=-1))
    one = generator(family("llama"))
    found, _ = one.generate(sampled())
    assert one.fallback is not None and "less likely" in one.fallback
    monkeypatch.undo()
    assert found == generator(family("llama")).generate(sampled())[0]


DRAWING = {
    "repeats": 4,
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": True, "temperature": 0.8, "top_k": 20},
    "filter_list": [
        {"name": "first", "filter": [{"function": "take_first"}]},
        {"name": "most", "filter": [{"function": "majority_vote"}, {"function": "take_first"}]},
    ],
}


def test_task_that_samples_asks_for_each_answer_and_is_scored_by_all_of_them(tmp_path: Path) -> None:
    task = schema.Task(path=str(edited(write_tasks(tmp_path)["tiny_gen"], **DRAWING)), shots=(0,))
    built = build.build(task, 0, schema.Fewshot(), wrapping.NONE, tmp_path / "requests")
    (leaf,) = built.leaves
    listed = [one for one in requests.read_requests(built, leaf) if isinstance(one, Generation)]
    assert len(listed) == leaf.count == 4 * leaf.documents
    assert [one.index for one in listed] == list(range(len(listed)))
    seeds = {one.sampling.seed for one in listed if one.sampling is not None}
    assert len(seeds) == len(listed)
    assert {replace(one.sampling, seed=0) for one in listed if one.sampling} == {Sampling(0.8, 0, top_k=20)}
    assert requests.read_requests(requests.read_set(built.folder), leaf) == listed

    golds = read_gold(built, leaf.name)
    answers = ["wrong"] + ["right"] * 3  # of each document: the first is wrong, the most are right
    texts = [str(golds[one.doc]) if answers[i % 4] == "right" else "nothing like it" for i, one in enumerate(listed)]
    place = Folder(tmp_path / "responses")
    said = [GenerationResponse(one.index, text, 2, "stop") for one, text in zip(listed, texts, strict=True)]
    place.put(shard_key(leaf.name, 0), shard_bytes("w", listed, list(said), {}))
    table = aggregate.aggregate(BenchmarkRequests(task, built), place, "w").table
    (scores,) = table["tasks"].values()
    values = {key: entry["value"] for key, entry in scores.items() if key.startswith("exact_match")}
    assert values == {"exact_match,first": 0.0, "exact_match,most": 1.0}
