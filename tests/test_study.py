"""Frames, gains, correlations and findings against numbers computed directly."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sample_records import LAYOUT, benchmark, bonett_price, record, score
from scipy import stats

from massive_sft.ledger.record import Early, Record, Status
from massive_sft.ledger.record_warnings import find_warnings
from massive_sft.ledger.store import Ledger
from massive_sft.report.heat_table import ROW, heat_table
from massive_sft.study import contrasts, correlate, findings, frames, tables
from massive_sft.study.model_map import principal_axes
from massive_sft.study.paired_gains import (
    SampleReader,
    Samples,
    compare,
    early_interval,
    paired_interval,
    with_paired_intervals,
)
from massive_sft.study.text_sets import text_set_frame
from massive_sft.suites import metrics
from massive_sft.tracking.run_fields import describe_record

QUIZ, PROSE = "a" * 16, "b" * 16


def pair(cell: str, quiz: float | None, prose: float | None = 1.0, **changes: object) -> Record:
    scores = {
        QUIZ: benchmark("quiz", {"acc,none": score(quiz), "acc_norm,none": score(0.9)}),
        PROSE: benchmark("prose", {"bits_per_byte,none": score(prose, higher=False)}),
    }
    return record(cell, scores, **changes)


def base(cell: str = "b", quiz: float = 0.25, prose: float = 1.5, model: str = "m") -> Record:
    return pair(cell, quiz, prose, method="none", model=model)


def test_tidy_has_one_row_a_metric_and_marks_the_primary_one() -> None:
    frame = frames.tidy([pair("1", 0.5)])
    assert list(frame.columns) == list(frames.SCORES)
    assert frame[["column", "metric", "value"]].values.tolist()[0] == ["prose-0shot", "bits_per_byte", 1.0]
    assert list(frame.loc[frame["primary"], "metric"]) == ["bits_per_byte", "acc"]
    row = frame[frame["metric"] == "acc"].iloc[0]
    assert (row["low"], row["high"], row["n"], row["interval"]) == (0.4, 0.6, 100, "normal")


def test_two_sets_of_texts_of_one_name_are_told_apart_in_every_frame() -> None:
    """Under a storage root a set's file may have changed between two cells."""
    measured = [{f"texts:wiki {digit * 16}": {"perplexity": value}} for digit, value in (("1", 5.0), ("2", 50.0))]
    records = [pair(name, 0.5, measures=found) for name, found in zip("xy", measured, strict=True)]
    shown = frames.measure_frame(iter(records))
    assert shown["measure"].tolist() == ["texts:wiki 111111", "texts:wiki 222222"]
    assert text_set_frame(records)["texts"].tolist() == ["wiki 111111", "wiki 222222"]
    assert frames.measure_frame(records[:1])["measure"].tolist() == ["texts:wiki"]


def test_tidy_of_nothing_is_an_empty_frame_of_the_same_columns() -> None:
    assert list(frames.tidy([]).columns) == list(frames.SCORES)
    assert tables.gains(frames.tidy([])).empty
    assert frames.cell_frame([]).empty


def test_missing_scores_stay_missing_in_every_table() -> None:
    gone = pair("1", None, status=Status.PARTIAL, missing={"other-0shot": "data cannot be fetched"})
    failed = record("2", {}, status=Status.FAILED, error="out of memory", epoch=2)
    scores, cells = frames.tidy([gone, failed]), frames.cell_frame([gone, failed])
    table = tables.release_table(cells, scores)
    assert table["quiz-0shot"].isna()[0]
    assert table["other-0shot"].isna()[0]
    assert table.loc[1, ["quiz-0shot", "prose-0shot"]].isna().all()
    assert b"d,100,False,constant,2,,,,full,full,,0,,FAILED" in tables.to_csv(table)
    back = pd.read_parquet(io.BytesIO(tables.to_parquet(table)))
    assert back["quiz-0shot"].isna().all()
    why = scores[scores["primary"]].set_index(["cell", "column"])["missing"].dropna().to_dict()
    assert why == {(gone.cell, "other-0shot"): "data cannot be fetched", (gone.cell, "quiz-0shot"): frames.NO_NUMBER}


def test_release_table_follows_the_released_conventions() -> None:
    records = [pair("1", 0.5, 1.25, method="lora"), base()]
    table = tables.release_table(frames.cell_frame(records), frames.tidy(records))
    assert list(table.columns) == [*tables.RELEASED, "prose-0shot", "quiz-0shot", *tables.BESIDE]
    assert table.iloc[0, :8].tolist() == ["m", "d", 100, True, "constant", 1, 1.25, 50.0]
    pretrained = table.iloc[1]
    assert (pretrained["data_name"], pretrained["data_size"], pretrained["epoch"]) == ("pretrain", 0, 0)
    assert pretrained[["lora", "lr_strategy"]].isna().all()
    assert table["lora"].dtype == "boolean"


def test_lora_is_true_of_adapters_false_of_other_trainings_and_empty_of_base_models() -> None:
    records = [pair("1", 0.5, method="lora"), pair("2", 0.5, method="full"), base()]
    table = tables.release_table(frames.cell_frame(records), frames.tidy(records))
    assert table["lora"].tolist() == [True, False, pd.NA]
    *trained, pretrained = csv.DictReader(io.StringIO(tables.to_csv(table).decode()))
    assert [row["lora"] for row in trained] == ["True", "False"]
    assert (pretrained["data_name"], pretrained["lora"]) == ("pretrain", "")


def test_release_table_is_read_back_as_the_same_scores() -> None:
    records = [pair("1", 0.5), base()]
    table = tables.release_table(frames.cell_frame(records), frames.tidy(records)).drop(columns=tables.BESIDE)
    back = frames.released(pd.read_csv(io.BytesIO(tables.to_csv(table))))
    gains = tables.gains(back).set_index("column")["gain"]
    assert gains["quiz-0shot"] == pytest.approx(25.0)
    assert set(back.loc[back["method"] == "none", "model"]) == {"m"}


