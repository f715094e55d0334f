"""Judges: calls are answered whatever an endpoint does, verdicts are kept, and scores are what they say."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judge_server import Answer, JudgeServer, error, judge_server, rating, says

from massive_sft.core.errors import Interrupted, InvalidInput
from massive_sft.judging import ratings, win_rate
from massive_sft.judging.endpoint import Endpoint, Reply
from massive_sft.judging.errors import BudgetSpent, JudgeUnavailable, TooManyFailures
from massive_sft.judging.judged import Prepared, judge, prepare
from massive_sft.judging.length_control import length_controlled, read_gamed
from massive_sft.judging.prompts import read_prompts
from massive_sft.judging.spending import Spending, read_spending
from massive_sft.judging.verdicts import Call, Verdicts, ask_all
from massive_sft.ledger.storage import Folder
from massive_sft.sweep.schema import Judge, JudgedBenchmark, Judging

KEY = "canary-5e2f9a"
ASKED = [{"role": "user", "content": "How good is it?"}]


@pytest.fixture(scope="module")
def shared_server() -> Iterator[JudgeServer]:
    with judge_server() as server:
        yield server


@pytest.fixture
def server(shared_server: JudgeServer) -> JudgeServer:
    """The module's server as if it were new."""
    url = shared_server.url
    shared_server.__dict__.update(vars(JudgeServer(url, lambda number, body: rating(body))))
    return shared_server


def declared(server: JudgeServer, **fields: Any) -> Judge:
    return Judge(**({"name": "judge-1", "endpoint": server.url} | fields))


def reply_of(text: str, top: dict[str, float] | None = None) -> Reply:
    return Reply(text, None, top, 1, 1, "stop", 1)


def endpoint(server: JudgeServer, **fields: Any) -> Endpoint:
    return Endpoint(declared(server, **fields), first_wait_s=0.001)


def test_call_is_tried_until_it_is_answered(server: JudgeServer) -> None:
    """A rate limit, an overload, a cut stream, a timeout, no JSON and a changed form stand before the answer."""
    troubles = [
        error(429, "slow down", Retry_After="0"),
        error(503, "overloaded"),
        Answer(says("[[5]]").body, cut=True),
        Answer(says("[[5]]").body, late=1.5),
        Answer(b"<html>bad gateway</html>"),
        Answer({"model": "judge-1", "output": [{"text": "[[5]]"}]}),
    ]
    server.answer = lambda number, body: troubles[number - 1] if number <= len(troubles) else says("[[7]]")
    reply = endpoint(server, timeout=1).ask(ASKED, 99)
    assert (reply.text, reply.tries, reply.input_tokens, reply.output_tokens) == ("[[7]]", 7, 100, 10)
    sent = server.bodies[-1]
    assert sent == {"model": "judge-1", "messages": ASKED, "max_tokens": 99, "temperature": 0}


def test_endpoint_that_asks_for_no_wait_is_given_more_time_with_every_try(server: JudgeServer) -> None:
    server.answer = lambda number, body: error(429, "slow down", Retry_After="0") if number < 3 else says("[[7]]")
    began = time.monotonic()
    assert Endpoint(declared(server), first_wait_s=0.1).ask(ASKED, 9).tries == 3
    assert time.monotonic() - began >= 0.05 + 0.1


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (says("[[5]]", model="judge-2"), "answers as another model.*'judge-2'"),
        (error(401, f"Incorrect API key provided: {KEY}"), r"HTTP 401: .*\*\*\*"),
        (error(429, "You exceeded your quota", code="insufficient_quota"), "insufficient_quota"),
        (error(429, "come back", Retry_After="86400"), "asks to wait 86,400 s"),
        (error(500, "no"), "does not answer after 8 tries: HTTP 500: no"),
    ],
)
def test_judge_that_cannot_be_asked_is_told_without_its_key(
    answer: Answer, told: str, server: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.answer = lambda number, body: answer
    with pytest.raises(JudgeUnavailable, match=told) as raised:
        endpoint(server, key="JUDGE_KEY").ask(ASKED, 9)
    assert KEY not in str(raised.value) and set(server.keys) == {f"Bearer {KEY}"}
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(JudgeUnavailable, match="JUDGE_KEY, which holds its key, is not set"):
        endpoint(server, key="JUDGE_KEY")


def test_wait_that_one_call_is_told_holds_for_all_and_ends_with_the_run(server: JudgeServer) -> None:
    server.answer = lambda number, body: error(429, "slow down", Retry_After="60")
    stopped = iter([False, True])
    asked = Endpoint(declared(server), stop=lambda: next(stopped, True))
    with pytest.raises(Interrupted):
        asked.ask(ASKED, 9)
    with pytest.raises(Interrupted):
        asked.ask(ASKED, 9)
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Good. Rating: [[8]]", 8.0),
        ("[[7.5]] and then [[2]]", 7.5),
        ("Rating: [6]", 6.0),
        ("[[11]]", None),
        ("8 out of 10", None),
        ("", None),
    ],
)
def test_rating_is_read_as_the_published_code_reads_it(text: str, verdict: float | None) -> None:
    assert ratings.parse(reply_of(text)) == verdict


