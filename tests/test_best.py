"""``best``, ``answers`` and the table of scores after a run: who won, by how much, and what that is worth."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from calling import call
from rich.console import Console
from sample_records import benchmark, bonett_price, plan_of, score, sweep_file, write_records
from scipy import stats

import massive_sft as ms
from massive_sft.cli.answers import by_document
from massive_sft.cli.best import best_view
from massive_sft.cli.cell_names import short_names
from massive_sft.cli.diff import _shown
from massive_sft.cli.score_table import MAX_ROWS, score_table
from massive_sft.cli.show import _tree
from massive_sft.cli.views import score_texts, with_interval
from massive_sft.core.errors import InvalidInput
from massive_sft.ledger.record import Record, Status
from massive_sft.study.frames import to_json_rows
from massive_sft.sweep.cell import Coordinates


def with_values(path: Path, quiz: Callable[[Coordinates], float], half: float = 0.01, prose: float = 2.0) -> Path:
    """Write the sweep's records with these accuracies on ``quiz``, and the same bits per byte on ``prose``."""

    def change(record: Record) -> Record:
        at = Coordinates(**record.coordinates)  # type: ignore[arg-type]
        by_name = {item.benchmark: (protocol, item) for protocol, item in record.scores.items()}
        made = {}
        for name, (protocol, item) in by_name.items():
            number = score(quiz(at), half=half) if name == "quiz-0shot" else score(prose, higher=False)
            metric = "acc,none" if name == "quiz-0shot" else "bits_per_byte,none"
            made[protocol] = benchmark(name.removesuffix("-0shot"), {metric: number}, asked=item.asked)
        return record.model_copy(update={"scores": made})

    write_records(plan_of(path), change)
    return path


def by_setting(at: Coordinates) -> float:
    """LoRA is best at epoch 2; the second dataset, epoch 1 and full tuning each cost much; the base is worst."""
    if at.method == "none":
        return 0.1
    return 0.8 - 0.1 * (at.data == "second") - 0.2 * (at.epoch == 1) - 0.35 * (at.method == "full")


def test_best_of_each_model_comes_first_and_others_are_told_apart(tmp_path: Path) -> None:
    ranking = ms.load(with_values(sweep_file(tmp_path), by_setting)).best("quiz")
    first = ranking[ranking["rank"] == 1].set_index("model")
    assert (
        first[["mixture", "setting", "epoch", "value"]].loc[["small", "large"]].values.tolist()
        == [["first", "lora", 2, 0.8]] * 2
    )
    assert not ranking["tied"].fillna(False).any() and len(ranking) == 18
    assert ranking.groupby("model")["value"].apply(lambda values: values.is_monotonic_decreasing).all()
    assert ranking.loc[ranking["method"] == "none", "difference"].tolist() == pytest.approx([-0.7, -0.7])


def test_what_cannot_be_told_apart_is_marked(tmp_path: Path) -> None:
    path = with_values(sweep_file(tmp_path), by_setting, half=0.1)
    ranking = ms.load(path).best("quiz")
    half = math.hypot(0.1, 0.1)
    assert (ranking["tied"].fillna(False) == (ranking["difference"].abs() <= half + 1e-12)).all()
    code, text = call("best", path, "--metric", "quiz", "--where", "model=small")
    lines = text.splitlines()
    assert code == 0 and "acc, %; higher is better" in lines[0]
    assert lines[1].split() == ["small", "what", "value", "[95", "%]", "difference", "[95", "%]"]
    assert "first lora epoch 2 " in lines[2] and "80.0 [70.0, 90.0]" in lines[2]
    assert re.search(r"second lora epoch 2 +\*  ", lines[3]) and "-10.0 [-24.1, +4.1]" in lines[3]
    assert "(base)" in lines[4] and " *" not in lines[4]
    narrow = printed(best_view(to_json_rows(ranking), 18, "quiz"), 60).splitlines()
    assert len(narrow) > len(lines) and "*" not in map(str.strip, narrow), "a mark stands in its row"
    assert "large" not in text


def test_lower_is_better_where_the_task_says_so_and_equals_tie(tmp_path: Path) -> None:
    path = with_values(sweep_file(tmp_path), by_setting)
    ranking = ms.load(path).best("prose-0shot")
    assert not ranking["higher_is_better"].any() and ranking.loc[ranking["rank"] > 1, "tied"].all()
    printed = call("best", path, "--metric", "prose", "--where", "model=small")[1]
    assert "and 2 more with * (--json lists them)" in printed