def test_gain_has_propagated_error_and_direction() -> None:
    gains = tables.gains(frames.tidy([pair("1", 0.5, 1.2), base(quiz=0.25, prose=1.5)]))
    quiz = gains[gains["metric"] == "acc"].iloc[0]
    assert quiz["gain"] == pytest.approx(0.25)
    assert quiz["gain_stderr"] == pytest.approx(math.hypot(0.1 / 1.96, 0.1 / 1.96))
    assert (quiz["gain_low"], quiz["gain_high"]) == pytest.approx(
        (0.25 - math.hypot(0.1, 0.1), 0.25 + math.hypot(0.1, 0.1))
    )
    prose = gains[gains["metric"] == "bits_per_byte"].iloc[0]
    assert (prose["gain"], prose["improvement"]) == pytest.approx((-0.3, 0.3))
    assert gains["why"].isna().all()


def test_gain_interval_of_proportions_is_newcombes() -> None:
    # Newcombe 1998, table II, example (a): 56/70 against 48/80, method 10 gives 0.0524 to 0.3339.
    def wilson(hits: int, n: int) -> tuple[float, float]:
        found = stats.binomtest(hits, n).proportion_ci(method="wilson")
        return float(found.low), float(found.high)

    def cell(name: str, hits: int, n: int, **changes: object) -> Record:
        made = score(hits / n, n).model_copy(update={"interval": wilson(hits, n)})
        return record(name, {QUIZ: benchmark("quiz", {"acc,none": made})}, **changes)

    gain = tables.gains(frames.tidy([cell("1", 56, 70), cell("b", 48, 80, method="none")])).iloc[0]
    assert (gain["gain_low"], gain["gain_high"]) == pytest.approx((0.0524, 0.3339), abs=1e-4)


@pytest.mark.parametrize(
    ("others", "why"),
    [
        ([], "the base model has no record"),
        ([base(model="another")], "the base model has no record"),
        (
            [record("b", {PROSE: benchmark("prose", {"acc,none": score(0.5)})}, method="none")],
            "the base model was not scored under this protocol",
        ),
        ([base("b1"), base("b2")], "several base models have this name"),
    ],
)
def test_gain_without_a_matching_base_is_missing_and_says_why(others: list[Record], why: str) -> None:
    gains = tables.gains(frames.tidy([pair("1", 0.5), *others]))
    row = gains[gains["metric"] == "acc"].iloc[0]
    assert math.isnan(row["gain"])
    assert row["why"] == why


def test_models_that_end_answers_in_their_own_ways_share_a_column() -> None:
    first, second = (benchmark("quiz", {"acc,none": score(0.5)}, asked=f"quiz@0 {key * 16}") for key in "12")
    records = [record("1", {"1" * 16: first}), record("2", {"2" * 16: second}, model="other")]
    assert frames.tidy(records)["column"].unique().tolist() == ["quiz-0shot"]


def test_gain_is_never_taken_across_protocols() -> None:
    under = {"1": "quiz@0 1111111111111111", "2": "quiz@0 2222222222222222"}
    made = {key: benchmark("quiz", {"acc,none": score(0.5)}, asked=asked) for key, asked in under.items()}
    both = record("b", {"1" * 16: made["1"], "2" * 16: made["2"]}, method="none")
    records = [record("1", {"1" * 16: made["1"]}), record("2", {"2" * 16: made["2"]}, epoch=2), both]
    scores = frames.tidy(records)
    by_hash = ["quiz-0shot [111111]", "quiz-0shot [222222]"]
    assert sorted(scores["column"].unique()) == by_hash
    for named, columns in (
        ({under["1"]: "paper", under["2"]: "chat"}, ["quiz-0shot [chat]", "quiz-0shot [paper]"]),
        ({under["1"]: "paper", under["2"]: "paper"}, by_hash),  # its adapters merged, say, and not
    ):
        assert sorted(frames.tidy(records, named)["column"].unique()) == columns
    gains = tables.gains(scores)
    assert len(gains) == 2
    assert (gains["gain"] == 0).all()


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [
        (["acc_norm,none", "acc,none"], "acc,none"),
        (["exact_match,flexible-extract", "exact_match,strict-match"], "exact_match,strict-match"),
        (["word_perplexity,none", "bits_per_byte,none", "byte_perplexity,none"], "bits_per_byte,none"),
        (["zeta,none", "alpha,none"], "alpha,none"),
    ],
)
def test_primary_metric_is_chosen_by_name_alone(keys: list[str], chosen: str) -> None:
    for order in (keys, keys[::-1]):
        assert metrics.primary_metric({key: score(0.5) for key in order}) == chosen


def test_score_and_reason_of_one_benchmark_are_one_primary_row() -> None:
    both = pair("1", 0.5, status=Status.PARTIAL, missing={"quiz-0shot": "not under the other template"})
    scores = frames.tidy([both])
    assert scores.query("column == 'quiz-0shot'")["value"].tolist() == [0.5]
    assert scores["missing"].dropna().tolist() == ["not under the other template"]
    assert len(tables.release_table(frames.cell_frame([both]), scores)) == 1


def test_primary_metric_without_direction_comes_last() -> None:
    assert metrics.primary_metric({"acc,none": score(0.1, higher=None), "f1,none": score(0.2)}) == "f1,none"


def test_group_stands_for_its_benchmark_and_tasks_for_themselves_without_one() -> None:
    grouped = benchmark(
        "mmlu",
        {"acc,none": score(0.1)},
        groups={"mmlu": {"acc,none": score(0.3)}, "mmlu_stem": {"acc,none": score(0.2)}},
    )
    assert frames.tidy([record("1", {QUIZ: grouped})]).query("primary")["value"].tolist() == [0.3]
    loose = grouped.model_copy(update={"groups": {}, "tasks": {name: {"acc,none": score(0.1)} for name in "ab"}})
    assert frames.tidy([record("1", {QUIZ: loose})])["column"].tolist() == ["mmlu-0shot:a", "mmlu-0shot:b"]


