"""The report of hand-made ledgers: whole, safe, offline, honest about what is missing."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sample_records import plan_of, sweep_file, write_records

from massive_sft.ledger.loss_curve import StepDone, to_line
from massive_sft.ledger.record import Record, Status
from massive_sft.report import chart, formatting, html_table, relations, report_data
from massive_sft.report.section import FigureBlock
from massive_sft.report.write import write_report
from massive_sft.study.results import results_of

NO_BASE = "the base model has no record"
VOID = {"meta", "link", "br", "wbr", "hr", "img", "input"}


class Page(HTMLParser):
    """Collects what a test asks of a page; fails on tags that do not match."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.text.setdefault(self.open[-1], []).append(data.strip())

    def rows(self, key: str) -> dict[str, Any]:
        """The data of a table."""
        at = [dict(attrs).get("id") for tag, attrs in self.elements if tag == "script"].index(f"rows-{key}")
        content: dict[str, Any] = json.loads(self.text["script"][at])
        return content


def report(plan: Any, out: Path) -> Page:
    return Page(write_report(plan, results_of(plan), out).read_text())


@pytest.fixture
def page(tmp_path: Path) -> Page:
    plan = plan_of(sweep_file(tmp_path))
    write_records(plan)
    return report(plan, tmp_path / "out")


def test_report_of_a_finished_sweep_has_every_section(page: Page) -> None:
    ids = [attrs["id"] for tag, attrs in page.elements if tag == "section"]
    assert ids == [
        "troubles",
        "ran",
        "gains",
        "differences",
        "scores",
        "epochs",
        "losses",
        "perplexity",
        "layers",
        "data",
        "provenance",
    ]
    assert "18 COMPLETE" in page.text["span"]
    assert len(page.rows("scores")["rows"]) == 36
    assert len(page.rows("gains")["rows"]) == 8
    facets = [[c["label"] for c in page.rows(key)["columns"] if c["kind"] == "facet"] for key in ("gains", "scores")]
    assert facets == [["model", "mixture", "setting"], ["benchmark", "model", "mixture", "setting", "epoch", "seed"]]


def test_report_loads_nothing_from_anywhere(page: Page) -> None:
    for tag, attrs in page.elements:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base"}
        assert not {"src", "srcset", "style:url"} & set(attrs)
        assert not re.match(r"(?i)(https?:)?//", attrs.get("href") or "")
    assert "http" not in " ".join(page.text["style"])
    policy = next(attrs["content"] for _, attrs in page.elements if "http-equiv" in attrs)
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_report_is_accessible(page: Page) -> None:
    charts = [attrs for tag, attrs in page.elements if tag == "svg" and "aria-hidden" not in attrs]
    assert charts
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in charts)
    assert all(attrs.get("scope") == "col" for tag, attrs in page.elements if tag == "th")
    assert [tag for tag, _ in page.elements].count("table") == [tag for tag, _ in page.elements].count("caption")


def test_names_of_users_never_become_markup(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{7*7}}"
    hub = {"hub": "someone/thing", "revision": "a" * 40}
    changes = {
        "models": {evil: hub},
        "datasets": {evil: {**hub, "format": "alpaca"}},
        "mixtures": {evil: {"each": [evil], "samples": 10}},
        "settings": {evil: {"method": "full", "lr": 1e-5, "batch": 8}},
        "blocks": [
            {
                "name": "A",
                "model": evil,
                "mixture": evil,
                "setting": evil,
                "schedule": "constant",
                "horizon": 2,
                "snapshots": [1, 2],
            }
        ],
        "evaluation": {"tasks": [{"name": evil}]},
    }
    plan = plan_of(sweep_file(tmp_path, **changes))

    def fail(record: Record) -> Record:
        if record.coordinates["epoch"] != 1:
            return record
        return record.model_copy(update={"status": Status.FAILED, "error": evil, "scores": {}})

    write_records(plan, fail)
    text = write_report(plan, results_of(plan), tmp_path / "out").read_text()
    page = Page(text)
    assert text.count("<script") == 1 + text.count('<script type="application/json"')
    assert not [tag for tag, attrs in page.elements if tag == "img" or any(name.startswith("on") for name in attrs)]
    assert evil in page.rows("scores")["columns"][1]["levels"]
    assert "49" not in str(page.rows("scores")["columns"])
    assert any(evil in row[1] for row in page.rows("troubles")["rows"])


