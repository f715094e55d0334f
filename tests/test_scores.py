"""Scores from stored responses: equal to lm-eval's own end-to-end numbers; reruns, damage, cache, what is missing."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import evaluation_world as world
import lm_eval
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from evaluation_world import own_datasets_cache, write_group, write_rows, write_tasks
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from scorer_lm import ScorerLM

from massive_sft.evaluation import build, intervals, responses, so_far, wrapping
from massive_sft.evaluation import requests as sets
from massive_sft.evaluation.build import PreparedBenchmarks
from massive_sft.evaluation.evaluate import EvaluationResult, evaluate
from massive_sft.evaluation.protocol import ScoreCache, protocol_id
from massive_sft.evaluation.scorer import PlainScorer
from massive_sft.evaluation.so_far import ScoresSoFar
from massive_sft.evaluation.wrapping import Wrapping
from massive_sft.ledger.storage import Folder
from massive_sft.sweep import schema

__all__ = ["own_datasets_cache"]
PROTOCOL = schema.Protocol(dtype="fp32")


def prepare(
    root: Path, *paths: Path, shots: int = 0, wrap: Wrapping = wrapping.NONE, **options: Any
) -> PreparedBenchmarks:
    declared = tuple(schema.Task(path=str(path), shots=(shots,), **options) for path in paths)
    return build.prepare(declared, schema.Fewshot(), wrap, root / "requests")


def run(
    root: Path,
    prepared: PreparedBenchmarks,
    make: Callable[[], PlainScorer] | None = None,
    weights: str = "w",
    **options: Any,
) -> EvaluationResult:
    make = make or (lambda: PlainScorer(world.llama(), world.tokenizer()))
    cache = ScoreCache(Folder(root / "cache"))
    return evaluate(prepared, PROTOCOL, weights, make, Folder(root / "cell"), cache, **options)


def no_model() -> PlainScorer:
    raise RuntimeError("no model is needed here")


def lm_eval_results(lm: Any, root: Path, specs: list[Any], **options: Any) -> dict[str, Any]:
    """Return lm-eval's own results, end to end, without what it tells of this machine."""
    manager = TaskManager(include_path=str(root), include_defaults=False)
    defaults = {"bootstrap_iters": 0, "fewshot_random_seed": 1234, "log_samples": False}
    with patch("lm_eval.evaluator.add_env_info"):
        return lm_eval.simple_evaluate(model=lm, tasks=specs, task_manager=manager, **(defaults | options))


def absolute(path: Path, **fewshot: Any) -> dict[str, Any]:
    """Return a task file's configuration with absolute data files, for lm-eval alone."""
    config = load_yaml(path) | fewshot
    files = config["dataset_kwargs"]["data_files"]
    config["dataset_kwargs"] = {"data_files": {split: str(path.parent / file) for split, file in files.items()}}
    return config


def numbers(results: dict[str, Any], task: str) -> dict[str, float]:
    return {k: v for k, v in results["results"][task].items() if "," in k and "_stderr" not in k}


def values(evaluated: EvaluationResult, label: str, task: str) -> dict[str, float]:
    return {key: entry["value"] for key, entry in evaluated.scores[label]["tasks"][task].items()}


CASES = [("tiny_mc", 0), ("tiny_mc", 2), ("tiny_gen", 0), ("tiny_gen", 2), ("tiny_bpb", 0)]


@pytest.mark.parametrize(("task", "shots"), CASES)
@pytest.mark.parametrize("reference", ["own scorer", "lm-eval's backend"])
def test_scores_equal_lm_eval_end_to_end(tmp_path: Path, task: str, shots: int, reference: str) -> None:
    path = write_tasks(tmp_path)[task]
    if task == "tiny_gen":
        answer_by_the_model(path, shots)
    model, tokenizer = world.llama(), world.tokenizer()
    lm: Any = ScorerLM(PlainScorer(model, tokenizer))
    if reference != "own scorer":
        lm = HFLM(model, tokenizer=tokenizer, batch_size=4, device="cpu")
    config = absolute(path, fewshot_config={"sampler": "first_n"})
    expected = numbers(lm_eval_results(lm, tmp_path, [config], num_fewshot=shots), task)
    found = values(run(tmp_path, prepare(tmp_path, path, shots=shots)), f"{task}-{shots}shot", task)
    assert found == (expected if task != "tiny_bpb" else pytest.approx(expected, rel=1e-5))
    if task != "tiny_bpb":
        assert 0 < next(iter(found.values())) < 1