def test_seeds_are_averaged_with_students_t() -> None:
    values = [0.4, 0.5, 0.8]
    records = [pair(str(index), value, seed=index) for index, value in enumerate(values)]
    row = (
        tables.over_seeds(tables.gains(frames.tidy([*records, base(quiz=0.25)]))).set_index("column").loc["quiz-0shot"]
    )
    differences = np.array(values) - 0.25
    low, high = stats.t.interval(0.95, 2, differences.mean(), stats.sem(differences))
    assert (row["seeds"], row["gain"]) == (3, pytest.approx(differences.mean()))
    assert (row["gain_low"], row["gain_high"]) == pytest.approx((low, high))
    assert row["n"] == 100


@pytest.mark.parametrize("missing", [0, 1])
def test_seeds_have_the_questions_of_those_that_are_scored(missing: int) -> None:
    records = [pair(f"{seed}", 0.5, seed=seed) for seed in (0, 1)]
    scored = {QUIZ: records[1 - missing].scores[QUIZ]}
    records[missing] = records[missing].model_copy(update={"scores": {}, "missing": {"quiz-0shot": "out of memory"}})
    records[1 - missing] = records[1 - missing].model_copy(update={"scores": scored})
    (row,) = frames.to_rows(tables.over_seeds(tables.gains(frames.tidy([*records, base()]))))
    assert (row["seeds"], row["asked_seeds"], row["n"]) == (1, 2, 100)


def test_correlation_equals_scipys() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=20)
    y = x + generator.normal(size=20)
    found, direct = correlate.correlate(x, y), stats.pearsonr(x, y)
    assert (found.n, found.pearson, found.pearson_p) == (
        20,
        pytest.approx(direct.statistic),
        pytest.approx(direct.pvalue),
    )
    assert (found.pearson_low, found.pearson_high) == pytest.approx(tuple(direct.confidence_interval()))
    assert found.spearman == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.spearman_low < found.spearman < found.spearman_high
    assert found.spearman_p == pytest.approx(stats.spearmanr(x, y).pvalue)


def test_gains_that_differ_by_rounding_have_one_rank() -> None:
    """As those of models that begin at other scores."""
    bases, learnt, measured = [1, 2, 5, 6, 3, 7, 4, 8], [1, 1, 1, 1, 2, 2, 2, 2], [3, 8, 1, 6, 2, 7, 5, 4]
    gains = [(before + more) / 10 - before / 10 for before, more in zip(bases, learnt, strict=True)]
    assert len(set(gains)) > 2
    for some in (8, 6):
        found, exact = (correlate.correlate(measured[:some], y[:some]) for y in (gains, learnt))
        assert (found.spearman, found.spearman_p) == pytest.approx((exact.spearman, exact.spearman_p))
    assert correlate.correlate([1, 2, 3, 4], [1e-4, 1e-4 + 2e-16, 1e-4, 1e-4]).note == "constant"


def test_ranks_of_few_pairs_that_agree_are_no_proof() -> None:
    few = correlate.correlate([1, 2, 3, 5], [1, 2, 4, 9])
    assert (few.spearman, few.spearman_p) == pytest.approx((1.0, 2 / 24))
    assert math.isnan(few.spearman_low) and math.isnan(few.spearman_high)
    x, y = [1.0, 2.0, 2.0, 4.0, 5.0, 3.0], [2.0, 1.0, 3.0, 3.0, 6.0, 5.0]

    def rho(order: np.ndarray) -> np.ndarray:
        return np.asarray(stats.spearmanr(order, y).statistic)

    direct = stats.permutation_test((x,), rho, permutation_type="pairings", n_resamples=np.inf)
    assert correlate.correlate(x, y).spearman_p == pytest.approx(direct.pvalue)


@pytest.mark.parametrize(
    ("x", "y", "n", "note"),
    [
        ([1, 2, 3], [1, 2, 3], 3, "too few"),
        ([1, 2, 3, math.nan], [1, 2, 3, 4], 3, "too few"),
        ([1, 2, 3, 4], [2, 2, 2, 2], 4, "constant"),
    ],
)
def test_correlation_that_cannot_be_had_says_so(x: list[float], y: list[float], n: int, note: str) -> None:
    found = correlate.correlate(x, y)
    assert (found.n, found.note) == (n, note)
    assert math.isnan(found.pearson)


def test_correlation_of_two_values_or_of_layer_change_over_methods_says_so() -> None:
    x, y = [7.03, 7.03, 7.52, 7.52, 7.52], [0.5, 0.4, 0.1, 0.2, 0.15]
    assert correlate.correlate(x, y).note == "only two values"
    assert correlate.correlate([*x, 8.0], [*y, 0.1]).note == ""
    columns = {"column": "quiz", "model": "m", "layer_change": [0.01, 0.02, 0.3, 0.4, 0.5], "improvement": y}
    frame = pd.DataFrame(columns | {"method": ["lora"] * 2 + ["full"] * 3})
    notes = correlate.correlations(frame, ["layer_change"]).set_index("group")["note"]
    assert notes.to_dict() == {"all": "methods mixed", "method=full": "too few", "method=lora": "too few"}
    assert correlate.correlations(frame.assign(method="full"), ["layer_change"])["note"].tolist() == [""]


def test_points_are_one_a_run_at_its_last_epoch() -> None:
    run = "7" * 16
    measures = {
        "perplexity": {"all": {"perplexity_micro": math.e}},
        "layer_change": {"relative": 0.5, "relative_by_layer": {"1": 0.2, "0": 0.1}},
    }
    records = [pair(f"{epoch}", 0.25 + epoch / 10, epoch=epoch, trajectory=run, measures=measures) for epoch in (1, 2)]
    points = correlate.points(frames.cell_frame(records), tables.gains(frames.tidy([*records, base()])))
    quiz = points[points["column"] == "quiz-0shot"]
    assert quiz[["epoch", "log_perplexity_all", "layer_change"]].values.tolist() == [[2, 1.0, 0.5]]
    assert quiz["improvement"].item() == pytest.approx(0.2)
    assert frames.layer_changes(records)[["layer", "change"]].values.tolist() == [[0, 0.1], [1, 0.2]] * 2