def test_missing_scores_are_shown_as_missing(tmp_path: Path) -> None:
    plan = plan_of(sweep_file(tmp_path))

    def change(record: Record) -> Record | None:
        if record.coordinates["model"] == "large" and record.coordinates["method"] == "none":
            return None
        if record.coordinates["setting"] == "lora" and record.coordinates["data"] == "second":
            return None
        if record.coordinates["epoch"] == 2 and record.coordinates["setting"] == "lora":
            return record.model_copy(update={"status": Status.DIVERGED, "error": "loss is not finite", "scores": {}})
        return record

    write_records(plan, change)
    page = report(plan, tmp_path / "out")
    heats = [(row, cell) for row in page.rows("gains")["rows"] for cell in row if isinstance(cell, list)]
    missing = [cell for _, cell in heats if cell[2] == "missing"]
    assert len(missing) == 12
    assert all(cell[0] == formatting.MISSING for cell in missing)
    assert {cell[5] for cell in missing} == {f"missing: {why}" for why in ("loss is not finite", "WAITING", NO_BASE)}
    kinds = page.rows("troubles")["columns"][0]["levels"]
    assert kinds == ["base", "DIVERGED", "to do"]
    stored = pd.read_csv(tmp_path / "out" / "table.csv")
    assert stored.loc[stored["status"] == "DIVERGED", "quiz-0shot"].isna().all()
    assert pd.read_parquet(tmp_path / "out" / "table.parquet").shape == stored.shape


def test_report_of_a_sweep_that_has_not_begun_says_so(tmp_path: Path) -> None:
    plan = plan_of(sweep_file(tmp_path))
    plan.open_ledger()
    page = report(plan, tmp_path / "out")
    assert "18 WAITING" in page.text["span"]
    assert "18 of 18 cells WAITING: not in this report" in page.rows("troubles")["rows"][0]


@pytest.mark.parametrize("kept", ["base", "one", "bare", "failed", "no base"])
def test_report_of_any_state_is_a_whole_page(kept: str, tmp_path: Path) -> None:
    plan = plan_of(sweep_file(tmp_path))
    first = plan.cells[0].cell.id

    def change(record: Record) -> Record | None:
        is_base = record.trajectory is None
        if kept == "failed":
            return record.model_copy(update={"status": Status.FAILED, "error": "no memory", "scores": {}})
        if kept == "bare":
            return record.model_copy(update={"measures": {}, "training": {}, "counts": {}, "provenance": {}})
        return record if {"base": is_base, "one": record.cell == first, "no base": not is_base}[kept] else None

    write_records(plan, change)
    page = report(plan, tmp_path / "out")
    assert "made" in page.text["h1"]
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert len(table) == {"base": 2, "one": 1, "bare": 18, "failed": 18, "no base": 16}[kept]


def test_unsound_files_are_findings(tmp_path: Path) -> None:
    plan = plan_of(sweep_file(tmp_path))
    ledger = write_records(plan)
    next(ledger.root.glob("trajectories/*/training/*/losses.jsonl")).write_text("{")
    next(ledger.root.glob("records/*/*.json")).write_text("{}")
    texts = [row[1] for row in report(plan, tmp_path / "out").rows("troubles")["rows"]]
    assert any("is no loss curve" in text for text in texts)
    assert any("does not match its checksum" in text for text in texts)


def test_scores_that_the_sweep_does_not_ask_for_are_left_out(tmp_path: Path) -> None:
    write_records(plan_of(sweep_file(tmp_path)))
    plan = plan_of(sweep_file(tmp_path, evaluation={"tasks": [{"name": "quiz", "shots": 0}]}))
    page = report(plan, tmp_path / "out")
    assert page.rows("scores")["columns"][0]["levels"] == ["quiz-0shot"]


def test_scores_still_to_come_are_named(tmp_path: Path) -> None:
    write_records(plan_of(sweep_file(tmp_path)))
    plan = plan_of(
        sweep_file(
            tmp_path, evaluation={"tasks": [{"name": "quiz", "shots": 0}, {"name": "prose", "shots": 0, "limit": 7}]}
        )
    )
    (row,) = report(plan, tmp_path / "out").rows("troubles")["rows"]
    assert row[1].startswith("18 cells without prose-0shot as the sweep asks for it now")


