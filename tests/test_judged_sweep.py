"""A sweep whose answers are judged, from the sweep file to the report."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from calling import call
from judge_server import Answer, JudgeServer, error, judge_server, rating, says
from small_sweep import small_sweep

import massive_sft
from massive_sft.ledger.record import Record, Status
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import make_plan
from massive_sft.search.outcomes import Reader
from massive_sft.sweep.load import load_sweep

KEY = "canary-77b1c0d4"
QUESTIONS = [
    {"question_id": 101 + n, "category": category, "turns": [f"Who is {n}?", "Say it again."]}
    for n, category in enumerate(["reasoning", "writing", "writing"])
]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with judge_server() as running:
        yield running


def judged_sweep(folder: Path, server: JudgeServer, **judging: Any) -> Path:
    """Write a sweep of one training of one epoch, of which three conversations are judged."""
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    judge = {"name": "judge-1", "endpoint": server.url, "key": "JUDGE_KEY", "timeout": 5}
    benchmark = {"kind": "mt_bench", "questions": "questions.jsonl", "max_tokens": 12}
    block = {"name": "A", "model": "all", "mixture": "one", "setting": "full", "schedule": "constant"}
    return small_sweep(
        folder,
        blocks=[block | {"horizon": 1, "snapshots": [1]}],
        evaluation={
            "protocol": {"dtype": "fp32"},
            "tasks": [],
            "judging": {"judges": [judge], "benchmarks": [benchmark]} | judging,
        },
        measures=[],
    )


def records_of(path: Path) -> dict[str, Record]:
    ledger = Ledger.open(make_plan(load_sweep(path)).root, create=False)
    return {str(record.coordinates["setting"]): record for record in ledger.records()}


def test_sweep_is_judged_resumed_and_shown_without_its_key(
    server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = judged_sweep(tmp_path, server)
    monkeypatch.delenv("JUDGE_KEY")
    code, text = call("check", path)
    assert code == 2 and "evaluation.judging.judges[0].key" in text and "'JUDGE_KEY'" in text
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.answer = lambda number, body: says("ready", model="judge-2")
    code, text = call("run", path, "--inline")
    assert code == 2 and "answers as another model" in text and "judge-2" in text
    assert not list((tmp_path / "ledger").rglob("training.json"))

    server.bodies.clear()
    trouble = error(401, f"Incorrect API key provided: {KEY}")
    server.answer = lambda number, body: rating(body) if number < 5 else trouble  # one is asked by the check
    code, text = call("run", path, "--inline")
    assert (code, KEY in text) == (1, False), text
    found = records_of(path)
    assert {record.status for record in found.values()} == {Status.PARTIAL}
    assert "HTTP 401" in found["none"].missing["mtbench-0shot"]
    server.bodies.clear()
    server.answer = lambda number, body: rating(body)
    code, text = call("run", path, "--inline")
    assert code == 0, text
    found = records_of(path)
    assert {record.status for record in found.values()} == {Status.COMPLETE}
    assert len(server.bodies) <= 1 + 12 - 3  # what was judged before stands
    assert found["full"].cost["resumed"]  # its answers were there: what they took is in no figure of this record
    (scores,) = found["full"].scores.values()
    group = scores.groups["mtbench"]
    assert group["judge_rating,none"].n == 3 and group["without_verdict,none"].value == 0
    assert set(scores.tasks) == {"mtbench-reasoning", "mtbench-writing"}
    _assert_transcript_is_whole(tmp_path, found["full"])
    _assert_search_may_look_at_it(path, found["full"])
    code, text = call("show", found["full"].cell, "--sweep", path)
    assert code == 0 and "mtbench" in text, text
    results = massive_sft.load(path)
    answers = results.answers()
    assert len(answers) == 6 and set(answers["benchmark"]) == {"mtbench-0shot"}
    assert all("Who is" in prompt for prompt in answers["prompt"])
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) > 50 and not [file for file in written if KEY.encode() in _content(file)]


def _assert_search_may_look_at_it(path: Path, record: Record) -> None:
    (wanted,) = (cell.requirements for cell in make_plan(load_sweep(path)).cells if cell.cell.id == record.cell)
    score = next(iter(record.scores.values())).groups["mtbench"]["judge_rating,none"]
    for name in ("mtbench", "mtbench-0shot"):
        outcome = Reader([name]).outcome(record, wanted)
        assert Reader([name]).problems(wanted, "objective") == [] and outcome is not None
        assert (outcome.values, outcome.errors) == ({name: score.value}, {name: score.stderr})
    (problem,) = Reader(["mtbenhc"]).problems(wanted, lambda _: "objective")
    assert "mtbench" in problem.choices


def _assert_transcript_is_whole(folder: Path, record: Record) -> None:
    (key,) = (key for key in record.files if "/verdicts/" in key)
    lines = [json.loads(line) for line in gzip.decompress((folder / "ledger" / key).read_bytes()).splitlines()]
    assert [(line["question"], line["part"]) for line in lines] == [
        (101 + n, turn) for n in range(3) for turn in (0, 1)
    ]
    assert all(line["prompt"] and line["reply"]["text"] and 1 <= line["verdict"] <= 10 for line in lines)
    assert "Say it again." in lines[1]["prompt"] and "Say it again." not in lines[0]["prompt"]


def _content(file: Path) -> bytes:
    data = file.read_bytes()
    return gzip.decompress(data) if file.suffix == ".gz" else data


def test_mistakes_in_judging_are_told_with_their_places(server: JudgeServer, tmp_path: Path) -> None:
    path = judged_sweep(tmp_path, server, budget=5.0)
    code, text = call("plan", path)
    assert code == 2 and "evaluation.judging" in text and "budget needs the price of judge-1" in text
    priced = {"name": "judge-1", "endpoint": server.url, "price": {"input": 2.5, "output": 10}, "max_tokens": 100}
    path = judged_sweep(tmp_path, server, judges=[priced], budget=0.01)
    code, text = call("plan", path)  # two turns of three questions, of two cells
    assert code == 0 and "judging: 12 calls at most" in text and "of the budget of 0.01, 0.00 are spent" in text
    assert "budget is likely too small" in text
    code, text = call("plan", path, "--json")
    cost = json.loads(text)["judging"]
    assert cost["calls"] == 12 and cost["written"] == 12 * 100 and cost["cost"] < cost["most"] < 0.03
    path = judged_sweep(tmp_path, server, benchmarks=[{"kind": "win_rate", "questions": "questions.jsonl"}])
    code, text = call("plan", path)
    assert code == 2 and "win_rate needs a baseline" in text
    path = judged_sweep(tmp_path, server, benchmarks=[{"kind": "mt_bench", "questions": "gone.jsonl"}])
    code, text = call("check", path)
    assert code == 2 and "evaluation.judging.benchmarks[0].questions: there is no such file" in text
    path = judged_sweep(tmp_path, server)
    (tmp_path / "questions.jsonl").write_text(
        json.dumps({"question_id": 1, "category": "x", "turns": ["a\ud800", "b"]})
    )
    assert call("plan", path)[0] == 0
    code, text = call("check", path)
    assert code == 2 and "benchmarks[0].questions: holds half of a character in entry 1" in text
    (tmp_path / "questions.jsonl").write_text('{"question_id": 1, "category": "math", "turns": ["one"]}')
    server.answer = lambda number, body: Answer({}, 404)
    code, text = call("check", path)
    assert code == 2 and "has 1 turns, not 2" in text and "refuses calls: HTTP 404" in text