@pytest.mark.parametrize(
    ("text", "verdict"), [("m", 0.0), (" M\n", 1.0), ('"M".', 1.0), ("Both", None), ("m or M", None), ("", None)]
)
def test_preference_is_a_name_alone(text: str, verdict: float | None) -> None:
    assert win_rate.parse(reply_of(text)) == verdict


def test_preference_by_log_probabilities_is_the_share_of_the_second_name() -> None:
    top = {"m": math.log(0.2), "M": math.log(0.6), "Both": math.log(0.2)}
    assert win_rate.parse(reply_of("Both", top)) == pytest.approx(0.75)
    assert win_rate.parse(reply_of("m", {"Both": -0.1})) is None
    assert win_rate.parse(reply_of("m", {"m": -0.1})) == 0.0


def test_verdicts_are_kept_call_by_call_and_asked_once(server: JudgeServer, tmp_path: Path) -> None:
    calls = [Call("", f"question {n % 6}", 9) for n in range(8)]  # two are asked twice
    kept, spending = Verdicts(Folder(tmp_path), "judge-1"), Spending(Folder(tmp_path / "spent"))
    server.answer = lambda number, body: error(401, "no") if number == 4 else rating(body)
    with pytest.raises(JudgeUnavailable):
        ask_all(calls, endpoint(server, concurrency=1), kept, spending, ratings.parse)
    server.answer = lambda number, body: Answer(rating(body).body, late=0.05)
    replies, asked = ask_all(calls, endpoint(server, concurrency=3), kept, spending, ratings.parse)
    assert (asked.asked, asked.found) == (3, 3) and len(server.bodies) == 7 and 1 < server.most_at_once <= 3
    again, asked = ask_all(calls, endpoint(server), kept, spending, ratings.parse)
    assert again == replies and asked.asked == 0
    (first,) = tmp_path.glob(f"*/{calls[0].id[:2]}/{calls[0].id}.json")
    first.write_bytes(first.read_bytes().replace(b"[[", b"[[1"))
    _, asked = ask_all(calls, endpoint(server), kept, spending, ratings.parse)
    assert asked.asked == 1


def test_budget_is_one_for_all_processes_and_no_call_is_made_beyond_it(server: JudgeServer, tmp_path: Path) -> None:
    priced = {"price": {"input": 1000.0, "output": 10_000.0}}  # a call of the server's costs 0.2
    kept, place = Verdicts(Folder(tmp_path), "judge-1"), Folder(tmp_path / "spent")
    calls = [Call("", f"question {n} {'?' * 300}", 10) for n in range(9)]
    ask_all(calls[:2], endpoint(server, **priced), kept, Spending(place), ratings.parse)
    assert read_spending(place) == pytest.approx(0.4)
    with pytest.raises(BudgetSpent, match=r"evaluation\.judging\.budget \(1\)"):
        ask_all(calls[2:], endpoint(server, **priced), kept, Spending(place, budget=1.0), ratings.parse)
    assert 0.6 <= read_spending(place) <= 1.0 and len(server.bodies) < 9


@pytest.mark.parametrize(
    ("answer", "calls", "told"),
    [
        (says("M"), 1, "gives no log-probabilities"),
        (says("M", model="judge-2", top={"M": 0.0}), 1, "answers as another model"),
        (Answer({"usage": {"prompt_tokens": 100, "completion_tokens": 10}}), 8, "no chat completion"),
    ],
    ids=["no logprobs", "another model", "no completion"],
)
def test_answers_that_cannot_be_used_are_paid_and_counted(
    answer: Answer, calls: int, told: str, server: JudgeServer, tmp_path: Path
) -> None:
    priced = {"price": {"input": 1000.0, "output": 10_000.0}}  # a call of the server's costs 0.2
    server.answer = lambda number, body: answer
    kept, place = Verdicts(Folder(tmp_path), "judge-1"), Folder(tmp_path / "spent")
    with pytest.raises(JudgeUnavailable, match=told):
        ask_all([Call("", "m or M?", 1, True)], endpoint(server, **priced), kept, Spending(place), ratings.parse)
    assert len(server.bodies) == calls
    assert read_spending(place) == pytest.approx(0.2 * calls)


def write_lines(path: Path, entries: list[Any]) -> str:
    path.write_text("\n".join(map(json.dumps, entries)))
    return str(path)