def test_filter_is_named_with_its_metric(tmp_path: Path) -> None:
    plan = plan_of(sweep_file(tmp_path))

    def change(record: Record) -> Record:
        scores = {
            protocol: made.model_copy(update={"tasks": {"quiz": {"acc,strict-match": made.tasks["quiz"]["acc,none"]}}})
            for protocol, made in record.scores.items()
            if "quiz" in made.tasks
        }
        return record.model_copy(update={"scores": record.scores | scores})

    write_records(plan, change)
    page = report(plan, tmp_path / "out")
    metric = [column["label"] for column in page.rows("scores")["columns"]].index("metric")
    assert {row[metric] for row in page.rows("scores")["rows"]} == {"acc (strict-match)", "bits_per_byte"}
    assert any("acc (strict-match) %" in text for text in page.text["small"])


def test_mixture_has_one_row_a_model_unless_settings_made_other_data_of_it(tmp_path: Path) -> None:
    plan = plan_of(sweep_file(tmp_path))
    write_records(plan, lambda record: _measured_alike(record, cut=0))
    columns, rows = (report(plan, tmp_path / "out").rows("data")[name] for name in ("columns", "rows"))
    assert len(rows) == 4
    assert "settings" not in [column["label"] for column in columns]
    other = plan_of(sweep_file(tmp_path, storage={"root": str(tmp_path / "other")}))
    write_records(other, lambda record: _measured_alike(record, cut=7))
    page = report(other, tmp_path / "out")
    columns, rows = (page.rows("data")[name] for name in ("columns", "rows"))
    at = [column["label"] for column in columns].index("settings")
    assert sorted(row[at] for row in rows) == ["full"] * 4 + ["lora"] * 4
    measured = page.rows("data-perplexity")  # the cut made no other perplexity
    assert len(measured["rows"]) == 4 and "settings" not in [column["label"] for column in measured["columns"]]


def _measured_alike(record: Record, cut: int) -> Record:
    """The record with the same perplexity for every cell, and ``cut`` truncated samples under LoRA."""
    if record.trajectory is None:
        return record
    counts = {"total": {"samples": 1000, "truncated": cut if record.coordinates["method"] == "lora" else 0}}
    over = {"perplexity_micro": 2.0, "tokens": 500}
    return record.model_copy(update={"counts": counts, "measures": {"perplexity": {"schema": 3, "all": over}}})


def test_table_has_what_people_plot_behind_the_released_columns(tmp_path: Path) -> None:
    plan = plan_of(sweep_file(tmp_path))
    write_records(plan)
    report(plan, tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "table.csv").set_index("cell")
    details = ["lr", "batch", "perplexity_all", "perplexity_response", "layer_change"]
    assert list(table.columns)[-7:] == [*details, "gain prose-0shot", "gain quiz-0shot"]
    base = table[(table["data_name"] == "pretrain") & (table["model_name"] == "small")].iloc[0]
    row = table[(table["setting"] == "lora") & (table["model_name"] == "small")].iloc[0]
    assert (row["lr"], row["batch"]) == (1e-4, 32)
    assert row["gain quiz-0shot"] == pytest.approx(row["quiz-0shot"] - base["quiz-0shot"])
    assert base[[*details[:2], "gain quiz-0shot"]].isna().all()