@pytest.mark.parametrize("bases", [(0.1,) * 6, (0.1, 0.2, 0.5, 0.6, 0.1, 0.2)])
def test_benchmark_on_which_all_runs_improve_alike_says_nothing_of_overall(bases: Sequence[float]) -> None:
    """Differences of such scores are equal up to rounding, which is no spread to divide by."""
    records = []
    for number, before in enumerate(bases):
        records.append(base(f"b{number}", quiz=before, prose=1.0, model=f"m{number}"))
        records.append(pair(f"t{number}", before + 0.1, 1.0 - number / 10, model=f"m{number}"))
    points = correlate.points(frames.cell_frame(records), tables.gains(frames.tidy(records)))
    prose = np.arange(6) / 10
    overall = points.loc[points["column"] == correlate.OVERALL, "improvement"].to_numpy()
    assert np.sort(overall) == pytest.approx(prose / prose.std(ddof=1))


def test_bits_per_byte_are_missing_where_they_were_of_other_bytes_than_said() -> None:
    over = {"perplexity_micro": 2.0, "perplexity_text_micro": 1.8, "bits_per_byte_micro": 0.5}
    measured = [{"perplexity": {"schema": number, "all": over, "response": over}} for number in (1, 2, 3)]
    measured.append({"perplexity": {"all": over, "response": over}})
    cells = frames.cell_frame([pair(str(number), 0.5, measures=each) for number, each in enumerate(measured)])
    assert cells["bits_per_byte_response"].notna().tolist() == [False, True, True, False]
    assert cells["bits_per_byte_all"].notna().tolist() == [False, False, True, False]


def test_much_that_is_cut_or_left_out_is_a_finding_and_a_warning() -> None:
    cut, left_out, whole = (
        pair(name, 0.5, counts={"total": {"samples": 18, "dropped": dropped, "truncated": truncated}})
        for name, dropped, truncated in (("1", 2, 5), ("2", 4, 0), ("3", 2, 2))
    )
    assert find_warnings(cut) == ["5 of 20 samples lost text to the maximum length"]
    assert find_warnings(left_out) == ["4 of 22 samples were left out, being longer than the maximum length"]
    assert find_warnings(whole) == []
    assert {finding.kind for finding in all_findings([cut, left_out])} >= {"truncated", "dropped"}


def test_change_that_rounding_takes_away_is_a_finding_and_a_warning() -> None:
    floor = {"rounding_floor": 1.6e-3, "changed": 12, "weights": 3000}
    small, large = ({"layer_change": {"relative": change, **floor}} for change in (8.8e-10, 0.01))
    lost, kept = pair("lost", 0.5, measures=small), pair("kept", 0.5, measures=large)
    found = [finding for finding in all_findings([lost, kept]) if finding.kind == "rounding"]
    assert [finding.cells for finding in found] == [(lost.cell,)]
    assert "8.8e-10" in found[0].text and "0.0016" in found[0].text
    (text,) = find_warnings(lost)
    assert "12 of 3,000 weights changed" in text
    assert find_warnings(kept) == find_warnings(pair("old", 0.5, measures={"layer_change": {"relative": 0.0}})) == []
    assert describe_record(lost, {}, None, "/ledger").tags["massive_sft.warning"] == text


def test_plain_scores_where_trees_were_asked_for_are_a_finding_and_a_warning() -> None:
    why = "the tree gives -3 where the plain engine gives -2"
    plain, tree = pair("plain", 0.5, cost={"plainly": why}), pair("tree", 0.5)
    (found,) = (finding for finding in all_findings([plain, tree]) if finding.kind == "engine")
    assert found.cells == (plain.cell,) and why in found.text
    assert find_warnings(plain) == [f"scored by the plain engine: {why}"] and find_warnings(tree) == []


def all_findings(records: list[Record]) -> list[findings.Finding]:
    scores = frames.tidy(records)
    return findings.collect_findings(frames.cell_frame(records), scores, tables.gains(scores))


def test_missing_measure_is_found_but_is_no_benchmark_of_a_table() -> None:
    why = {"layer_change": "its snapshot was removed"}
    records = [base(), pair("1", 0.5, status=Status.PARTIAL, missing=why)]
    assert [item.text for item in all_findings(records)] == [
        "layer_change is missing in 1 cell: its snapshot was removed"
    ]
    cells, scores = frames.cell_frame(records), frames.tidy(records)
    settings = pd.DataFrame({"cell": cells["cell"], "lr": 1e-3, "batch": 8})
    released, texts = tables.release_table(cells, scores), text_set_frame(records)
    table = tables.with_details(released, cells, tables.gains(scores), settings, texts)
    assert list(table.columns).count("layer_change") == 1
    assert tables.to_parquet(table)


def test_findings_name_what_failed_diverged_and_is_partial() -> None:
    records = [
        base(),
        pair("1", 0.5, status=Status.PARTIAL, missing={"other-0shot": "no network"}),
        record("2", {}, status=Status.FAILED, error="out of memory", epoch=2),
        record("3", {}, status=Status.DIVERGED, error="loss is not finite at step 3", epoch=3),
    ]
    found = {item.kind: item.text for item in all_findings(records)}
    assert found == {
        "FAILED": "m d full constant epoch 2 seed 0: out of memory",
        "DIVERGED": "m d full constant epoch 3 seed 0: loss is not finite at step 3",
        "PARTIAL": "other-0shot is missing in 1 cell: no network",
    }


def test_mixed_layouts_of_one_model_are_found() -> None:
    records = [
        pair(str(zero), 0.5 + zero / 10, epoch=1 + zero, training={"layout": {**LAYOUT, "zero": zero}})
        for zero in (1, 2)
    ]
    kinds = [item for item in all_findings([base(), *records]) if item.kind == "layout"]
    assert len(kinds) == 1
    assert "zero 1 / 2" in kinds[0].text
    assert not [item for item in all_findings([base(), records[0]]) if item.kind == "layout"]