MT_QUESTIONS = [
    {"question_id": 81 + 10 * n, "category": category, "turns": [f"first {n}", f"second {n}"]}
    for n, category in enumerate(["writing", "writing", "math", "math"])
]
ANSWERS = [["own one", "own two"]] * 4


def mt_bench(tmp_path: Path, **fields: Any) -> Prepared:
    questions = [
        {**entry, "question_id": number} for entry, number in zip(MT_QUESTIONS, (81, 82, 111, 112), strict=True)
    ]
    references = [{"question_id": n, "choices": [{"turns": ["ref one", "ref two"]}]} for n in (111, 112)]
    fields = {"references": write_lines(tmp_path / "references.jsonl", references)} | fields
    path = write_lines(tmp_path / "questions.jsonl", questions)
    return prepare(JudgedBenchmark(kind="mt_bench", questions=path, **fields), "here")


def judging(server: JudgeServer, *names: str, **fields: Any) -> Judging:
    judges = tuple(declared(server, name=name) for name in names or ("judge-1",))
    return Judging(judges=judges, benchmarks=(JudgedBenchmark(kind="mt_bench", questions="q"),), **fields)


def test_mt_bench_rates_both_turns_by_category_and_bounds_what_got_no_rating(
    server: JudgeServer, tmp_path: Path
) -> None:
    def answer(number: int, body: dict[str, Any]) -> Answer:
        asked = body["messages"][-1]["content"]
        if "second 0" in asked:
            return says(None, refusal="I cannot judge that")
        return says(f"[[{9 if 'ref one' in asked else 4}]]")

    server.answer = answer
    prepared = mt_bench(tmp_path)
    outcome = judge(prepared, ANSWERS, judging(server, max_failures=0.2), Folder(tmp_path), lambda: False)
    group = outcome.table["groups"]["mtbench"]
    assert {name: entry["value"] for name, entry in group.items()} == {
        "judge_rating,none": 6.5,
        "judge_rating_turn_1,none": 6.5,
        "judge_rating_turn_2,none": pytest.approx(22 / 3),
        "judge_rating_without_wrong_references,none": pytest.approx(17 / 3),
        "without_verdict,none": 1.0,
    }
    low, high = group["judge_rating,none"]["interval"]
    assert low < 3 and 9 < high <= 10 and "worst" in group["judge_rating,none"]["method"]
    tasks = outcome.table["tasks"]
    assert tasks["mtbench-math"]["judge_rating,none"] | {"interval": 0} == {
        "value": 9.0, "stderr": 0.0, "interval": 0, "method": "normal", "n": 2, "higher_is_better": True,
    }  # fmt: skip
    assert outcome.table["provenance"]["wrong_references"] == [111]
    assert outcome.samples.num_rows == 4
    with pytest.raises(TooManyFailures, match=r"1 of 8 answers hold no verdict.*I cannot judge that"):
        judge(prepared, ANSWERS, judging(server), Folder(tmp_path), lambda: False)


def test_two_judges_are_shown_with_how_far_they_agree(server: JudgeServer, tmp_path: Path) -> None:
    def answer(number: int, body: dict[str, Any]) -> Answer:
        low = "second" in body["messages"][-1]["content"]
        return says(f"[[{(3 if low else 8) + (body['model'] == 'judge-2') * (3 if low else 1)}]]", body["model"])

    server.answer = answer
    outcome = judge(mt_bench(tmp_path), ANSWERS, judging(server, "judge-1", "judge-2"), Folder(tmp_path), lambda: False)
    group = outcome.table["groups"]["mtbench"]
    assert group["judge_rating,none"]["value"] == 5.5 and group["judge_rating,judge-2"]["value"] == 7.5
    found = {name: group[f"{name},judge-2"]["value"] for name in ("agreement", "mean_difference", "correlation")}
    assert found == {"agreement": 0.5, "mean_difference": 2.0, "correlation": pytest.approx(1.0)}


def test_win_rate_asks_both_orders_so_that_a_judge_of_places_prefers_nobody(
    server: JudgeServer, tmp_path: Path
) -> None:
    asked = [{"instruction": f"do {n}"} for n in range(6)]
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    (tmp_path / "base.json").write_text(json.dumps([{**entry, "output": "theirs"} for entry in asked]))
    paths = {"questions": str(tmp_path / "asked.json"), "baseline": str(tmp_path / "base.json")}
    prepared = prepare(JudgedBenchmark(kind="win_rate", **paths), "here")
    answers = [["mine" * (n + 1)] for n in range(6)]
    server.answer = lambda number, body: says("m")
    table = judge(prepared, answers, judging(server), Folder(tmp_path / "a"), lambda: False).table
    assert table["tasks"]["alpaca_eval_v2"]["win_rate,none"]["value"] == 0.5

    def prefers_mine(number: int, body: dict[str, Any]) -> Answer:
        text = body["messages"][-1]["content"]
        return says("M" if text.index("theirs") < text.index("mine") else "m")

    server.answer = prefers_mine
    table = judge(prepared, answers, judging(server), Folder(tmp_path / "b"), lambda: False).table
    scores = table["tasks"]["alpaca_eval_v2"]
    assert scores["win_rate,none"]["value"] == 1.0 and scores["lc_win_rate,none"]["value"] > 0.5
    assert scores["mean_characters,none"]["value"] == 14.0
    (tmp_path / "base.json").write_text(json.dumps([{"instruction": "else", "output": "theirs"}]))
    with pytest.raises(InvalidInput, match="must answer the instructions of"):
        prepare(JudgedBenchmark(kind="win_rate", **paths), "here")