def test_epochs_of_a_run_stand_together_in_order_wherever_blocks_name_them(tmp_path: Path) -> None:
    blocks = [
        {"name": name, "model": "small", "mixture": "one", "setting": "full", "schedule": "constant"}
        | {"horizon": 10, "snapshots": snapshots}
        for name, snapshots in (("A", [10, 2]), ("B", [1, 3]))
    ]
    plan = plan_of(sweep_file(tmp_path, blocks=blocks))
    write_records(plan)
    report(plan, tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    for _, rows in table[table["data_name"] != "pretrain"].groupby("data_name"):
        assert rows["epoch"].tolist() == [1, 2, 3, 10]
        assert rows.index.tolist() == list(range(rows.index[0], rows.index[0] + 4))


def test_seeds_stand_beside_each_other_at_an_epoch_beyond_which_one_of_them_went_on(tmp_path: Path) -> None:
    block = {"model": "small", "mixture": "first", "setting": "lora", "schedule": "constant", "horizon": 3}
    blocks = [
        block | {"name": "A", "snapshots": [2, 3]},
        block | {"name": "B", "snapshots": [2], "override": {"seed": [1, 2]}},
    ]
    plan = plan_of(sweep_file(tmp_path, blocks=blocks))
    write_records(plan)
    columns, rows = (report(plan, tmp_path / "out").rows("gains")[name] for name in ("columns", "rows"))
    at = [column["label"] for column in columns].index("seeds")
    assert sorted((columns[3]["levels"][row[3]], row[at]) for row in rows) == [("2", "3 of 3"), ("3", "1 of 1")]


@pytest.mark.parametrize(("trained", "without"), [(["all", "rest"], "rest-second"), (["one", "all", "rest"], "first")])
def test_differences_show_methods_datasets_left_out_and_means(trained: list[str], without: str, tmp_path: Path) -> None:
    """All less the second dataset is the first; where that is trained under its own name, it is the one to compare."""
    mixtures = {"one": {"each": ["first", "second"], "samples": 100}, "all": {"concat": ["one"]}}
    mixtures |= {"rest": {"leave_one_out": "all"}}
    block = {"name": "A", "model": "all", "mixture": trained, "setting": ["full", "lora"]}
    block |= {"schedule": "constant", "horizon": 1, "snapshots": [1]}
    plan = plan_of(sweep_file(tmp_path, mixtures=mixtures, blocks=[block]))
    write_records(plan)
    page = report(plan, tmp_path / "out")
    scores = pd.read_csv(tmp_path / "out" / "table.csv").set_index(["model_name", "data_name", "setting"])["quiz-0shot"]

    def shown(key: str) -> dict[tuple[str, ...], float]:
        """The first benchmark's differences by the facets before it."""
        columns, rows = (page.rows(key)[name] for name in ("columns", "rows"))
        at = [column["label"] for column in columns].index("quiz-0shot")
        texts = [[column["levels"][row[i]] for i, column in enumerate(columns[:3])] for row in rows]
        return {tuple(text): float(row[at][0].replace("−", "-")) for text, row in zip(texts, rows, strict=True)}

    lora = shown("lora-full")["small", "all[200]", "lora − full"]
    assert lora == pytest.approx(scores["small", "all", "lora"] - scores["small", "all", "full"], abs=0.051)
    left_out = shown("left-out")
    assert len(left_out) == 8
    given = scores["large", "all", "full"] - scores["large", without, "full"]
    assert left_out["large", "second in all", "full"] == pytest.approx(given, abs=0.051)
    assert {name for name, _, _ in shown("model-mean")} == {"all models"}
    assert {name for _, name, _ in shown("mixture-mean")} == {"all mixtures"}


def test_two_entries_that_leave_one_out_of_a_mixture_make_no_pair_twice(tmp_path: Path) -> None:
    mixtures = {"one": {"each": ["first", "second"], "samples": 100}, "all": {"concat": ["one"]}}
    mixtures |= {name: {"leave_one_out": "all"} for name in ("rest", "less")}
    block = {"name": "A", "model": "small", "mixture": ["all", "rest", "less"], "setting": "full"}
    block |= {"schedule": "constant", "horizon": 1, "snapshots": [1], "override": {"seed": [0, 1]}}
    plan = plan_of(sweep_file(tmp_path, mixtures=mixtures, blocks=[block]))
    write_records(plan)
    columns, rows = (report(plan, tmp_path / "out").rows("left-out")[name] for name in ("columns", "rows"))
    at = [column["label"] for column in columns].index("seeds")
    assert [row[at] for row in rows] == ["2 of 2", "2 of 2"]


def test_differences_count_the_cells_that_are_still_to_come(tmp_path: Path) -> None:
    models = {name: {"hub": f"some/{name}", "revision": "a" * 40} for name in "abc"}
    block = {"name": "A", "model": "all", "mixture": "one", "setting": ["full", "lora"], "schedule": "constant"}
    block |= {"horizon": 2, "snapshots": [1, 2], "override": {"seed": [0, 1]}}
    plan = plan_of(sweep_file(tmp_path, models=models, blocks=[block]))

    def is_done(record: Record) -> bool:
        names = record.coordinates
        first_seed = names["seed"] != 1 or (names["method"], names["epoch"]) == ("full", 2)
        return first_seed and (names["model"], names["data"]) != ("c", "second")

    write_records(plan, lambda record: record if is_done(record) else None)
    page = report(plan_of(plan.sweep.path), tmp_path / "out")

    def shown(key: str, *names: str) -> set[tuple[str, ...]]:
        table = page.rows(key)
        found = {column["label"]: position for position, column in enumerate(table["columns"])}

        def text(row: list[Any], name: str) -> str:
            column = table["columns"][found[name]]
            return str(column["levels"][row[found[name]]] if column["kind"] == "facet" else row[found[name]])

        return {tuple(text(row, name) for name in names) for row in table["rows"]}

    means = {("all models", "first[1000]", "full", "6 of 6"), ("2 of 3 models", "second[1000]", "full", "4 of 6")}
    assert means <= shown("model-mean", "model", "mixture", "setting", "runs")
    mixtures = {("a", "all mixtures", "full", "4 of 4"), ("b", "all mixtures", "lora", "2 of 4")}
    assert mixtures <= shown("mixture-mean", "model", "mixture", "setting", "runs")
    assert {seeds for (seeds,) in shown("lora-full", "seeds")} == {"1 of 2"}


def test_mean_over_fewer_mixtures_than_its_row_s_tells_their_number(tmp_path: Path) -> None:
    block = {"name": "A", "model": "small", "mixture": "one", "setting": "full", "schedule": "constant"}
    block |= {"horizon": 1, "snapshots": [1]}
    names = ("first", "second", "third")
    datasets = {name: {"hub": f"some/{name}", "revision": "a" * 40, "format": "alpaca"} for name in names}
    mixtures = {"one": {"each": list(names), "samples": 1000}}
    plan = plan_of(sweep_file(tmp_path, datasets=datasets, mixtures=mixtures, blocks=[block]))

    def without_quiz(record: Record) -> Record:
        if record.coordinates["data"] != "second":
            return record
        scores = {name: scores for name, scores in record.scores.items() if scores.benchmark != "quiz-0shot"}
        return record.model_copy(update={"scores": scores})

    write_records(plan, without_quiz)
    table = report(plan, tmp_path / "out").rows("mixture-mean")
    (row,) = (dict(zip((one["label"] for one in table["columns"]), row, strict=True)) for row in table["rows"])
    assert row["runs"] == "3 of 3"
    assert row["quiz-0shot"][1].endswith(", 2 of 3") and " of " not in row["prose-0shot"][1]


def test_what_is_noted_of_layers_correlations_stands_in_their_chart() -> None:
    notes = pd.Series(["hangs on one point"] * 2 + [""])
    assert relations._layer_notes(notes) == "\nhangs on one point (2 of 3 layers)"
    assert relations._layer_notes(pd.Series(["too few", ""])) == ""


def test_loss_curve_is_thinned_and_broken_where_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "losses.jsonl"
    losses = [1.0, 3.0, *[2.0] * 300]
    losses[200] = math.nan
    steps = [StepDone(i, 1 if i < 151 else 2, loss, 1e-5, 1.0, 9, 3, 1.0) for i, loss in enumerate(losses)]
    path.write_text("".join(map(to_line, steps)))
    curve = report_data.read_curve(path)
    assert (len(curve.points), curve.steps) == (76, 4)
    assert curve.points[0] == (2.5 / 151, 2.0)
    assert sum(value != value for _, value in curve.points) == 1


def test_loss_curve_that_ends_within_its_first_epoch_is_drawn_so_far(tmp_path: Path) -> None:
    path = tmp_path / "losses.jsonl"
    path.write_text("".join(to_line(StepDone(i, 1, 2.0, 1e-5, 1.0, 9, 3, 1.0)) for i in range(2)))
    assert report_data.read_curve(path, 8).points == [(1 / 8, 2.0), (2 / 8, 2.0)]


@pytest.mark.parametrize("value", [None, float("nan"), pd.NA, float("inf")])
def test_no_number_is_a_dash(value: Any) -> None:
    assert formatting.format_number(value) == "—"
    assert formatting.format_score(value, "acc") == "—"


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.0"), (-0.0001, "−0.00010"), (12.345, "12.3"), (0.5, "0.500"), (1234.5, "1234")]
)
def test_number_keeps_three_digits(value: float, text: str) -> None:
    assert formatting.format_number(value) == text