def many(cell: str, values: list[float], **changes: object) -> Record:
    return record(
        cell, {f"{i:016x}": benchmark(f"t{i}", {"acc,none": score(v)}) for i, v in enumerate(values)}, **changes
    )


def test_copied_cells_are_found_and_common_scores_are_no_copy() -> None:
    generator = np.random.default_rng(1)
    different = [many(f"{i:x}e", [*generator.random(9), 0.0, 0.0, 0.0, 0.0, 0.0], epoch=i + 1) for i in range(12)]
    assert findings.find_copied(frames.tidy(different)) == []
    values = [
        score.tasks[name]["acc,none"].value or 0.0 for score in different[0].scores.values() for name in score.tasks
    ]
    copy = many("c", [*values[:6], *generator.random(8)], model="another")
    (found,) = findings.find_copied(frames.tidy([*different, copy]))
    assert "identical scores on 6 of 14 benchmarks" in found.text
    assert set(found.cells) == {different[0].cell, copy.cell}


def test_cells_that_share_their_scores_with_others_are_alike_and_no_copies() -> None:
    values = np.random.default_rng(2).random((400, 8))
    values[1, :6] = values[0, :6]
    values[range(2, 8), range(6)] = values[0, :6]  # each of these scores is also that of a third cell

    def found() -> list[findings.Finding]:
        return findings.find_copied(
            frames.tidy(many(f"{i:03x}", row, epoch=i + 1) for i, row in enumerate(values.tolist()))
        )

    assert found() == []
    values[2:4, :2] = 0.0
    (copy,) = found()
    assert "identical scores on 6 of 8 benchmarks" in copy.text


def samples(values: list[float], weights: list[float] | None = None) -> Samples:
    documents = tuple(("quiz", index) for index in range(len(values)))
    return Samples(documents, np.array(values, float), np.array(weights or [1.0] * len(values)))


def test_paired_interval_of_a_mean_is_students_of_the_differences() -> None:
    before, after = [0.5, 1.0, 0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.5, 0.0, 1.0]
    difference = np.array(after) - np.array(before)
    low, high = stats.t.interval(0.95, 5, difference.mean(), stats.sem(difference))
    # As a fraction, and as a metric that tells percent.
    for scale in (1.0, 100.0):
        scores = (scale * 2.5 / 6, scale * 4.5 / 6)
        assert paired_interval(samples(before), samples(after), scores) == pytest.approx((scale * low, scale * high))


@pytest.mark.parametrize("learnt, lost", [(0.05, 0.02), (0.5, 0.05), (0.9, 0.02)])
def test_paired_interval_of_right_and_wrong_answers_holds_the_truth_where_few_changed(
    learnt: float, lost: float
) -> None:
    """Of 20 questions; Student's t holds it in 77, 95 and 87 % of draws."""
    chances, draws, held = [learnt, lost, 1 - learnt - lost], 2000, 0
    for gained, gone, _ in np.random.default_rng(0).multinomial(20, chances, draws):
        before = samples([0.0] * gained + [1.0] * gone + [0.0] * (20 - gained - gone))
        after = samples([1.0] * gained + [0.0] * (20 - gained))
        low, high = paired_interval(before, after, (gone / 20, gained / 20)) or (1.0, -1.0)
        assert -1 <= low <= (gained - gone) / 20 <= high <= 1
        held += low <= learnt - lost <= high
    assert held / draws >= 0.95


def test_interval_of_an_early_gain_holds_the_truth_where_few_of_the_answers_changed() -> None:
    """Of 313 questions; Student's t holds it in 83 % of draws, and has no interval where no answer changed."""
    base, draws, held = samples([1.0] * 400), 1000, 0
    for lost in np.random.default_rng(0).binomial(313, 0.01, draws).tolist():
        gain = -lost / 313
        low, high = early_interval(base, samples([0.0] * lost + [1.0] * (313 - lost)), gain) or (1.0, -1.0)
        assert low <= gain <= high
        held += low <= -0.01 <= high
    assert held / draws >= 0.94
    assert early_interval(samples([1.0] * 300), base, 0.0) is None  # the base was not asked all of them
    halves = samples([0.5, 1.0, 0.0])
    low, high = stats.t.interval(0.95, 2, 0.5, stats.sem([0.5, 0.0, 1.0]))
    assert early_interval(samples([0.0, 1.0, -1.0, 0.0]), halves, 0.5) == pytest.approx((low, high))


def test_interval_is_told_where_no_answer_changed_and_where_all_were_learnt() -> None:
    wrong, right = samples([0.0] * 10), samples([1.0] * 10)
    assert paired_interval(wrong, wrong, (0.0, 0.0)) == pytest.approx((-0.231, 0.231), abs=1e-3)
    assert paired_interval(wrong, right, (0.0, 1.0)) == pytest.approx((0.5206, 1.0), abs=1e-3)


def test_paired_interval_of_bits_per_byte_agrees_with_resampling_the_documents() -> None:
    generator = np.random.default_rng(0)
    weights = generator.integers(50, 200, 300).astype(float)
    before = -weights * generator.normal(0.5, 0.1, 300)
    after = before + weights * generator.normal(0.03, 0.02, 300)
    to_bits = -1 / math.log(2)
    scores = (to_bits * before.sum() / weights.sum(), to_bits * after.sum() / weights.sum())
    found = paired_interval(samples(list(before), list(weights)), samples(list(after), list(weights)), scores)
    draws = generator.integers(0, 300, (4000, 300))
    gains = to_bits * (after - before)[draws].sum(axis=1) / weights[draws].sum(axis=1)
    assert found == pytest.approx(tuple(np.quantile(gains, [0.025, 0.975])), abs=3e-4)
    assert found is not None
    assert found[1] < 0


def test_paired_interval_is_only_told_where_it_can_be_had() -> None:
    one, other, graded = samples([0.0, 1.0, 0.0]), samples([1.0, 1.0, 0.0]), samples([0.5, 1.0, 0.5])
    assert paired_interval(graded, graded, (2 / 3, 2 / 3)) is None, "nothing changed"
    assert paired_interval(one, other, (1 / 3, 0.9)) is None, "the score is no mean of these values"
    assert paired_interval(one, samples([1.0, 1.0]), (1 / 3, 1.0)) is None, "other questions"


