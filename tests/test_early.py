"""Early answers: how often they miss, which questions they ask, what is kept of them, and what finishes them later."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import evaluation_world as world
import numpy as np
import pyarrow.parquet as pq
import pytest
from evaluation_world import own_datasets_cache, write_group, write_tasks

from massive_sft.evaluation import aggregate, build, early, interim_looks, wrapping
from massive_sft.evaluation.build import PreparedBenchmarks
from massive_sft.evaluation.evaluate import EvaluationResult, Until, evaluate
from massive_sft.evaluation.gold import read_gold
from massive_sft.evaluation.protocol import ScoreCache
from massive_sft.evaluation.requests import Generation, Likelihood, Request, read_requests
from massive_sft.evaluation.responses import GenerationResponse, LikelihoodResponse, Response, read_responses
from massive_sft.evaluation.scorer import PlainScorer
from massive_sft.evaluation.tree import TreeScorer
from massive_sft.ledger.asked import early_id, full_id, is_answered
from massive_sft.ledger.storage import Folder
from massive_sft.sweep import schema

__all__ = ["own_datasets_cache"]
PROTOCOL = schema.Protocol(dtype="fp32")


@pytest.mark.parametrize("questions", [100, 500, 1319, 5000])
@pytest.mark.parametrize("changed", [0.005, 0.02, 0.04, 0.12, 0.3])
@pytest.mark.parametrize("worse", [0.5, 1.0])
def test_early_answers_miss_the_full_difference_in_less_than_one_of_twenty(
    questions: int, changed: float, worse: float
) -> None:
    draw = np.random.default_rng(0)
    differences = np.zeros(questions)
    many = round(questions * changed)
    differences[:many] = 1.0
    differences[: round(many * worse)] = -1.0
    orders = 200
    missed = dict.fromkeys((1, 2, 4), 0)
    for _ in range(orders):
        order = draw.permutation(differences)
        for points in missed:
            for share in interim_looks.SHARES:
                asked = order[: math.ceil(share * questions)]
                half = early.half_width(asked, questions)
                if half <= points / 100:
                    missed[points] += abs(asked.mean() - differences.mean()) > half + 1e-12
                    break
    assert max(missed.values()) <= 0.05 * orders


def test_questions_that_say_the_same_are_asked_as_far_apart_as_others() -> None:
    """Side by side four of a kind would count as four: 25 of 100 such scores missed by more than they said."""
    draw, missed, orders = np.random.default_rng(0), 0, 100
    for order in range(orders):
        said = [f"{order} {number % 250}" for number in range(1000)]
        asked = {"leaf": [Likelihood(number, number, 0, text, 1, "", "") for number, text in enumerate(said)]}
        answers = draw.choice([-1.0, 0.0, 1.0], 250, p=[0.1, 0.8, 0.1])
        differences = np.array([answers[doc % 250] for _, doc in interim_looks.shuffled(asked)])
        for share in interim_looks.SHARES:
            part = differences[: math.ceil(share * 1000)]
            half = early.half_width(part, 1000)
            if half <= 0.06:
                missed += abs(part.mean() - differences.mean()) > half + 1e-12
                break
    assert missed <= 0.05 * orders
    alone = {"leaf": asked["leaf"][:250]}  # questions that differ stand as they did
    assert [doc for _, doc in interim_looks.shuffled(asked) if doc < 250] == [
        doc for _, doc in interim_looks.shuffled(alone)
    ]


def test_a_sample_in_which_no_answer_changed_is_not_sure_that_none_did() -> None:
    assert early.half_width(np.zeros(60), 1000) > 0.05
    assert early.half_width(np.zeros(500), 1000) < 0.02
    assert early.half_width(np.zeros(1000), 1000) == 0.0


def test_an_estimate_is_the_base_score_plus_the_mean_difference() -> None:
    base = {number: float(number % 2) for number in range(100)}
    found = early.estimate(base, dict.fromkeys(range(0, 100, 2), 1.0))
    assert found is None  # half of them right and all of those asked better: 150 %
    found = early.estimate(base, dict.fromkeys(range(20), 1.0))
    assert found is not None and found.value == pytest.approx(1.0) and found.n == 20
    assert found.low < found.value <= found.high == 1.0
    assert early.estimate(base, {0: 1.0}) is None
    assert early.estimate({number: 10.0 * value for number, value in base.items()}, {0: 1.0, 1: 1.0}) is None


def test_a_full_score_answers_what_an_early_one_is_enough_for_and_never_the_reverse() -> None:
    full = "mmlu@5 0123456789abcdef"
    asked = early_id(full, 2.0)
    assert asked == f"{full} ±2" and full_id(asked) == full == full_id(full)
    assert is_answered(asked, [full]) and is_answered(asked, [asked]) and is_answered(asked, [early_id(full, 1.5)])
    assert not is_answered(full, [asked])
    assert not is_answered(early_id(full, 1.0), [asked])
    assert not is_answered(asked, ["mmlu@0 0123456789abcdef", "perplexity/3"])


class Answering:
    """Answers as a model that is right about every second question, or about none of what ``wrong`` says."""

    engine = "plain"

    def __init__(self, wrong: Callable[[Request], bool] = lambda request: False, last: float = math.inf):
        self.wrong, self.last, self.asked = wrong, last, list[Request]()

    def score(self, requests: Sequence[Request], tokens: Path | None = None) -> tuple[list[Response], dict[str, int]]:
        if len(self.asked) >= self.last:
            raise KeyboardInterrupt
        self.asked += requests
        return [self._answer(request) for request in requests], {}

    def _answer(self, request: Request) -> Response:
        right = request.doc % 2 == 0 and not self.wrong(request)
        if isinstance(request, Generation):
            return GenerationResponse(request.index, "red" if right else "nothing", 1, "stop")
        assert isinstance(request, Likelihood)
        return LikelihoodResponse(request.index, -1.0 - (request.choice + right) % 4, False, 1)


def prepared(root: Path, path: Path, **options: Any) -> PreparedBenchmarks:
    task = schema.Task(path=str(path), shots=(0,), **options)
    return build.prepare((task,), schema.Fewshot(), wrapping.NONE, root / "requests")


def run(
    root: Path, asked: PreparedBenchmarks, scorer: Any, points: float | None = None, weights: str = "tuned"
) -> EvaluationResult:
    until = None if points is None else Until(points, "base")
    cache = ScoreCache(Folder(root / "cache"))
    return evaluate(asked, PROTOCOL, weights, lambda: scorer, Folder(root / weights), cache, until=until)


def values(root: Path, table: dict[str, Any], weights: str = "tuned") -> dict[int, float]:
    found = pq.read_table(io.BytesIO((root / weights / "scores" / f"{table['protocol']}.parquet").read_bytes()))
    return {row["doc"]: row["value"] for row in found.to_pylist() if row["metric"] == "acc"}


def test_scoring_stops_at_the_first_look_that_is_narrow_enough(tmp_path: Path) -> None:
    asked = prepared(tmp_path, write_tasks(tmp_path, 160)["tiny_mc"])
    base = run(tmp_path, asked, Answering(), weights="base").scores["tiny_mc-0shot"]
    tuned = Answering(lambda request: request.doc % 40 == 0)
    table = run(tmp_path, asked, tuned, 15.0).scores["tiny_mc-0shot"]
    told = table["early"]
    assert (told["questions"], told["of"], told["until"], told["protocol"]) == (40, 160, 15.0, base["protocol"])
    assert told["look"] == 3 and 0 < told["half_width"] <= 15.0
    assert len({request.doc for request in tuned.asked}) == 40
    assert table["protocol"] != base["protocol"]
    own, before = values(tmp_path, table), values(tmp_path, base, "base")
    assert len(own) == 40 and len(before) == 160
    difference = np.mean([own[doc] - before[doc] for doc in own])
    entry = table["tasks"]["tiny_mc"]["acc,none"]
    assert entry["value"] == pytest.approx(base["tasks"]["tiny_mc"]["acc,none"]["value"] + difference)
    assert entry["n"] == 40 and entry["interval"][0] < entry["value"] < entry["interval"][1]
    # Another model is asked the same questions, whatever the template.
    other = Answering()
    run(tmp_path, asked, other, 15.0, "other")
    assert {request.doc for request in other.asked} == {request.doc for request in tuned.asked}


def test_a_scorer_that_died_goes_on_with_the_same_looks_and_a_full_score_asks_only_the_rest(tmp_path: Path) -> None:
    asked = prepared(tmp_path, write_tasks(tmp_path, 160)["tiny_mc"])
    run(tmp_path, asked, Answering(), weights="base")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, asked, first := Answering(last=40), 15.0)
    table = run(tmp_path, asked, second := Answering(), 15.0).scores["tiny_mc-0shot"]
    assert table["early"]["questions"] == 40
    docs = [{request.doc for request in scorer.asked} for scorer in (first, second)]
    assert not docs[0] & docs[1] and len(docs[0] | docs[1]) == 40
    full = run(tmp_path, asked, third := Answering()).scores["tiny_mc-0shot"]
    assert len({request.doc for request in third.asked}) == 120 and "early" not in full
    answered = read_responses(
        asked.benchmarks[0].requests,
        asked.benchmarks[0].requests.leaves[0],
        Folder(tmp_path / "tuned" / "responses" / full["protocol"]),
        "tuned",
    )
    assert len(answered[1]) == 640
    straight = run(tmp_path, asked, Answering(), weights="straight").scores["tiny_mc-0shot"]
    assert full == straight
    assert not list((tmp_path / "tuned" / "responses").glob("*.looks"))


def test_nothing_is_asked_again_where_a_scorer_died_as_it_took_away_the_looks(tmp_path: Path) -> None:
    asked = prepared(tmp_path, write_tasks(tmp_path, 64)["tiny_mc"])
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, asked, Answering(last=4 * 32), 5.0)
    (looks,) = (tmp_path / "tuned" / "responses").glob("*.looks")
    shutil.copytree(looks, tmp_path / "kept")
    table = run(tmp_path, asked, Answering(), 5.0).scores["tiny_mc-0shot"]
    assert not looks.exists()
    shutil.copytree(tmp_path / "kept", looks)  # without the last one, as if it had died in between
    shutil.rmtree(tmp_path / "cache")
    again = Answering()
    assert run(tmp_path, asked, again, 5.0).scores["tiny_mc-0shot"] == table
    assert not again.asked and not looks.exists()


def test_all_questions_are_asked_while_the_base_model_is_not_scored_and_a_full_score_is_taken(tmp_path: Path) -> None:
    asked = prepared(tmp_path, write_tasks(tmp_path, 64)["tiny_mc"])
    table = run(tmp_path, asked, Answering(), 50.0).scores["tiny_mc-0shot"]
    assert "early" not in table and table["tasks"]["tiny_mc"]["acc,none"]["n"] == 64
    run(tmp_path, asked, Answering(), weights="base")
    again = Answering()
    assert run(tmp_path, asked, again, 50.0).scores["tiny_mc-0shot"] == table and not again.asked


def test_generated_answers_and_groups_stop_early_and_the_parts_that_are_wider_have_no_score(tmp_path: Path) -> None:
    generated = prepared(tmp_path, write_tasks(tmp_path / "gen", 200)["tiny_gen"])
    run(tmp_path, generated, Answering(), weights="base")
    assert run(tmp_path, generated, Answering(), 20.0).scores["tiny_gen-0shot"]["early"]["questions"] < 200
    for by_size, is_early in (
        (True, True),
        (False, False),
    ):  # a mean of parts of different sizes is no mean of questions
        root = tmp_path / f"group-{by_size}"
        group = prepared(root, write_group(root, by_size))
        assert aggregate.metrics_without_mean(group.benchmarks[0]) == (() if by_size else ("both/acc",))
        run(root, group, Answering(), weights="base")
        table = run(root, group, Answering(), 70.0).scores["group-0shot"]
        assert ("early" in table) is is_early
        if is_early:
            assert table["groups"]["both"]["acc,none"]["value"] is not None
            assert any(part["acc,none"]["value"] is None for part in table["tasks"].values())


def test_what_is_no_mean_of_questions_is_scored_in_full(tmp_path: Path) -> None:
    asked = prepared(tmp_path, write_tasks(tmp_path)["tiny_bpb"])
    odd = aggregate.metrics_without_mean(asked.benchmarks[0])
    assert odd == ("tiny_bpb/bits_per_byte", "tiny_bpb/word_perplexity")
    model, tokenizer = world.llama(), world.tokenizer()
    run(tmp_path, asked, PlainScorer(model, tokenizer), weights="base")
    table = run(tmp_path, asked, PlainScorer(model, tokenizer), 99.0).scores["tiny_bpb-0shot"]
    assert "early" not in table and table["tasks"]["tiny_bpb"]["bits_per_byte,none"]["n"] == 5


def test_a_group_whose_parts_count_alike_is_scored_in_full_where_the_base_is_wrong_about_all(tmp_path: Path) -> None:
    """Its score is then that of a mean of questions too, by chance: 0."""
    asked = prepared(tmp_path, write_group(tmp_path, False))

    class AtChance(Answering):
        def __init__(self, right: Callable[[int], bool]):
            super().__init__()
            self.right = right

        def _answer(self, request: Request) -> Response:
            picked = golds[request.doc_hash] + (not self.right(request.doc))
            return LikelihoodResponse(request.index, -1.0 - (request.choice - picked) % 4, False, 1)

    golds: dict[str, int] = {}
    for leaf in asked.benchmarks[0].requests.leaves:
        answers = read_gold(asked.benchmarks[0].requests, leaf.name)
        for request in read_requests(asked.benchmarks[0].requests, leaf):
            assert isinstance(request, Likelihood)
            if request.continuation.strip() == answers[request.doc].strip():
                golds[request.doc_hash] = request.choice
    base = run(tmp_path, asked, AtChance(lambda doc: False), weights="base").scores["group-0shot"]
    assert base["groups"]["both"]["acc,none"]["value"] == 0.0
    table = run(tmp_path, asked, AtChance(lambda doc: doc < 5), 99.0).scores["group-0shot"]
    assert "early" not in table and table["groups"]["both"]["acc,none"]["value"] == pytest.approx((5 / 12 + 1) / 2)


def test_the_trie_engine_answers_look_by_look_as_the_plain_one_does(tmp_path: Path) -> None:
    asked = prepared(tmp_path, write_tasks(tmp_path, 60)["tiny_mc"])
    model, tokenizer = world.llama(), world.tokenizer()
    tables = {}
    for kind in (PlainScorer, TreeScorer):
        protocol, root = PROTOCOL.model_copy(update={"engine": kind.engine}), tmp_path / kind.engine
        cache = ScoreCache(Folder(root / "cache"))
        for weights, until in (("base", None), ("tuned", Until(30.0, "base"))):
            scorer = kind(model, tokenizer)
            done = evaluate(asked, protocol, weights, lambda s=scorer: s, Folder(root / weights), cache, until=until)
            tables[kind.engine, weights] = done.scores["tiny_mc-0shot"]
        own, base = tables[kind.engine, "tuned"], tables[kind.engine, "base"]
        assert own["early"]["questions"] < 60
        assert own["tasks"]["tiny_mc"]["acc,none"]["value"] == pytest.approx(
            base["tasks"]["tiny_mc"]["acc,none"]["value"]
        )
    told = [tables[kind.engine, "tuned"]["early"] for kind in (PlainScorer, TreeScorer)]
    assert told[0] | {"protocol": ""} == told[1] | {"protocol": ""}