def test_scores_are_percent_where_people_read_percent() -> None:
    assert formatting.format_score(0.1234, "acc") == "12.3"
    assert formatting.format_score(-0.25, "exact_match", signed=True) == "−25.0"


def test_small_gain_is_not_shown_as_none() -> None:
    assert formatting.format_score(0.000473, "bits_per_byte", signed=True) == "+0.0005"
    assert formatting.format_score(-0.0003, "acc", signed=True) == "−0.03"
    assert formatting.format_score(0.0, "acc", signed=True) == "0.0"
    assert formatting.format_score(1.23456, "bits_per_byte") == "1.235"
    assert formatting.format_interval(-0.11, 0.004, "acc", True, short=True) == "−11.0 to +0.4"
    assert formatting.format_interval(-0.114, -0.000355, "acc", True, short=True) == "−11.40 to −0.04"
    assert formatting.format_interval(-2.8e-17, 0.1332, "acc") == "0.0 to 13.3"
    assert formatting.format_interval(-0.11, 0.0, "acc", True, short=True) == "−11 to 0"


def test_chart_without_a_finite_point_is_empty() -> None:
    assert chart.Panel("t", "x", "y", [chart.Line("l", [(1.0, float("nan"))], 0)]).svg == ""


def test_chart_breaks_its_line_at_missing_points() -> None:
    points = [(0.0, 1.0), (1.0, 2.0), (2.0, float("nan")), (3.0, 1.0), (4.0, 2.0)]
    (path,) = re.findall(r'class="line[^"]*" d="([^"]*)"', chart.Panel("t", "x", "y", [chart.Line("l", points, 0)]).svg)
    assert (path.count("M"), path.count("L")) == (2, 2)