def test_length_controlled_win_rate_is_that_of_the_reference_package(tmp_path: Path) -> None:
    """Values are those of alpaca-eval 0.6.6's ``get_length_controlled_winrate`` on the same annotations."""
    draw = np.random.default_rng(1)
    hard = draw.normal(0, 1, 200).round(6)
    base = draw.integers(200, 3000, 200)
    own = np.maximum(1, (base * draw.lognormal(0.3, 0.5, 200)).astype(int))
    lean = -1 + 1.5 * np.tanh((own - base) / (own - base).std()) + 0.6 * hard + draw.normal(0, 1.2, 200)
    chances = (1 / (1 + np.exp(-lean))).round(6)
    rows = ["index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline,model"]
    for model, side in (("concise", 1), ("verbose", -1)):
        lengths = draw.normal(side, 1, 200)
        gamed = 1 / (1 + np.exp(-(-1 - lengths + 0.5 * hard + draw.normal(0, 1, 200))))
        rows += [f"{n},{gamed[n]:.6f},{lengths[n]:.6f},{hard[n]},False,{model}" for n in range(200)]
    (tmp_path / "df_gamed.csv").write_text("\n".join(rows))
    pairs = [(int(theirs), int(mine)) for theirs, mine in zip(base, own, strict=True)]
    read = read_gamed(str(tmp_path / "df_gamed.csv"), "here")
    found = [length_controlled(list(chances), pairs, range(200), gamed) for gamed in (read, None)]
    assert [rate for rate, _ in found] == pytest.approx([0.3115336929, 0.3159711118], abs=2e-4)
    # The rates' standard deviation over a hundred bootstrap samples of the pairs, each with a fit of its own.
    assert [interval.stderr for _, interval in found] == pytest.approx([0.01826, 0.02055], rel=0.05)
    assert all(interval.low < rate < interval.high and interval.method == "delta" for rate, interval in found)


def test_published_files_of_prompts_take_the_place_of_our_own(tmp_path: Path) -> None:
    entry = {"system_prompt": "sys", "prompt_template": "{question} {answer} {ref_answer_1}"}
    names = ("single-v1", "single-math-v1")
    later = {"system_prompt": "sys", "prompt_template": "{question_1}{answer_1}{question_2}{answer_2}{ref_answer_1}{x}"}
    lines = [{"name": name, **entry} for name in names] + [{"name": f"{name}-multi-turn", **later} for name in names]
    path = write_lines(tmp_path / "judge_prompts.jsonl", lines)
    with pytest.raises(InvalidInput, match=r"has no \{ref_answer_2\} in its prompt single-math-v1-multi-turn"):
        mt_bench(tmp_path, prompts=path)
    lines[-1]["prompt_template"] += "{ref_answer_2}"
    own, theirs = mt_bench(tmp_path), mt_bench(tmp_path, prompts=write_lines(tmp_path / "judge_prompts.jsonl", lines))
    filled = theirs.told["rate"].fill(question="{answer}", answer="A{question}", ref_answer_1="r")
    assert filled == "{answer} A{question} r"
    plain = judging(JudgeServer("http://localhost"))
    assert own.protocol("answers", plain) != theirs.protocol("answers", plain)
    text = '<|im_start|>system\nS\n<|im_end|>\n<|im_start|>user\n{\n "a": "{instruction}" {output_1}{output_2}}\n<|im_end|>'
    (tmp_path / "clf.txt").write_text(text)
    told = read_prompts("win_rate", str(tmp_path / "clf.txt"), "here")["compare"]
    assert told.system == "S" and told.fill(instruction="i", output_1="a", output_2="b") == '{\n "a": "i" ab}'


def test_protocol_names_the_judge_and_not_where_it_is(tmp_path: Path) -> None:
    prepared = mt_bench(tmp_path)
    ids = [
        prepared.protocol("answers", judging(JudgeServer(url), name))
        for url, name in (("http://a", "judge-1"), ("http://b", "judge-1"), ("http://a", "judge-2"))
    ]
    assert ids[0] == ids[1] != ids[2]