def test_cells_without_the_score_are_counted(tmp_path: Path) -> None:
    path = sweep_file(tmp_path)
    run = plan_of(path).runs[0]
    left, others = {cell.cell.id for cell in run.cells}, f"model!={run.cells[0].cell.coordinates.model}"
    write_records(plan_of(path), lambda record: None if record.cell in left else record)
    assert "2 of 18 cells without this score" in call("best", path, "--metric", "quiz")[1]
    assert "without this score" not in call("best", path, "--metric", "quiz", "--where", others)[1]


def test_equal_candidates_are_in_one_order_whatever_is_loaded(tmp_path: Path) -> None:
    loaded = ms.load(with_values(sweep_file(tmp_path), lambda at: 0.5))
    whole, ranked = ms.load(loaded.ledger.root).best("quiz"), loaded.best("quiz")
    assert whole["cell"].tolist() == ranked["cell"].tolist()
    assert ranked["method"].tolist().index("none") == (ranked["model"] == ranked["model"][0]).sum() - 1


def test_cells_of_one_name_and_seed_are_candidates_of_their_own(tmp_path: Path) -> None:
    """As a storage root has them that was run into before a setting was changed and after."""
    block = {"name": "A", "model": "small", "mixture": "first", "setting": "full", "schedule": "constant"}
    for rate, value in ((1e-5, 0.9), (1e-3, 0.1)):
        settings = {"full": {"method": "full", "lr": rate, "batch": 32}}
        path = sweep_file(tmp_path, settings=settings, blocks=[block | {"horizon": 1, "snapshots": [1]}])
        loaded = ms.load(with_values(path, lambda at, value=value: 0.5 if at.method == "none" else value))
    whole = ms.load(loaded.ledger.root).best("quiz")
    assert whole[["setting", "seeds", "value"]].values.tolist() == [
        ["full", 1, 0.9],
        ["none", 1, 0.5],
        ["full", 1, 0.1],
    ]
    assert whole["cell"].is_unique and whole["difference"].tolist()[1:] == pytest.approx([-0.4, -0.8])
    assert loaded.best("quiz")["value"].tolist() == [0.5, 0.1]


def test_seeds_are_one_candidate_with_students_interval(tmp_path: Path) -> None:
    settings = {"full": {"method": "full", "lr": 1e-5, "batch": 32}}
    block = {"name": "A", "model": "small", "mixture": "one", "setting": "full", "schedule": "constant", "horizon": 1}
    blocks = [block | {"snapshots": [1], "override": {"seed": [0, 1, 2]}}]
    path = sweep_file(tmp_path, settings=settings, blocks=blocks)
    values = {0: 0.5, 1: 0.6, 2: 0.9}
    ranking = ms.load(with_values(path, lambda at: 0.1 if at.seed is None else values[at.seed])).best("quiz")
    assert ranking["seeds"].tolist() == [3, 3, 1]
    mean, spread = 2 / 3, stats.sem([0.5, 0.6, 0.9])
    low, high = stats.t.interval(0.95, 2, loc=mean, scale=spread)
    assert high > 1, "which no fraction can be"
    assert ranking.loc[0, ["value", "low", "high"]].tolist() == pytest.approx([mean, low, 1.0])
    assert "(3 seeds)" in call("best", path)[1]


def share(right: float) -> list[float]:
    """A hundred answers of which so many are right; where fewer are, these are right with more too."""
    return [float(doc % 10 < 10 * right) for doc in range(100)]


def write_samples(path: Path, values_of: Callable[[dict[str, Any]], list[float]]) -> None:
    """Write each cell's values of the questions of ``quiz``, by its coordinates."""
    results = ms.load(path)
    for record in results.records.values():
        protocol = next(name for name, item in record.scores.items() if item.benchmark == "quiz-0shot")
        about = {"task": "quiz", "metric": "acc", "filter": "none", "weight": None, "detail": None}
        rows = [about | {"doc": doc, "value": value} for doc, value in enumerate(values_of(record.coordinates))]
        file = results.ledger.cell_dir(record.cell) / "scores" / f"{protocol}.parquet"
        file.parent.mkdir(parents=True)
        pd.DataFrame(rows).to_parquet(file)