def test_filters_and_repeats_are_lm_eval_s(tmp_path: Path) -> None:
    path = write_tasks(tmp_path)["tiny_gen"]
    answer_by_the_model(path, 0)
    config = yaml.safe_load(path.read_text())
    config["repeats"] = 2
    regex = {"function": "regex", "regex_pattern": "([^-]*)"}
    config["filter_list"] = [
        {"name": "whole", "filter": [{"function": "take_first"}]},
        {"name": "cut", "filter": [regex, {"function": "majority_vote"}, {"function": "take_first"}]},
    ]
    path.write_text(yaml.safe_dump(config))
    expected = lm_eval_results(ScorerLM(PlainScorer(world.llama(), world.tokenizer())), tmp_path, [absolute(path)])
    found = values(run(tmp_path, prepare(tmp_path, path)), "tiny_gen-0shot", "tiny_gen")
    assert found == numbers(expected, "tiny_gen")
    assert set(found) == {"exact_match,whole", "exact_match,cut"}
    (file,) = (tmp_path / "cell" / "scores").glob("*.parquet")
    rows = pq.read_table(file).to_pandas().set_index(["filter", "doc"]).sort_index()
    assert rows.loc["whole", "extracted"].isna().all(), "what was written was compared as it is"
    cut = rows.loc["cut", "extracted"].dropna()
    assert len(cut) and not cut.str.contains("-").any()


def answer_by_the_model(path: Path, shots: int) -> None:
    """Make every second document's answer what the random model says, so that some are right and some are wrong."""
    rows = [json.loads(line) for line in (path.parent / "data" / "mc.jsonl").read_text().splitlines()]
    benchmark = prepare(path.parent / "first", path, shots=shots).benchmarks[0].requests
    asked = sets.read_requests(benchmark, benchmark.leaves[0])
    answered, _ = PlainScorer(world.llama(), world.tokenizer()).score(asked)
    for row, answer in list(zip(rows, answered, strict=True))[::2]:
        row["choices"][row["label"]] = answer.text
    write_rows(path.parent / "answered.jsonl", rows)
    config = yaml.safe_load(path.read_text())
    config["dataset_kwargs"]["data_files"]["test"] = "answered.jsonl"
    path.write_text(yaml.safe_dump(config))


def test_scores_under_a_chat_template_equal_lm_eval_end_to_end(tmp_path: Path) -> None:
    path = write_tasks(tmp_path)["tiny_mc"]
    model, tokenizer = world.llama(), world.tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<bot>{% endif %}"
    )
    lm = HFLM(model, tokenizer=tokenizer, batch_size=4, device="cpu")
    config = absolute(path, fewshot_config={"sampler": "first_n"})
    expected = lm_eval_results(lm, tmp_path, [config], num_fewshot=2, apply_chat_template=True)
    evaluated = run(tmp_path, prepare(tmp_path, path, shots=2, wrap=wrapping.chat(tokenizer)))
    assert values(evaluated, "tiny_mc-2shot", "tiny_mc") == numbers(expected, "tiny_mc")


@pytest.mark.parametrize("weight_by_size", [True, False])
def test_group_score_is_weighted_as_lm_eval_weights_it(tmp_path: Path, weight_by_size: bool) -> None:
    path = write_group(tmp_path, weight_by_size)
    lm = ScorerLM(PlainScorer(world.llama(), world.tokenizer()))
    expected = lm_eval_results(lm, tmp_path, ["both"], num_fewshot=0, bootstrap_iters=1)
    table = run(tmp_path, prepare(tmp_path, path)).scores["group-0shot"]
    entry = table["groups"]["both"]["acc,none"]
    assert entry["value"] == expected["results"]["both"]["acc,none"]
    assert entry["stderr"] == pytest.approx(expected["results"]["both"]["acc_stderr,none"])
    # One of its parts is told while the other is left to answer, but not as part of what is no mean over questions.
    told: list[ScoresSoFar] = []
    with patch.object(so_far, "EVERY_S", 0.0):
        run(tmp_path, prepare(tmp_path, path), weights="others", told=told.append)
    first = table["tasks"]["part_a"]["acc,none"]
    expect = [(first["value"], first["interval"], first["n"])] if weight_by_size else []
    assert [(*(one.scores["acc,none"][key] for key in ("value", "interval")), one.answered) for one in told] == expect
    assert all((one.benchmark, one.of) == ("group-0shot", entry["n"]) for one in told)
    assert (entry["n"], entry["higher_is_better"]) == (17, True)
    assert table["tasks"]["part_a"]["acc,none"]["stderr"] == pytest.approx(
        expected["results"]["part_a"]["acc_stderr,none"]
    )