def test_questions_that_one_cell_alone_answered_are_left_out_and_mcnemar_is_exact() -> None:
    first, second = samples([0.0] * 8 + [1.0]), samples([1.0] * 6 + [0.0] * 3 + [1.0])
    found = compare(first, second, (1 / 9, 7 / 10))
    assert found is not None and found.mcnemar is not None and found.interval is not None
    assert (found.n, found.unpaired, found.mcnemar.only_first, found.mcnemar.only_second) == (9, 1, 1, 6)
    assert (found.mcnemar.p, found.mean) == pytest.approx((2 * (1 + 7) / 2**7, 5 / 9))
    assert found.interval == pytest.approx(bonett_price(6, 1, 9))
    alike = compare(first, first, (1 / 9, 1 / 9))
    assert alike is not None and alike.mcnemar is not None and alike.mcnemar.p == 1.0
    assert alike.interval == pytest.approx(bonett_price(0, 0, 9))
    ratios = samples([-10.0, -30.0], [20.0, 40.0]), samples([-12.0, -20.0], [20.0, 40.0])
    found = compare(*ratios, (40 / 60, 32 / 60))
    assert found is not None and found.mean == pytest.approx(-8 / 60) and found.mcnemar is None
    assert compare(*ratios, (40 / 60, 0.9)) is None, "the score is no multiple of these values"


def test_gains_are_paired_where_the_ledger_has_both_cells_values(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path)
    answers = {"1": [1.0, 1.0, 1.0, 0.0], "b": [0.0, 1.0, 0.0, 0.0], "2": None}
    records = []
    for name, values in answers.items():
        about = {"method": "none"} if name == "b" else {"epoch": 1 + (name == "2")}
        quiz = score(0.75 if values is None else sum(values) / 4)
        made = record(name, {QUIZ: benchmark("quiz", {"acc,none": quiz, "acc_norm,none": quiz})}, **about)
        records.append(made)
        if values is not None:
            path = ledger.cell_dir(made.cell) / "scores" / f"{QUIZ}.parquet"
            path.parent.mkdir(parents=True)
            rows = [
                {"task": "quiz", "doc": doc, "metric": metric, "filter": "none", "value": value, "weight": None}
                for metric in ("acc", "acc_norm")
                for doc, value in enumerate(values)
            ]
            pd.DataFrame(rows).astype({"weight": "float64"}).to_parquet(path)
    gains = tables.gains(frames.tidy(records))
    reader = SampleReader(ledger, {made.cell: made for made in records})
    found = with_paired_intervals(gains, reader)
    rows = found[found["metric"] == "acc"].set_index("epoch")
    assert rows["gain_interval"].to_dict() == {1: "paired", 2: "independent"}
    assert (rows["gain_low"][1], rows["gain_high"][1]) == pytest.approx(bonett_price(2, 0, 4))
    before = gains[gains["metric"] == "acc"].set_index("epoch")
    assert rows["gain_low"][2] == before["gain_low"][2]
    beside = found[found["metric"] == "acc_norm"].set_index("epoch")
    assert not beside["primary"].any()
    pd.testing.assert_frame_equal(beside[["gain_low", "gain_interval"]], rows[["gain_low", "gain_interval"]])


@pytest.mark.parametrize("early", ["lora", "full"])
def test_difference_of_an_early_and_a_full_score_has_the_interval_of_both(early: str, tmp_path: Path) -> None:
    """An early score rests on the base model's, so its difference from a tuned cell's is no mean of changes."""
    ledger, asked = Ledger.open(tmp_path), 40
    base_values, tuned = (np.array([1.0] * right + [0.0] * (50 - right) + [1.0] * 50) for right in (10, 22))
    values = {"none": base_values, "full": tuned, "lora": tuned}  # the base model is worse at what is asked early
    records = []
    for method, whole in values.items():
        of, protocol, about, mean = whole, QUIZ, None, float(whole.mean())
        if method == early:
            of, protocol = whole[:asked], "e" * 16
            about = Early(protocol=QUIZ, questions=asked, of=100, look=3, until=8.0, half_width=7.0)
            mean = float(base_values.mean() + (of - base_values[:asked]).mean())
        scored = benchmark("quiz", {"acc,none": score(mean, n=len(of))})
        scored = scored.model_copy(update={"early": about, "asked": scored.asked + (" ±8" if about else "")})
        made = record(
            {"none": "b", "full": "1", "lora": "2"}[method], {protocol: scored}, method=method, setting=method
        )
        records.append(made)
        path = ledger.cell_dir(made.cell) / "scores" / f"{protocol}.parquet"
        path.parent.mkdir(parents=True)
        rows = {"task": "quiz", "doc": range(len(of)), "metric": "acc", "filter": "none", "value": of, "weight": None}
        pd.DataFrame(rows).astype({"weight": "float64"}).to_parquet(path)
    scores, reader = frames.tidy(records), SampleReader(ledger, {made.cell: made for made in records})
    (row,) = frames.to_rows(
        with_paired_intervals(
            contrasts.differences(scores, contrasts.lora_less_full(frames.cell_frame(records))), reader
        )
    )
    assert row["gain"] == pytest.approx(0.18 if early == "lora" else -0.18)
    assert (row["gain_high"] - row["gain_low"]) / 2 == pytest.approx(math.hypot(0.1, 0.1))
    assert row["gain_interval"] == "independent" and row["early"] is True
    gains = with_paired_intervals(tables.gains(scores), reader).set_index("method")
    assert gains.loc[early, "gain_interval"] == "paired" and gains["early"].to_dict()[early]