def test_questions_that_both_answered_are_compared_in_pairs(tmp_path: Path) -> None:
    """Whose intervals overlap widely are told apart where one answers all that the other does, and more."""
    path = with_values(sweep_file(tmp_path), lambda at: 0.7 if at.method == "lora" and at.epoch == 2 else 0.6, half=0.1)
    better, worse = share(0.7), share(0.6)
    write_samples(path, lambda at: better if at["method"] == "lora" and at["epoch"] == 2 else worse)
    ranking = ms.load(path).best("quiz").query("model == 'small'").reset_index(drop=True)
    same = ranking.loc[1]
    assert same["tied"] and same["difference"] == 0
    assert same["difference_high"] == pytest.approx(bonett_price(0, 0, 100)[1])
    assert ranking.loc[2:, "difference_high"].tolist() == pytest.approx([bonett_price(0, 10, 100)[1]] * 7)
    assert not ranking.loc[2:, "tied"].any()


def test_group_of_some_of_the_tasks_is_not_compared_by_the_questions_of_all(tmp_path: Path) -> None:
    """Also where its score is that of all: ten questions do not tell 60 % from 50 % because a hundred would."""
    rights = {"none": 0.5, "full": 0.5, "lora": 0.6}
    path = sweep_file(tmp_path)

    def change(record: Record) -> Record:
        right = rights[str(record.coordinates["method"])]
        groups = {name: {"acc,none": score(right, n=n, half=0.3)} for name, n in (("quiz", 100), ("part", 10))}
        made = {
            protocol: benchmark("quiz", {"acc,none": score(right)}, asked=item.asked, groups=groups)
            for protocol, item in record.scores.items()
            if item.benchmark == "quiz-0shot"
        }
        return record.model_copy(update={"scores": made})

    write_records(plan_of(path), change)
    write_samples(path, lambda at: share(rights[at["method"]]))
    results = ms.load(path)
    tied = {name: set(results.best(f"{name}/acc").query("method == 'full'")["tied"]) for name in ("quiz", "part")}
    assert tied == {"quiz": {False}, "part": {True}}


def test_seeds_are_compared_one_by_one(tmp_path: Path) -> None:
    """As the report does; two means whose intervals are wide are told apart where each seed's answers are."""
    block = {"name": "A", "model": "small", "mixture": "first", "setting": ["full", "lora"], "schedule": "constant"}
    path = sweep_file(tmp_path, blocks=[block | {"horizon": 1, "snapshots": [1], "override": {"seed": [0, 1]}}])
    right = {("none", None): 0.5, ("full", 0): 0.7, ("full", 1): 0.5, ("lora", 0): 0.9, ("lora", 1): 0.7}
    with_values(path, lambda at: right[at.method, at.seed], half=0.1)
    write_samples(path, lambda at: share(right[at["method"], at["seed"]]))
    full = ms.load(path).best("quiz").set_index("method").loc["full"]
    assert not full["tied"] and full["difference"] == pytest.approx(-0.2)
    assert (full["difference_low"], full["difference_high"]) == pytest.approx(bonett_price(0, 20, 100)), (
        "of both seeds alike"
    )


def test_metric_by_task_and_unknown_ones(tmp_path: Path) -> None:
    path = with_values(sweep_file(tmp_path), by_setting)
    results = ms.load(path)
    assert results.best("quiz/acc")["value"].tolist() == results.best("quiz/acc,none")["value"].tolist()
    assert list(dict.fromkeys(results.best()["column"])) == list(results.asked) == ["quiz-0shot", "prose-0shot"]
    for unknown in ("quizz", "quiz/f1"):
        with pytest.raises(InvalidInput, match=r"valid: prose-0shot, quiz-0shot"):
            results.best(unknown)
    code, text = call("best", path, "--metric", "quiz", "--json")
    rows = json.loads(text)
    assert (code, len(rows), rows[0]["tied"], rows[1]["tied"]) == (0, 18, None, False)