def test_rerun_from_scratch_is_identical_to_the_byte_and_a_second_run_needs_no_model(tmp_path: Path) -> None:
    paths = write_tasks(tmp_path)
    prepared = prepare(tmp_path, *paths.values())
    files = []
    for name in ("one", "two"):
        run(tmp_path / name, prepared)
        folder = tmp_path / name
        files.append({p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()})
    assert files[0] == files[1]
    assert len(files[0]) == 15  # responses, scores and per-sample values, and both in the cache, of three benchmarks
    again = run(tmp_path / "one", prepared, no_model)
    assert list(again.scores) == ["tiny_mc-0shot", "tiny_gen-0shot", "tiny_bpb-0shot"]


def test_finished_shards_are_kept_and_damaged_ones_answered_again(tmp_path: Path) -> None:
    benchmark = prepare(tmp_path, write_tasks(tmp_path)["tiny_mc"]).benchmarks[0].requests
    scorer = PlainScorer(world.llama(), world.tokenizer())
    folder = tmp_path / "responses"
    first = responses.answer_requests(benchmark, Folder(folder), "w", scorer.score)
    assert (first["shards"], first["shards_found"]) == (1, 0)
    assert len(list((benchmark.folder / "tokens").iterdir())) == 1  # for whoever scores the same requests next
    path = folder / responses.shard_key("tiny_mc", 0)
    good = path.read_bytes()
    lines = gzip.decompress(good).decode().replace('"greedy": false', '"greedy": true', 1)
    for damage in (good[: len(good) // 2], b"", gzip.compress(lines.encode())):
        path.write_bytes(damage)
        again = responses.answer_requests(benchmark, Folder(folder), "w", scorer.score)
        assert again["shards_replaced"] == 1
        assert path.read_bytes() == good
    assert responses.answer_requests(benchmark, Folder(folder), "w", scorer.score)["shards_found"] == 1
    # Another version cut the list otherwise: what it answered stays, and the rest is answered.
    asked, answered = responses.read_responses(benchmark, benchmark.leaves[0], Folder(folder), "w")
    for number, place in enumerate((0, 4)):
        shard = responses.shard_bytes("w", asked[place : place + 4], answered[place : place + 4], {})
        Folder(folder).put(responses.shard_key("tiny_mc", number), shard)
    went_on = responses.answer_requests(benchmark, Folder(folder), "w", scorer.score)
    assert (went_on["shards"], went_on["shards_found"]) == (3, 2)
    again = responses.read_responses(benchmark, benchmark.leaves[0], Folder(folder), "w")
    assert again[0] == asked
    assert [one.logprob for one in again[1]] == pytest.approx([one.logprob for one in answered], abs=1e-5)


def test_log_probabilities_that_are_no_numbers_are_no_score(tmp_path: Path) -> None:
    model = world.llama()
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    result = run(
        tmp_path, prepare(tmp_path, write_tasks(tmp_path)["tiny_mc"]), lambda: PlainScorer(model, world.tokenizer())
    )
    assert not result.scores and "of 48 log-probabilities are no numbers (NaN)" in result.missing["tiny_mc-0shot"]


def test_answers_of_other_weights_are_not_taken_for_a_retrained_cell_s(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, write_tasks(tmp_path)["tiny_bpb"])
    first = run(tmp_path, prepared, weights="first")
    retrained = run(tmp_path, prepared, lambda: PlainScorer(world.llama(seed=1), world.tokenizer()), weights="second")
    assert retrained.happened["tiny_bpb-0shot"]["shards_replaced"] == 1
    assert retrained.scores != first.scores


def test_base_is_scored_once_per_weights_and_protocol(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, write_tasks(tmp_path)["tiny_mc"])
    first = run(tmp_path, prepared)
    elsewhere = evaluate(
        prepared, PROTOCOL, "w", no_model, Folder(tmp_path / "other-cell"), ScoreCache(Folder(tmp_path / "cache"))
    )
    assert elsewhere.scores == first.scores
    written = [
        {p.name: p.read_bytes() for p in (tmp_path / cell / "scores").iterdir()} for cell in ("cell", "other-cell")
    ]
    assert written[0] == written[1]
    assert len(written[0]) == 2
    with pytest.raises(RuntimeError, match="no model"):
        run(tmp_path / "third", prepared, no_model, weights="w2")


def test_benchmark_that_a_model_cannot_answer_is_missing_and_the_rest_is_scored(tmp_path: Path) -> None:
    paths = write_tasks(tmp_path)
    prepared = prepare(tmp_path, paths["tiny_gen"], paths["tiny_mc"])
    evaluated = run(tmp_path, prepared, lambda: PlainScorer(world.llama(positions=24), world.tokenizer()))
    assert "leaves no room" in evaluated.missing["tiny_gen-0shot"]
    assert list(evaluated.scores) == ["tiny_mc-0shot"]


def test_protocol_of_another_engine_is_missing_not_mislabelled(tmp_path: Path) -> None:
    paths = write_tasks(tmp_path)
    prepared = prepare(tmp_path, paths["tiny_bpb"], paths["tiny_mc"])
    trie = PROTOCOL.model_copy(update={"engine": "trie"})
    scorer = PlainScorer(world.llama(), world.tokenizer())
    evaluated = evaluate(
        prepared, trie, "w", lambda: scorer, Folder(tmp_path / "cell"), ScoreCache(Folder(tmp_path / "cache"))
    )
    assert evaluated.missing.keys() == {"tiny_bpb-0shot", "tiny_mc-0shot"} and not evaluated.scores
    assert all("asks for engine trie" in reason for reason in evaluated.missing.values())


def test_documents_that_changed_since_the_requests_are_not_scored(tmp_path: Path) -> None:
    path = write_tasks(tmp_path)["tiny_mc"]
    prepared = prepare(tmp_path, path)
    config = yaml.safe_load(path.read_text())
    config["dataset_kwargs"]["data_files"]["test"] = "data/shots.jsonl"
    path.write_text(yaml.safe_dump(config))
    evaluated = run(tmp_path, prepared)
    assert "is not the one its request was built from" in evaluated.missing["tiny_mc-0shot"]
    assert not evaluated.scores


def test_per_sample_values_are_stored_for_paired_tests(tmp_path: Path) -> None:
    paths = write_tasks(tmp_path)
    prepared = prepare(tmp_path, paths["tiny_mc"], paths["tiny_bpb"])
    evaluated = run(tmp_path, prepared)
    for benchmark in prepared.benchmarks:
        label = benchmark.requests.label
        pid = protocol_id(PROTOCOL, benchmark.requests)
        frame = pq.read_table(tmp_path / "cell" / "scores" / f"{pid}.parquet").to_pandas()
        assert json.loads((tmp_path / "cell" / "scores" / f"{pid}.json").read_text()) == evaluated.scores[label]
        if label == "tiny_mc-0shot":
            accuracy = frame[frame.metric == "acc"]
            assert accuracy.doc.tolist() == list(range(12))
            assert accuracy.value.mean() == evaluated.scores[label]["tasks"]["tiny_mc"]["acc,none"]["value"]
        else:
            bits = frame[frame.metric == "bits_per_byte"]
            expected = evaluated.scores[label]["tasks"]["tiny_bpb"]["bits_per_byte,none"]["value"]
            assert -bits.value.sum() / bits.weight.sum() / math.log(2) == pytest.approx(expected)


def test_interval_of_a_share_is_wilson_s_and_holds_at_the_ends() -> None:
    interval = intervals.of_mean(np.zeros(20))
    assert interval is not None
    assert (interval.method, interval.low) == ("wilson", 0.0)
    assert interval.high == pytest.approx(0.1611, abs=1e-4)  # the textbook value for 0 of 20
    for n in range(2, 200):
        none, all_right = intervals.of_mean(np.zeros(n)), intervals.of_mean(np.ones(n))
        assert none and all_right and (none.low, all_right.high) == (0.0, 1.0)
    half = intervals.of_mean(np.array([0.0, 1.0] * 50))
    assert half is not None
    assert (half.low, half.high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    draw = np.random.default_rng(0)
    covered = {"mean": 0, "ratio": 0}
    for _ in range(400):
        weights = draw.integers(5, 50, 200).astype(float)
        sums = weights * 1.5 + draw.normal(0, 1, 200) * np.sqrt(weights)
        mean, ratio = intervals.of_mean(draw.normal(0.3, 1, 200)), intervals.of_ratio(sums, weights)
        assert mean is not None
        assert ratio is not None
        covered["mean"] += mean.low <= 0.3 <= mean.high
        covered["ratio"] += ratio.low <= 1.5 <= ratio.high
    assert all(0.92 < count / 400 < 0.98 for count in covered.values())


def test_one_sample_has_no_interval() -> None:
    assert intervals.of_mean(np.ones(1)) is None
    assert intervals.of_ratio(np.ones(1), np.ones(1)) is None