def test_correlation_that_one_point_makes_says_so() -> None:
    changed = [0.0, 0.0, 0.0, 0.0, 0.0, 10.0]
    better = [0.1, -0.1, 0.2, 0.0, -0.2, 5.0]
    lonely = correlate.correlate(changed, better)
    assert (lonely.pearson > 0.9, lonely.pearson_p < 0.01, lonely.note) == (True, True, correlate.LONE)
    spread = correlate.correlate([0.0, 0.1, 0.2, 0.3, 0.4, 10.0], better)
    assert (spread.pearson_p < 0.01, spread.note) == (True, "hangs on one point")
    generator = np.random.default_rng(0)
    x = generator.normal(size=30)
    y = x + generator.normal(size=30)
    found = correlate.correlate(x, y)
    without = [stats.pearsonr(np.delete(x, index), np.delete(y, index)).statistic for index in range(30)]
    assert (found.pearson_least, found.pearson_most) == pytest.approx((min(without), max(without)))
    assert found.note == ""


def test_much_truncated_mixtures_are_warned_of() -> None:
    counts = {"total": {"samples": 200, "truncated": 19}}
    few, many, left_out = (
        pair("1", 0.5, counts=counts),
        pair("2", 0.5, data="long", counts={"total": {"samples": 50, "truncated": 9}}),
        pair("3", 0.5, data="longer", counts={"total": {"samples": 24, "truncated": 0, "dropped": 8}}),
    )
    records = [few, many, left_out, base()]
    scores = frames.tidy(records)
    found = findings.collect_findings(frames.cell_frame(records), scores, tables.gains(scores))
    cut, dropped = (item for item in found if item.kind in ("truncated", "dropped"))
    assert (cut.cells, dropped.cells) == ((many.cell,), (left_out.cell,))
    assert cut.text.startswith("m: 9 of 50 samples of long (18%) lost text to the maximum length")
    assert dropped.text.startswith("m: 8 of 32 samples of longer (25%) were left out, being longer than the maximum")


def test_lora_is_compared_with_full_tuning_of_the_same_run_and_protocol() -> None:
    records = [
        pair("1", 0.5, 1.2),
        pair("2", 0.75, 1.1, method="lora", setting="lora"),
        pair("3", 0.9, method="lora", setting="lora", epoch=2),  # nothing to compare with
        pair("4", 0.1, method="lora", setting="lora", seed=1),
    ]
    pairs = contrasts.lora_less_full(frames.cell_frame(records))
    assert pairs == [(records[1].cell, records[0].cell, "lora − full")]
    found = contrasts.differences(frames.tidy(records), pairs).set_index("column")
    assert found["gain"].to_dict() == pytest.approx({"quiz-0shot": 0.25, "prose-0shot": -0.1})
    assert found["improvement"].to_dict() == pytest.approx({"quiz-0shot": 0.25, "prose-0shot": 0.1})
    assert found.loc["quiz-0shot", "gain_high"] == pytest.approx(0.25 + math.hypot(0.1, 0.1))


def test_runs_are_compared_at_the_last_epoch_that_both_have() -> None:
    """And their mean is of the last epoch that most have: one that trained on is there with the epoch of the others."""
    longer = [pair(f"l{epoch}", 0.1 * epoch, method="lora", setting="lora", epoch=epoch) for epoch in (1, 2, 3)]
    full = [pair(f"f{epoch}", 0.5, epoch=epoch) for epoch in (1, 2)]
    left_out = [pair("w", 0.2, method="lora", setting="lora", data="w/o-a", size=9)]
    cells = frames.cell_frame([*longer, *full, *left_out])
    assert contrasts.lora_less_full(cells) == [(longer[1].cell, full[1].cell, "lora − full")]
    (whole, size), *_ = {(row["data"], row["size"]) for row in frames.to_json_rows(cells) if row["data"] != "w/o-a"}
    pairs = contrasts.with_less_without(cells, [((whole, size), ("w/o-a", 9), "a")])
    assert pairs == [(longer[0].cell, left_out[0].cell, f"a in {whole}")]
    gains = tables.over_seeds(tables.gains(frames.tidy([*longer, *left_out, base(quiz=0.0)])))
    row = contrasts.mean_over(gains, ["data", "size"]).set_index("column").loc["quiz-0shot"]
    assert (row["epoch"], row["members"], row["gain"]) == (1, 2, pytest.approx(0.15))


def test_what_a_dataset_gives_to_a_mixture_is_the_score_with_it_less_the_score_without() -> None:
    records = [
        pair("1", 0.5, data="all", size=300),
        pair("2", 0.25, data="w/o-a", size=200),
        pair("3", 0.75, data="w/o-a", size=200, model="other"),
    ]
    whole = ("all", 300)
    left_out = [(whole, ("w/o-a", 200), "a"), (whole, ("w/o-b", 200), "b"), (whole, ("w/o-a", 20), "another")]
    pairs = contrasts.with_less_without(frames.cell_frame(records), left_out)
    assert pairs == [(records[0].cell, records[1].cell, "a in all")]
    found = contrasts.differences(frames.tidy(records), pairs).set_index("column")
    assert found.loc["quiz-0shot", "gain"] == pytest.approx(0.25)


def test_mean_over_models_is_of_the_gains_with_students_interval() -> None:
    values = {"m": 0.5, "n": 0.75, "o": 0.6}
    records = [pair(name, value, model=name) for name, value in values.items()]
    records += [pair(f"{name}1", 0.9, model=name, data="alone") for name in "m"]
    records += [base(f"{name}b", quiz=0.25, model=name) for name in values]
    means = contrasts.mean_over(tables.over_seeds(tables.gains(frames.tidy(records))), ["model"])
    row = means.set_index("column").loc["quiz-0shot"]
    gains = np.array(list(values.values())) - 0.25
    low, high = stats.t.interval(0.95, 2, gains.mean(), stats.sem(gains))
    assert (row["data"], row["members"], row["gain"]) == ("d", 3, pytest.approx(gains.mean()))
    assert (row["gain_low"], row["gain_high"]) == pytest.approx((low, high))