def test_benchmark_under_several_templates_is_named_by_them(tmp_path: Path) -> None:
    """In the columns of tables, and in what ``show`` says of the base model, which is scored under each."""
    own = {"prompt": "Q: {prompt} A: "}
    settings = {
        name: {"method": "lora", "lr": 1e-4, "batch": 32, "template": template}
        for name, template in (("full", "paper"), ("lora", own), ("plain", "plain"))
    }
    block = {"name": "A", "model": "small", "mixture": "one", "setting": list(settings), "schedule": "constant"}
    path = sweep_file(tmp_path, settings=settings, blocks=[block | {"horizon": 1, "snapshots": [1]}])
    plan = plan_of(path)
    write_records(plan)
    columns = list(dict.fromkeys(ms.load(path).scores.query("benchmark == 'quiz-0shot'")["column"]))
    assert {"quiz-0shot [paper]", "quiz-0shot [plain]"} < set(columns) and len(columns) == 3
    assert re.fullmatch(r"quiz-0shot \[[0-9a-f]{6}\]", next(name for name in columns if "[p" not in name))
    text = call("show", plan.base[0].cell.id, "--sweep", path)[1]
    assert all(name in text for name in columns)


def test_any_metric_under_several_templates_is_ranked_under_each(tmp_path: Path) -> None:
    """A base model is asked in each: its two scores are no two seeds."""
    settings = {name: {"method": "full", "lr": 1e-5, "batch": 32, "template": name} for name in ("paper", "plain")}
    block = {"name": "A", "model": "small", "mixture": "first", "setting": list(settings), "schedule": "constant"}
    path = sweep_file(tmp_path, settings=settings, blocks=[block | {"horizon": 1, "snapshots": [1]}])
    plan = plan_of(path)
    templates = {asked.id: asked.template for cell in plan.cells for asked in cell.requirements if asked.task}
    base = {"paper": 0.2, "plain": 0.8}

    def change(record: Record) -> Record:
        made = {}
        for protocol, item in record.scores.items():
            value = score(base[templates[item.asked]] if record.coordinates["method"] == "none" else 0.5)
            metrics = {"acc,none": value, "acc_norm,none": value}
            made[protocol] = benchmark(item.benchmark.removesuffix("-0shot"), metrics, asked=item.asked)
        return record.model_copy(update={"scores": made})

    write_records(plan, change)
    results = ms.load(path)
    wanted = {name: [(name, 0.5, 1), ("none", value, 1)] for name, value in base.items()}
    for metric, column in (
        ("quiz", "quiz-0shot [{}]"),
        ("quiz/acc", "quiz-0shot quiz/acc [{}]"),
        ("quiz/acc_norm", "quiz-0shot quiz/acc_norm [{}]"),
    ):
        ranked = results.best(metric)
        found = {
            column: sorted(rows[["setting", "value", "seeds"]].itertuples(index=False, name=None), reverse=True)
            for column, rows in ranked.groupby("column")
        }
        assert found == {column.format(name): sorted(rows, reverse=True) for name, rows in wanted.items()}


def test_answers_are_compared_under_the_template_that_both_cells_were_asked_in() -> None:
    """A base model answered in each; the other cell in its own, which comes first or last."""
    base = [
        {"protocol": name, "benchmark": "quiz", "task": "quiz", "doc": 0, "draw": 0, "answer": name}
        for name in ("a", "b")
    ]
    for own in ("a", "b"):
        (found,) = by_document(base, {own}).values()
        assert found["answer"] == own
    assert len(by_document(base, {"a", "b"})) == 2, "alone it shows both"
    assert len(by_document(base, {"c"})) == 1, "where none is shared the name decides"


def test_no_scores_yet_is_a_sentence(tmp_path: Path) -> None:
    path = sweep_file(tmp_path)
    write_records(plan_of(path), lambda record: None)
    assert call("best", path) == (0, "no scores yet\n")


WIDE = 200  # characters: room for all columns


def printed(view: Any, width: int = WIDE) -> str:
    console = Console(width=width)
    with console.capture() as text:
        console.print(view)
    return text.get()


def test_score_table_has_gains_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    results = ms.load(with_values(sweep_file(tmp_path), by_setting))
    lines = printed(score_table(results, set(results.records), WIDE)).splitlines()
    assert "quiz-0shot" in lines[0] and "prose-0shot" in lines[0]
    assert "acc %" in lines[1] and "bits_per_byte" in lines[1]
    assert "(base)" in lines[2] and "(base)" in lines[3] and lines[2].split()[-2:] == ["10", "2"]
    assert len(lines) == 2 + 18 + 1 and any("80 (+70)" in line for line in lines)
    lora = set(results.cells.query("method == 'lora'")["cell"])
    chosen = printed(score_table(results, lora, WIDE)).splitlines()
    assert len(chosen) == 2 + 8 + 1 and all("(+" in line for line in chosen[2:-1])
    assert ("↓" in "".join(lines[:2])) == ("↓" in lines[-1]), "the legend explains what is there"
    assert printed(score_table(results, set(), WIDE)) == ""