def test_chart_labels_of_small_ticks_leave_room_for_the_axis() -> None:
    page = chart.Panel("t", "x", "y", [chart.Line("l", [(0.0, 2e-4), (1.0, 9e-4)], 0)]).svg
    assert "4e\N{MINUS SIGN}4" in page and "e\N{MINUS SIGN}0" not in page


@pytest.mark.parametrize(
    ("ends", "log", "expected"),
    [
        ((0.0004, 0.0016), False, ["0.0005", "0.001", "0.0015"]),
        ((1e-4, 2e-4), False, ["1e−4", "1.5e−4", "2e−4"]),
        ((0.0, 2e6), False, ["0", "5e5", "1e6", "1.5e6", "2e6"]),
        ((0.0, 1.2e4), False, ["0", "5k", "10k"]),
        ((1e-5, 0.1), True, ["1e−5", "1e−4", "1e−3", "1e−2", "1e−1"]),
        ((10.0, 1e5), True, ["10", "100", "1k", "10k", "100k"]),
    ],
)
def test_ticks_of_an_axis_are_exact_and_in_one_notation(
    ends: tuple[float, float], log: bool, expected: list[str]
) -> None:
    panel = chart.Panel("t", "x", "y", [chart.Line("l", [(0.0, ends[0]), (1.0, ends[1])], 0)], log_y=log)
    assert re.findall(r'class="end">([^<]*)<', panel.svg) == expected


def test_last_tick_of_a_chart_ends_within_it() -> None:
    page = chart.Panel("t", "x", "y", [chart.Line("l", [(0.0006, 0.0), (0.00251, 1.0)], 0)]).svg
    (middle,) = re.findall(r'<text x="([^"]*)" [^>]*class="mid">0.0025<', page)
    assert float(middle) + 3 * len("0.0025") < 340


def test_spots_of_points_that_tell_nothing_are_grey_like_their_line() -> None:
    line = chart.Line("l", [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)], 0, marked=True, faint=[True, True, False])
    found = re.findall(
        r'class="(line|spots) c0 f0(?: d0)?( faint)?" d="([^"]*)"', chart.Panel("t", "x", "y", [line]).svg
    )
    counts = {(kind, grey.strip()): path.count("h0") or path.count("L") for kind, grey, path in found}
    assert counts == {("spots", ""): 1, ("line", "faint"): 2, ("spots", "faint"): 2}