@pytest.mark.parametrize("order", [("m", "n", "o"), ("o", "n", "m")])
def test_mean_over_models_that_answered_other_numbers_of_questions_has_no_number_of_them(order: Sequence[str]) -> None:
    """As early answers do."""
    sizes = {"m": 100, "n": 100, "o": 25}
    records = [base(f"{name}b", quiz=0.25, model=name) for name in order]
    for name in order:
        scores = {QUIZ: benchmark("quiz", {"acc,none": score(0.5, n=sizes[name])}), PROSE: benchmark("prose", {})}
        records.append(record(name, scores, model=name))
    single = tables.over_seeds(tables.gains(frames.tidy(records)))
    assert pd.isna(contrasts.mean_over(single, ["model"])["n"].item())
    alike = contrasts.mean_over(single[single["model"] != "o"], ["model"])
    assert alike["n"].item() == 100
    some = pd.concat([alike, single[single["model"] == "o"].assign(n=pd.NA)])
    for means, told in ((single, "n varies"), (alike, "n 100"), (some, "n varies")):
        labels = {key: dict.fromkeys(ROW, "") for key in frames.grouped(frames.to_rows(means), *frames.CONDITION)}
        assert heat_table("t", "", means, labels, ["quiz-0shot"]).columns[-1].note.endswith(told)


def test_mean_of_equal_gains_is_no_surer_than_one_of_them() -> None:
    records = [pair(name, 0.5, model="m", data=name) for name in ("d", "e")] + [base(quiz=0.25)]
    gains = tables.over_seeds(tables.gains(frames.tidy(records))).query("column == 'quiz-0shot'")
    row = contrasts.mean_over(gains, ["data", "size"]).iloc[0]
    assert (row["gain_low"], row["gain_high"]) == pytest.approx(
        (0.25 - math.hypot(0.1, 0.1), 0.25 + math.hypot(0.1, 0.1))
    )
    assert row["interval"] == "mean of the intervals of the 2 mixtures"
    alone = gains.assign(gain_low=math.nan, gain_high=math.nan)
    row = contrasts.mean_over(alone, ["data", "size"]).iloc[0]
    assert np.isnan([row["gain_low"], row["gain_high"]]).all() and row["interval"] == "no interval: all are equal"


@pytest.mark.parametrize("noise", [0.0, 1e-17, 4e-16])
def test_spread_that_is_rounding_makes_no_interval(noise: float) -> None:
    unknown = [math.nan] * 3
    found = tables.mean_interval([0.04, 0.04 + noise, 0.04 - noise], unknown, unknown)
    assert math.isnan(found.low) and math.isnan(found.high) and not found.by_t
    shifted = [0.1 + noise, 0.2, 0.3 - noise], [0.2, 0.3 + noise, 0.4]
    assert paired_interval(samples(shifted[0]), samples(shifted[1]), (0.2, 0.3)) is None
    compared = compare(*(samples(values) for values in shifted), (0.2, 0.3))
    assert compared is not None and compared.interval is None


def test_mean_interval_is_never_narrower_than_the_single_ones() -> None:
    values = [0.40, 0.41, 0.42]
    half = stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / math.sqrt(3)
    wide = tables.mean_interval(values, [value - 0.1 for value in values], [value + 0.2 for value in values])
    assert (wide.low, wide.high, wide.by_t) == (pytest.approx(0.31), pytest.approx(0.61), False)
    some = tables.mean_interval(values, [0.3, math.nan, 0.32], [0.5, math.nan, 0.52])  # one has none of its own
    assert (some.low, some.high, some.by_t) == (pytest.approx(0.31), pytest.approx(0.51), False)
    narrow = tables.mean_interval(values, [value - 0.01 for value in values], [value + 0.01 for value in values])
    assert (narrow.low, narrow.high, narrow.by_t) == (pytest.approx(0.41 - half), pytest.approx(0.41 + half), True)


def test_mean_of_few_gains_claims_no_more_than_a_fraction_can_gain() -> None:
    rows = [{"metric": "acc", "gain": gain, "gain_low": gain, "gain_high": gain} for gain in (0.1, 0.9)]
    assert [tables.mean_gain(rows, "seeds")[name] for name in ("gain", "gain_low", "gain_high")] == [0.5, -1.0, 1.0]
    percent = tables.mean_gain([row | {"metric": "f1"} for row in rows], "seeds")  # in whichever unit its task gives
    assert percent["gain_high"] > 1 > -1 > percent["gain_low"]
    beyond = tables.mean_gain([row | {"gain": 3 * row["gain"]} for row in rows], "seeds")  # a task's own sort of acc
    assert beyond["gain_low"] < beyond["gain"] < beyond["gain_high"]


def test_layers_stand_in_their_order_whatever_the_record_s() -> None:
    change = {"relative": 0.5, "relative_by_layer": {str(layer): 0.1 for layer in (0, 1, 10, 11, 2)}}
    layers = frames.layer_changes([pair("1", 0.5, measures={"layer_change": change})])
    assert layers["layer"].tolist() == [0, 1, 2, 10, 11]


def test_csv_has_no_rounding_noise() -> None:
    table = pd.DataFrame({"score": [0.56 * 100, 100.0, math.nan], "lr": [1e-05, 2e-4, 1.0]})
    assert tables.to_csv(table).decode().splitlines() == ["score,lr", "56,1e-05", "100,0.0002", ",1"]


def test_map_keeps_the_distances_between_models_that_differ_in_two_directions() -> None:
    draw = np.random.default_rng(0)
    directions = draw.normal(size=(2, 50))
    directions -= directions.mean(axis=1, keepdims=True)  # the mean of a model's texts says how good it is, not where
    truth = draw.normal(size=(6, 2))
    vectors = truth @ directions + draw.normal(size=50) + draw.normal(size=(6, 1))
    places, shares = principal_axes(vectors)
    assert sum(shares) == pytest.approx(1.0) and shares[0] > shares[1]
    whole = truth @ directions
    for one, other in itertools.combinations(range(6), 2):
        apart = np.linalg.norm(whole[one] - whole[other])
        assert np.linalg.norm(places[one] - places[other]) == pytest.approx(apart)
    assert principal_axes(np.ones((3, 4)))[1] == (0.0, 0.0)