def test_score_table_goes_on_below_where_benchmarks_have_no_room(tmp_path: Path) -> None:
    results = ms.load(with_values(sweep_file(tmp_path), by_setting))
    cells, width = set(results.records), 70
    parts = printed(score_table(results, cells, width), width).split("\n\n")
    assert ["quiz-0shot" in part for part in parts] == [True, False]
    rows = [line for part in parts for line in part.splitlines() if line[:12] in {cell[:12] for cell in cells}]
    assert len(rows) == 2 * 18, "no row is wrapped"


def test_names_in_the_score_table_leave_out_what_all_cells_share() -> None:
    one = {"model": "m", "data": "d", "setting": "s", "method": "full", "size": 100, "schedule": "cosine"}
    one |= {"horizon": 3, "epoch": 1, "seed": 0, "variant": ""}
    base = one | {"data": "none", "method": "none", "size": None, "epoch": 0, "seed": None}
    assert short_names([base, one, one | {"epoch": 2}]) == ["m (base)", "m d s epoch 1", "m d s epoch 2"]
    other = one | {"size": None, "schedule": "constant", "horizon": None, "seed": 1, "variant": "lora.rank=8,lr=1e-05"}
    assert short_names([one, other]) == [
        "m d[100] s cosine/3 seed 0 epoch 1",
        "m d[all] s constant seed 1 lora.rank=8, lr=1e-05 epoch 1",
    ]


def test_score_table_of_many_cells_is_cut(tmp_path: Path) -> None:
    block = {"name": "A", "model": "all", "mixture": "one", "setting": ["full", "lora"], "schedule": "constant"}
    blocks = [block | {"horizon": 5, "snapshots": "1..5"}]
    results = ms.load(with_values(sweep_file(tmp_path, blocks=blocks), by_setting))
    assert f"and {42 - MAX_ROWS} cells more" in printed(score_table(results, set(results.records), WIDE))


def lacking_quiz(path: Path, lacks: Callable[[Coordinates], bool]) -> Path:
    """Write the sweep's records, PARTIAL without ``quiz`` where ``lacks`` says so, as after an extension by it."""

    def change(record: Record) -> Record:
        if not lacks(Coordinates(**record.coordinates)):  # type: ignore[arg-type]
            return record
        scores = {name: item for name, item in record.scores.items() if item.benchmark != "quiz-0shot"}
        missing = {"quiz-0shot": "its snapshot was removed"}
        return record.model_copy(update={"scores": scores, "missing": missing, "status": Status.PARTIAL})

    write_records(plan_of(path), change)
    return path


def test_score_table_has_the_benchmarks_in_the_order_of_the_sweep_file(tmp_path: Path) -> None:
    tasks = [{"name": "quiz", "shots": 0}, {"name": "prose", "shots": 0}]
    path = lacking_quiz(sweep_file(tmp_path, evaluation={"tasks": tasks}), lambda at: at.epoch == 1)
    results = ms.load(path)
    head = printed(score_table(results, set(results.records), WIDE)).splitlines()[0]
    assert head.split() == ["quiz-0shot", "prose-0shot"]


@pytest.mark.parametrize("metric", ["quiz", "quiz-0shot", "quiz/acc"])
def test_cells_that_lack_a_score_are_left_out_of_its_ranking(metric: str, tmp_path: Path) -> None:
    path = lacking_quiz(sweep_file(tmp_path), lambda at: at.method == "lora")
    ranking = ms.load(path).best(metric)
    assert len(ranking) == 10 and set(ranking["method"]) == {"full", "none"} and ranking["value"].notna().all()


@pytest.mark.parametrize("metric", ["quiz", "quiz-0shot", "quiz/acc"])
def test_known_benchmark_without_any_score_is_a_sentence(metric: str, tmp_path: Path) -> None:
    path = sweep_file(tmp_path)
    write_records(plan_of(path), lambda record: None)
    assert call("best", path, "--metric", metric) == (0, f"no cell has a score on {metric} yet\n")
    lacking_quiz(path, lambda at: True)
    assert call("best", path, "--metric", metric) == (0, f"no cell has a score on {metric} yet\n")
    assert len(ms.load(path).best("prose")) == 18
    code, text = call("best", path, "--metric", "quizz")
    assert code != 0 and "no score of the sweep has this name" in text and "quiz-0shot" in text