def test_spots_of_many_points_leave_their_line_to_be_seen_and_no_point_is_lost() -> None:
    values = [1.0] * 30
    line = chart.Line("l", [(float(at), value) for at, value in enumerate(values)], 0, marked=True)
    assert 6 <= chart.Panel("t", "x", "y", [line]).svg.count("h0") <= 12
    values[10:16] = [math.nan, 1.0] * 3  # each alone
    alone = chart.Line("l", [(float(at), value) for at, value in enumerate(values)], 0, marked=True)
    svg = chart.Panel("t", "x", "y", [alone]).svg
    (drawn,) = re.findall(r'class="line[^"]*" d="([^"]*)"', svg)
    (spots,) = re.findall(r'class="spots[^"]*" d="([^"]*)"', svg)
    places = {*re.findall(r"[\d.]+ [\d.]+(?=h0)", spots)}
    lonely = [part for part in drawn.split("M")[1:] if "L" not in part]
    assert len(lonely) == 2 and places.issuperset(lonely)


def test_line_of_one_point_is_a_spot() -> None:
    spots = [chart.Panel("t", "x", "y", [chart.Line("l", [(1.0, 2.0), (2.0, end)], 0)]).svg for end in (math.nan, 3.0)]
    assert ['class="spots' in svg for svg in spots] == [True, False]


def test_axis_of_one_small_value_is_about_that_value() -> None:
    axis = chart.Axis.over([5e-5, 5e-5], 0, 100, False)
    assert 0 < axis.low < 5e-5 < axis.high < 1e-4


def test_chart_ticks_are_round_and_inside() -> None:
    for low, high in [(0.0, 1.0), (-0.3, 0.7), (12.0, 13.0), (1e-5, 2e-5), (5.0, 5.0)]:
        axis = chart.Axis.over([low, high], 0, 100, False)
        assert 2 <= len(axis.ticks(5)) <= 11
        assert all(axis.low <= tick <= axis.high for tick in axis.ticks(5))