def test_base_that_is_tied_is_not_counted_again_among_the_rest(tmp_path: Path) -> None:
    path = with_values(sweep_file(tmp_path), lambda at: 0.5)
    ranking = ms.load(path).best("quiz").query("model == 'small'").to_dict("records")
    for place in (1, 5, 8):  # of the base, among those that are shown and behind them
        base = next(row for row in ranking if row["method"] == "none")
        others = [row for row in ranking if row is not base]
        rows = [*others[:place], base, *others[place:]]
        text = printed(best_view([row | {"rank": rank} for rank, row in enumerate(rows, 1)], len(rows)))
        counted = [int(line.split()[1]) for line in text.splitlines() if line.strip().startswith("and ")]
        assert text.count("first ") + text.count("second ") + text.count("(base)") + counted[0] == 9


def test_best_fits_a_terminal_of_80_columns(tmp_path: Path) -> None:
    path = with_values(sweep_file(tmp_path), by_setting, half=0.1)
    text = printed(best_view(to_json_rows(ms.load(path).best("quiz")), 18), width=80)
    cells = ms.load(path).cells["cell"]
    lines = [line for line in text.splitlines() if line[:16] in set(cells)]
    assert len(lines) == 6 and all("epoch" in line or "(base)" in line for line in lines)
    assert all("]" in line for line in lines)


def test_gain_without_an_interval_is_never_bold(tmp_path: Path) -> None:
    def bare(record: Record) -> Record:
        scores = {
            protocol: item.model_copy(
                update={
                    "tasks": {task: {key: made.model_copy(update={"interval": None}) for key, made in metrics.items()}}
                }
            )
            for protocol, item in record.scores.items()
            for task, metrics in item.tasks.items()
        }
        return record.model_copy(update={"scores": scores})

    path = sweep_file(tmp_path)
    write_records(plan_of(path), bare)
    results = ms.load(path)
    console = Console(width=200, force_terminal=True, color_system="truecolor")
    with console.capture() as text:
        console.print(score_table(results, set(results.cells.query("method != 'none'")["cell"]), WIDE))
    rows = text.get().splitlines()[2:]  # below a bold head of two lines
    assert any("(+" in row or "(-" in row for row in rows) and "\x1b[1m" not in "".join(rows)


@pytest.mark.parametrize("left_of_zero", [1.388e-17, -2.8e-17])
def test_what_rounding_left_of_zero_is_shown_as_zero(left_of_zero: float) -> None:
    at_zero = score(0.0).model_copy(update={"interval": (left_of_zero, 0.1332)})
    assert score_texts("acc,none", at_zero, False)["interval"] == "0 .. 13.32"
    assert with_interval("acc", 0.0, (left_of_zero, 0.1332), "+") == "+0.0 [+0.0, +13.3]"


def test_end_of_an_interval_beside_zero_shows_its_side() -> None:
    assert with_interval("acc", -0.058, (-0.1144, -0.000355), "+") == "-5.8 [-11.4, -0.04]"


def test_differing_numbers_are_shown_with_as_many_digits_as_it_takes() -> None:
    assert _shown(0.00027620792388916016, 0.004443421959877014) == ("0.000276208", "0.00444342")
    assert _shown(1.0000000001, 1.0000000002) == ("1.0000000001", "1.0000000002")
    assert _shown(0.1 + 0.2, 0.3) == ("0.30000000000000004", "0.29999999999999999")
    assert _shown("a", 3) == ("a", "3")


def test_layers_are_shown_in_their_order() -> None:
    change = {"relative": 0.5, "by_layer": {str(layer): layer / 10 for layer in (0, 1, 10, 11, 2)}}
    shown = " ".join(_tree(change).plain.split())
    assert shown == "relative: 0.5 by_layer 0: 0 1: 0.1 2: 0.2 10: 1 11: 1.1"
    many = {"by_layer": {str(layer): layer / 10 for layer in range(12)}}
    assert _tree(many).plain == "  by_layer: 0 ▁▂▂▃▄▄▅▅▆▇▇█ 1.1 (12 layers)"