def test_json_in_a_script_cannot_end_it() -> None:
    text = html_table.safe_json({"a": "</script><!--\u2028"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": "</script><!--\u2028"}


def test_troubles_count_cells_and_the_head_spans_all_trainings(tmp_path: Path) -> None:
    plan = plan_of(sweep_file(tmp_path))
    earlier = write_records(plan, lambda record: record.model_copy(update={"created": "2026-01-30T08:15:00+00:00"}))

    def rescore(record: Record) -> Record:
        if record.coordinates["setting"] != "lora":
            return record
        scores = {name: item for name, item in record.scores.items() if "quiz" not in item.benchmark}
        missing = {"quiz-0shot": "its snapshot was removed"}
        return record.model_copy(update={"scores": scores, "missing": missing, "status": Status.PARTIAL})

    write_records(plan, rescore)
    page = report(plan, tmp_path / "out")
    assert "PARTIAL: 8 cells." in page.text["p"] and earlier.root == plan.root
    assert any(text.startswith("2026-01-30\N{NO-BREAK SPACE}08:15 to 2026-01-31") for text in page.text["dd"])


def test_training_whose_last_epoch_failed_is_told_up_to_the_epoch_before(tmp_path: Path) -> None:
    plan = plan_of(sweep_file(tmp_path))

    def fail(record: Record) -> Record:
        if (record.coordinates["setting"], record.coordinates["epoch"]) != ("full", 2):
            return record
        nothing: dict[str, Any] = {"scores": {}, "measures": {}, "training": {}, "counts": {}, "files": {}}
        return record.model_copy(update={**nothing, "status": Status.FAILED, "error": "its snapshot has no room"})

    write_records(plan, fail)
    page = report(plan, tmp_path / "out")
    assert {"8 of 8", "102.4 k"} <= set(page.text["dd"]), "training runs, tokens"
    assert len(page.rows("data-perplexity")["rows"]) == 8, "each run"
    titles = page.text["title"]
    curve = re.compile(r"small first\[1000\] full seed 0: 64 steps, loss .* at the first, .* at the last \(COMPLETE\)")
    assert any(map(curve.fullmatch, titles)), "loss"
    assert any(title.startswith("first[1000] full epoch 1: 2 layers") for title in titles), "layer profile"


def test_lines_of_a_chart_differ_in_colour_or_dash(tmp_path: Path) -> None:
    block = {"name": "A", "model": "small", "mixture": "one", "setting": "full", "schedule": "constant"}
    block |= {"horizon": 2, "snapshots": [1, 2], "override": {"lr": [1e-6 * step for step in range(1, 9)]}}
    plan = plan_of(sweep_file(tmp_path, blocks=[block]))
    write_records(plan)
    text = write_report(plan, results_of(plan), tmp_path / "out").read_text()
    drawn = text[text.index('aria-label="small: relative change') :].partition("</svg>")[0]
    looks = re.findall(r'<path class="line (c\d+ f\d+ d\d+)', drawn)
    assert len(looks) == 16 and len(set(looks)) == 16
    assert {0, *map(int, re.findall(r"svg \.d(\d+) \{", text))} == set(range(chart.DASHES)), "each dash is drawn"


def test_dots_of_a_crowded_chart_tell_their_series() -> None:
    dots = [chart.Dot(f"dot {at}", float(at), float(at), at % 12, 0, series=f"m{at % 12} lora") for at in range(61)]
    drawn = chart.Panel("t", "x", "y", dots=dots).svg
    assert re.findall("<title>(.*?)</title>", drawn) == [f"m{number} lora" for number in range(12)]
    few = chart.Panel("t", "x", "y", dots=dots[:60]).svg
    assert re.findall("<title>(.*?)</title>", few) == [f"dot {at}" for at in range(60)]


@pytest.mark.parametrize("key", [{"shape": 0}, {"marked": True}])
def test_legend_has_a_mark_for_each_of_thirty_names_and_tells_what_shares_one(key: dict[str, Any]) -> None:
    def legend(count: int) -> list[tuple[str, str]]:
        keys = [chart.Key(f"m{number}", colour=number, **key) for number in range(count)]
        return [(str(mark), name) for mark, name in FigureBlock({}, keys).legend]

    assert [name for _, name in legend(30)] == [f"m{number}" for number in range(30)]
    assert [name for _, name in legend(31)] == ["m0 or m30", *(f"m{number}" for number in range(1, 30))]


def test_marks_of_more_than_ten_names_differ_in_charts_and_legends(tmp_path: Path) -> None:
    names = [f"d{number}" for number in range(11)]
    hub = {"revision": "a" * 40, "format": "alpaca"}
    datasets = {name: {"hub": f"some/{name}", **hub} for name in names}
    models = {f"m{number}": {"hub": f"some/m{number}", "revision": "a" * 40} for number in range(11)}
    block = {"name": "A", "model": "all", "mixture": names[0], "setting": "lora"}
    block |= {"schedule": "constant", "horizon": 1, "snapshots": [1]}
    blocks = [block, block | {"name": "B", "model": "m0", "mixture": names}]
    mixtures = {name: {"weights": {name: 1}, "samples": 1000} for name in names}
    plan = plan_of(sweep_file(tmp_path, models=models, datasets=datasets, mixtures=mixtures, blocks=blocks))
    write_records(plan)
    text = write_report(plan, results_of(plan), tmp_path / "out").read_text()
    lines = text[text.index('aria-label="m0: relative change') :].partition("</svg>")[0]
    spots = re.findall(r'<path class="spots (c\d+ f\d+)"', lines)
    assert len(set(spots)) == 11, "every mixture"
    scatter = text[text.index('aria-label="quiz-0shot: better, % against perplexity') :].partition("</svg>")[0]
    dots = re.findall(r'<path class="dot (c\d+ f\d+)" d="[^"]*"><title>(m\d+) ', scatter)
    assert len(dots) == 21 and len(set(dots)) == len({tone for tone, _ in dots}) == 11, "every model"
    for kind in ("spots", "dot"):
        assert {0, *map(int, re.findall(rf"svg \.{kind}\.f(\d+) \{{", text))} == set(range(chart.FILLS))
    legends = re.findall(r'<p class="legend">(.*?)</p>', text, re.DOTALL)
    for legend in legends:
        marks = re.findall(r"<span>(<svg.*?</svg>)", legend)
        assert len(marks) == len(set(marks))
