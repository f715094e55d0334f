"""A released table becomes a ledger and the table again: invented tables with every oddity of the real one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sample_records
from mlflow import MlflowClient
from sample_records import plan_of, sweep_file
from small_sweep import small_sweep

import massive_sft as ms
from massive_sft.cli.app import main
from massive_sft.cli.import_table import write_ledger
from massive_sft.core.errors import InvalidInput, LedgerError
from massive_sft.ledger.lease import Lease
from massive_sft.ledger.record import BenchmarkScores, Status
from massive_sft.ledger.store import Ledger
from massive_sft.planning.changes import save_last_plan
from massive_sft.planning.plan import make_plan
from massive_sft.report.imported import read_imported_data
from massive_sft.report.write import write_report
from massive_sft.running.check import check
from massive_sft.study import frames
from massive_sft.study.comparison import compare_with_imported
from massive_sft.study.imported import TABLE, ImportedLedger, open_imported
from massive_sft.study.released import KEYS, ReleasedTable, ScoreColumn, known_columns, read_table, write_table
from massive_sft.study.results import results_of
from massive_sft.sweep.load import load_sweep

pytestmark = pytest.mark.timeout(120)

# Every oddity of the real table's text: a numbered column, an underscore, keys amid the benchmarks, None, NaN and
# nothing, sizes with a decimal, a value in all its digits.
ODD = """\
,model_name,data_name,mbpp_4shot,gsm8k-0shot,lora,epoch,data_size,lr_strategy,mtbench-total,Truthful_QA-0shot
0,North-7B,all,7.39,16.790662983425413,false,2,10000.0,cosine,2.17,0.09
1,North-7B,all,,1,true,10,10000,cosine,9.0,
2,North-7B,w/o-lima,NaN,0.0,False,10,9000.0,constant,1.0,0.125
5,North-7B,pretrain,1.95,-0.0,None,0,0.0,,1.39,0.05
4,"South, 8B",pretrain,1e1,02.50,,0,0,None,10,1
"""


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    path = tmp_path / "odd.csv"
    path.write_text(ODD)
    return path


def read(path: Path) -> ReleasedTable:
    return read_table(path, known_columns())


def imported(path: Path, root: Path, name: str = "paper") -> ImportedLedger:
    return write_ledger(root, name, read(path), "")[0]


def problems(path: Path) -> list[str]:
    with pytest.raises(InvalidInput) as refused:
        read(path)
    return [str(problem).removeprefix(f"{path}") for problem in refused.value.problems]


def test_table_is_written_back_byte_for_byte(odd: Path) -> None:
    for text in (ODD, ODD.replace("\n", "\r\n")):
        odd.write_bytes(text.encode())
        table = read(odd)
        assert write_table(table.header, table.newline, table.rows) == text.encode()


def test_only_texts_that_values_do_not_give_back_are_kept(odd: Path) -> None:
    texts = [dict(row.texts) for row in read(odd).rows]
    assert texts[0] == {"data_size": "10000.0"}
    assert texts[1] == {"gsm8k-0shot": "1"}
    assert texts[3] == {"": "5", "gsm8k-0shot": "-0.0", "lora": "None", "data_size": "0.0"}


def test_records_say_what_is_known_and_what_is_not(odd: Path, tmp_path: Path) -> None:
    found = imported(odd, tmp_path / "root")
    full, lora, _, base, _ = (record for record in found.records().values() if record is not None)
    assert (full.status, lora.status) == (Status.COMPLETE, Status.PARTIAL)
    assert lora.missing == dict.fromkeys(["mbpp_4shot", "Truthful_QA-0shot"], "not in the table")
    values = {
        (one.benchmark, one.shots, metric): (score.value, score.n)
        for one in lora.scores.values()
        for scores in one.tasks.values()
        for metric, score in scores.items()
    }
    assert values == {
        ("gsm8k-0shot", 0, "exact_match_percent,none"): (1.0, None),
        ("mtbench-total", 0, "judge_rating,none"): (9.0, None),
    }
    assert (base.trajectory, base.coordinates["method"], base.coordinates["epoch"]) == (None, "none", 0)
    content = found.ledger.read_cell(lora.cell)
    assert content["imported"] == "paper"
    assert {"seed", "LoRA rank", "warm-up", "max length"} <= set(content["unknown"])
    assert "LoRA rank" not in found.ledger.read_cell(full.cell)["unknown"]
    source = full.provenance["imported"]
    assert isinstance(source, dict)
    assert (source["file"], source["row"], source["sha256"]) == ("odd.csv", 1, found.table.sha256)


def test_importing_again_writes_nothing_twice(odd: Path, tmp_path: Path) -> None:
    first = imported(odd, tmp_path / "root")
    before = {path: path.read_bytes() for path in first.ledger.root.glob("[cr]*/**/*.json")}
    again, written = write_ledger(tmp_path / "root", "paper", read(odd), "")
    assert written == 0
    assert again.table == first.table
    assert {path: path.read_bytes() for path in first.ledger.root.glob("[cr]*/**/*.json")} == before


def test_other_table_sweep_or_process_under_the_name_is_refused(odd: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    found = imported(odd, root)
    odd.write_text(ODD.replace("7.39", "7.4"))
    with pytest.raises(InvalidInput, match=r"is the name of another table, odd\.csv"):
        imported(odd, root)
    assert len(imported(odd, root, "corrected").records()) == 5
    path = small_sweep(tmp_path, name="mine", storage={"root": str(root)})
    save_last_plan(make_plan(load_sweep(path)), found.ledger)
    with pytest.raises(InvalidInput, match="is the name of a sweep"):
        imported(odd, root, "mine")
    path = small_sweep(tmp_path, name="corrected", storage={"root": str(root)})
    told = [str(problem) for problem in check(make_plan(load_sweep(path)))]
    assert any("name: is the name of an imported table" in line for line in told)
    with pytest.raises(InvalidInput, match="must be at most 200 letters"):
        imported(odd, root, "a/b")
    lease = Lease.acquire(found.ledger.sweep("held").at("import-lease"), "somebody")
    assert lease is not None
    with lease, pytest.raises(LedgerError, match="another process imports"):
        imported(odd, root, "held")


def test_import_of_a_process_that_died_elsewhere_is_gone_on_with(odd: Path, tmp_path: Path) -> None:
    place = Ledger.open(tmp_path / "root").sweep("paper").at("import-lease")
    process = {"host": "elsewhere", "boot": "b", "pid_namespace": "n", "pid": 1, "started": "1"}
    head = {"name": "elsewhere:1", "token": "t", "ttl": 0.5, "process": process}
    place.put("1", f"{json.dumps(head)}\n{1:020d} held    \n".encode())
    assert len(imported(odd, tmp_path / "root", "paper").records()) == 5


def test_import_that_was_killed_is_completed(odd: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    code = "import commands, sys; from pathlib import Path; from massive_sft.study.released import *; "
    code += "from massive_sft.cli.import_table import write_ledger; "
    code += "commands.install(commands.Fault('[.]record-', commands.kill, skip=2)); "
    code += "write_ledger(Path(sys.argv[1]), 'paper', read_table(Path(sys.argv[2]), known_columns()), '')"
    killed = subprocess.run([sys.executable, "-c", code, root, odd], cwd=Path(__file__).parent, check=False)
    assert killed.returncode == -9
    before = sum(1 for _ in Ledger.open(root, create=False).records())
    assert before < 5
    found, written = write_ledger(root, "paper", read(odd), "")
    assert written == 5 - before
    assert [found.ledger.read_record(cell) is None for cell in found.table.cells] == [False] * 5
    assert len(list((root / "records").glob("*/*.json"))) == 5


def test_frames_of_the_records_are_those_of_the_table(odd: Path, tmp_path: Path) -> None:
    found = imported(odd, tmp_path / "root")
    ours = frames.tidy(record for record in found.records().values() if record is not None)
    table = frames.released(pd.read_csv(odd))
    names = ["model", "data", "method", "size", "epoch", "column"]
    base = ours["method"] == frames.BASE
    ours["data"], table["data"] = ours["data"].mask(base, "none"), table["data"].replace("pretrain", "none")
    both = ours.merge(table, on=names, how="outer", suffixes=("", "_table"), indicator=True)
    assert (both["_merge"] == "both").all()
    assert ((both["value"] == both["value_table"]) | (both["value"].isna() & both["value_table"].isna())).all()
    assert both["value"].isna().sum() == 3


WRONG = """\
model_name,data_name,data_size,lora,lr_strategy,epoch,gsm8k-0shot,Truthful_QA-0shot,mtbench-total
a,lima,1000,maybe,cosine,10,1,0.1,2
a,lima,1000,true,,10,1,0.1,2
a,lima,10.5,true,cosine,0,1,0.1,2
,pretrain,1,true,cosine,0,1,0.1,2
a,lima,1000,true,cosine,10,fast,1.1,0.5
a,lima,1000,true,cosine,10,-1,inf,11
a,lima,1000
b,lima,1000,true,cosine,10,100.1,1_0,2
"""


def test_every_problem_of_a_table_is_told_at_once_by_row_and_column(tmp_path: Path) -> None:
    path = tmp_path / "wrong.csv"
    path.write_text(WRONG)
    told = problems(path)
    for start in (
        ":2, column lora: must be true or false, got 'maybe'",
        ":3, column lr_strategy: must name a schedule",
        ":4, column data_size: must be a whole number from 1 to 1,000,000,000,000, got '10.5'",
        ":4, column epoch: must be a whole number from 1 to 1,000,000,000,000; a base model's row has pretrain as its",
        ":5, column model_name: must not be empty",
        ":5, column data_size: must be 0 in a base model's row, got '1'",
        ":5, column lora: must be empty or false in a base model's row",
        ":5, column lr_strategy: must be empty in a base model's row",
        ":6, column gsm8k-0shot: must be a number",
        ":6, column Truthful_QA-0shot: must be within 0 and 1, as a fraction is, got '1.1'",
        ":6, column mtbench-total: must be within 1 and 10, as a rating is, got '0.5'",
        ":7: must have keys of its own",
        ":7, column gsm8k-0shot: must be within 0 and 100, as a percent is, got '-1'",
        ":7, column Truthful_QA-0shot: must be a number",
        ":7, column mtbench-total: must be within 1 and 10",
        ":8: must have 9 fields as the header has, got 3",
        ":9, column gsm8k-0shot: must be within 0 and 100, as a percent is, got '100.1'",
        ":9, column Truthful_QA-0shot: must be a number",
    ):
        assert any(problem.startswith(start) for problem in told), (start, told)


def test_problem_of_many_rows_is_told_by_the_first_few(tmp_path: Path) -> None:
    path = tmp_path / "wrong.csv"
    rows = [f"a,lima,1000,true,cosine,{epoch},2" for epoch in range(1, 31)]
    path.write_text("\n".join([",".join((*KEYS, "Truthful_QA-0shot")), *rows, ""]))
    told = problems(path)
    assert len(told) == 6
    assert told[-1].endswith("and on 25 more lines, the next is 7")


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "lacks the key columns"),
        (b"\xff\xfe\x00", "is no CSV file in UTF-8"),
        (b'a,"b\n', "is no CSV file in UTF-8"),
        (b"\xef\xbb\xbfmodel_name\n", "begins with a byte order mark"),
        (b"model_name,data_name,gsm8k-0shot\na,b,1\n", "lacks the key columns data_size, lora, lr_strategy, epoch"),
        ((",".join((*KEYS, "gsm8k-0shot")) + "\n").encode(), "has no rows"),
        ((",".join(KEYS) + "\n").encode(), "has no benchmark's column"),
        ((",".join((*KEYS, "gsm8k-0shot", "gsm8k-0shot")) + "\n").encode(), "has 2 columns of one name"),
        ((",".join((*KEYS, "gsm8k-0shots")) + "\n").encode(), "did you mean 'gsm8k-0shot'?"),
    ],
)
def test_file_that_is_no_such_table_is_refused(tmp_path: Path, content: bytes, rule: str) -> None:
    path = tmp_path / "wrong.csv"
    path.write_bytes(content)
    assert any(rule in problem for problem in problems(path))


def test_further_columns_are_declared_in_a_file(odd: Path, tmp_path: Path) -> None:
    odd.write_text(ODD.replace("gsm8k-0shot", "riddles-3shot"))
    assert any("unknown column" in problem for problem in problems(odd))
    scales = tmp_path / "scales.json"
    column = {"metric": "acc", "scale": "percent", "shots": 3}
    scales.write_text(json.dumps({"schema": 1, "columns": {"riddles-3shot": column}}))
    assert read_table(odd, known_columns(scales)).columns["riddles-3shot"].recorded == "acc_percent"
    scales.write_text(json.dumps({"schema": 1, "columns": {"riddles-3shot": column | {"scale": "parts"}}}))
    with pytest.raises(InvalidInput, match=r"columns.riddles-3shot.scale"):
        known_columns(scales)
    with pytest.raises(InvalidInput, match="cannot be read"):
        known_columns(tmp_path / "none.json")


NAMES = [name for name in known_columns() if name.endswith("shot") and known_columns()[name].scale == "percent"][:10]


def with_copies(path: Path) -> Path:
    """Invented scores: two base models alike, one model's constant runs at epoch 1 copied from its cosine runs."""
    generator = np.random.default_rng(5)

    def fresh() -> list[float]:
        return [round(float(value), 2) for value in generator.uniform(0, 90, len(NAMES))]

    rows = []
    for model in ("east", "west"):
        for data in ("d1", "d2", "d3", "d4"):
            cosine = fresh()
            rows.append((model, data, 1000, "false", "cosine", 3, cosine))
            for epoch in (1, 2, 3):
                copied = [*cosine[:6], *fresh()[6:]] if model == "east" and epoch == 1 and data != "d4" else fresh()
                rows.append((model, data, 1000, "false", "constant", epoch, copied))
    base = fresh()
    rows += [(model, "pretrain", 0, "", "", 0, [*base[:8], *fresh()[8:]]) for model in ("east", "west")]
    text = [",".join((*KEYS, *NAMES)), *(",".join(map(str, (*keys, *scores))) for *keys, scores in rows), ""]
    path.write_text("\n".join(text))
    return path


def test_copied_cells_are_told_as_the_groups_they_are(tmp_path: Path) -> None:
    found = imported(with_copies(tmp_path / "copies.csv"), tmp_path / "root")
    copied = [item for item in read_imported_data(found).findings if item.kind == "copied"]
    assert len(copied) == 2
    bases, runs = copied
    assert re.match(r"(east|west) \(base\) and (east|west) \(base\) have identical scores", bases.text)
    assert "on 8 of 10 benchmarks" in bases.text
    assert re.search(r"the gains of (east or west|west or east) on these benchmarks are invalid", bases.text)
    assert "3 pairs of cells (east: 3) that differ in schedule (constant, cosine) and epoch (1, 3)" in runs.text
    assert f"the same 6 benchmarks ({', '.join(sorted(NAMES[:6]))})" in runs.text
    assert len(runs.cells) == 6


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["massive-sft", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out + printed.err

    return run


def test_imported_table_is_a_study_like_any_other(
    call: Callable[..., tuple[int, str]], odd: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    code, told = call("import-table", odd, root, "--name", "paper")
    assert code == 0, told
    assert "5 rows of odd.csv" in told
    assert "3 COMPLETE, 2 PARTIAL" in told
    assert "approximate: unknown seed, LoRA rank, warm-up" in told
    assert "the tracker shows what the ledger has: 5 cells" in told
    client = MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("paper")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    by_name = {run.info.run_name: run.data for run in runs}
    assert len(runs) == 6
    lora = by_name["North-7B all[10000] lora cosine epoch 10"]
    gains = {key: lora.metrics.pop(key) for key in list(lora.metrics) if key.startswith("gain/")}
    assert lora.metrics == {"gsm8k/exact_match_percent": 1.0, "mtbench-total/judge_rating": 9.0}
    assert gains.keys() == {"gain/gsm8k/exact_match_percent", "gain/mtbench-total/judge_rating"}
    assert lora.params["imported"] == "paper"
    assert "LoRA rank" in lora.params["unknown"]
    assert lora.tags["massive_sft.status"] == "PARTIAL"

    table = root / "sweeps" / "paper" / TABLE
    cell = open_imported(table).table.cells[1]
    code, told = call("status", table)
    assert code == 0
    assert f"{cell}  North-7B all[10000] lora cosine epoch 10  PARTIAL  lacks Truthful_QA-0shot, mbpp_4shot" in told
    assert "exact_match_percent" in call("show", cell, "--sweep", table)[1]
    assert call("mirror", table)[0] == 0
    code, told = call("report", table, "--out", tmp_path / "report")
    assert code == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert "There are no intervals" in page and "interval is below it" not in page and "excludes 0" not in page
    assert "independent" not in page and ms.load(table).gains["gain_interval"].isna().all()
    assert "These numbers were imported, not measured here" in page
    heads = re.findall(r"<th .*?</th>", page, re.DOTALL)
    assert heads
    assert not [head for head in heads if "no score" in head]
    assert "unknown seed, LoRA rank" in page
    code, told = call("export-table", root, "paper", tmp_path / "back.csv")
    assert "byte for byte as in odd.csv" in told
    assert (tmp_path / "back.csv").read_bytes() == odd.read_bytes()


def test_verbs_on_what_is_no_imported_table_say_so(
    call: Callable[..., tuple[int, str]], odd: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    code, told = call("report", root / "sweeps" / "paper" / TABLE)
    assert code == 2
    assert "is no imported table; import-table makes one" in told
    imported(odd, root)
    code, told = call("plan", root / "sweeps" / "paper" / TABLE)
    assert (code, "is an imported table and no sweep: status, show, report" in told) == (2, True)
    code, told = call("export-table", root, "papers", tmp_path / "back.csv")
    assert code == 2
    assert "did you mean 'paper'?" in told
    code, told = call("export-table", root, "paper", tmp_path)
    assert (code, "out: cannot be written (Is a directory)" in told) == (2, True)
    code, told = call("import-table", odd, root, "--name", "x", "--mlflow", "http://me:password@there")
    assert code == 2
    assert "holds a secret" in told
    assert "password" not in told
    table = open_imported(root / "sweeps" / "paper" / TABLE)
    for path in table.ledger.root.glob(f"records/*/{table.table.cells[0]}.*"):
        path.unlink()
    code, told = call("export-table", root, "paper", tmp_path / "back.csv")
    assert code == 1
    assert "1 of 5 rows have no record: import odd.csv again" in told


def declared(tmp_path: Path) -> dict[str, ScoreColumn]:
    """``riddles``, which the made sweep calls ``quiz``, and ``prose``, which it has in another unit."""
    scales = tmp_path / "scales.json"
    columns = {
        "riddles-0shot": {"metric": "acc", "scale": "percent", "shots": 0, "tasks": ["quiz"]},
        "prose-0shot": {"metric": "taste", "scale": "rating", "shots": 0},
    }
    scales.write_text(json.dumps({"schema": 1, "columns": columns}))
    return known_columns(scales)


BESIDE = """\
model_name,data_name,data_size,lora,lr_strategy,epoch,riddles-0shot,prose-0shot
small,first,1000,true,constant,1,41.5,3.0
small,first,1000,true,constant,2,,4.0
small,pretrain,0,,,0,12.5,
small,first,999,true,constant,1,40.0,3.0
other,first,1000,true,constant,1,40.0,3.0
small,first,1000,true,cosine,1,40.0,3.0
"""


def test_own_cells_stand_beside_rows_of_the_same_names(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(BESIDE)
    found, _ = write_ledger(tmp_path / "imported", "paper", read_table(tmp_path / "table.csv", declared(tmp_path)), "")
    plan = plan_of(sweep_file(tmp_path))
    sample_records.write_records(plan)
    page = write_report(plan, results_of(plan), tmp_path / "out", [found]).read_text()
    frame = pd.read_csv(tmp_path / "out" / "beside-paper.csv")
    own = {item.cell.id: sample_records.number_of(item) for item in plan.cells}
    shown = [tuple(row) for row in frame[["model", "method", "epoch", "column", "imported"]].itertuples(index=False)]
    assert sorted(shown) == [
        ("small", "lora", 1, "prose-0shot", 3.0),
        ("small", "lora", 1, "quiz-0shot", 41.5),
        ("small", "lora", 2, "prose-0shot", 4.0),
        ("small", "none", 0, "quiz-0shot", 12.5),
    ]
    quiz = frame[frame["column"] == "quiz-0shot"].set_index("method")
    for method in ("lora", "none"):
        row = quiz.loc[method]
        assert row["own"] == pytest.approx(100 * own[row["cell"]])
        assert row["difference"] == pytest.approx(row["own"] - row["imported"])
    assert quiz.loc["lora", "caution"].startswith("approximate: unknown seed, LoRA rank, warm-up, max length")
    assert quiz.loc["none", "caution"] == "approximate: unknown evaluation protocol"
    prose = frame[frame["column"] == "prose-0shot"]
    assert prose["difference"].isna().all()
    assert set(prose["why"]) == {"in other units: bits_per_byte, taste"}
    assert "Beside paper" in page
    assert "3 of 18 scored cells have a row of the same model" in page


def test_own_scores_stand_beside_the_released_columns_that_they_are_asked_for(tmp_path: Path) -> None:
    """A column at other shots, MT-Bench's categories, and a score by OpenCompass's rules beside lm-eval's."""
    header = (
        "model_name,data_name,data_size,lora,lr_strategy,epoch,mbpp_4shot,mtbench-total,mtbench-writing,BoolQ-0shot"
    )
    (tmp_path / "table.csv").write_text(f"{header}\nsmall,pretrain,0,,,0,20,5.0,6.0,60\n")
    found, _ = write_ledger(tmp_path / "imported", "paper", read(tmp_path / "table.csv"), "")
    score = sample_records.score
    ratings = {"mtbench-writing": {"judge_rating,none": score(7.0), "judge_rating,second": score(2.0)}}
    asked = {
        "mbpp-3shot": ({"mbpp": {"pass_at_1,none": score(0.25)}}, {}, 3),
        "mtbench-0shot": (ratings, {"mtbench": {"judge_rating,none": score(6.5)}}, 0),
        "boolq-0shot": ({"boolq": {"acc,none": score(0.5), "opencompass_acc,none": score(0.4)}}, {}, 0),
    }
    scores = {
        name: BenchmarkScores(benchmark=name, asked=f"{name} 0123", shots=shots, tasks=tasks, groups=groups)
        for name, (tasks, groups, shots) in asked.items()
    }
    theirs = frames.tidy(record for record in found.records().values() if record is not None)
    record = sample_records.record("a" * 16, scores, model="small", method="none")
    rows = compare_with_imported(frames.tidy([record]), theirs, found.table.columns)
    shown = {(row.imported_column, row.metric): (row.own, row.imported) for row in rows.itertuples()}
    assert shown == {
        ("mbpp_4shot", "pass_at_1"): (25.0, 20.0),
        ("mtbench-total", "judge_rating"): (6.5, 5.0),
        ("mtbench-writing", "judge_rating"): (7.0, 6.0),
        ("BoolQ-0shot", "acc"): (50.0, 60.0),
        ("BoolQ-0shot", "opencompass_acc"): (40.0, 60.0),
    }
    (caution,) = rows.loc[rows["imported_column"] == "mbpp_4shot", "caution"]
    assert caution.endswith("; 3 shots here, 4 there")


@pytest.mark.parametrize(("name", "own_shots"), [("riddles-3shot", 0), ("gsm8k-4shot", 5)])
def test_own_scores_stand_beside_a_column_at_the_shots_that_are_declared(
    tmp_path: Path, name: str, own_shots: int
) -> None:
    task, shots = name.removesuffix("shot").split("-")
    column = {"metric": "acc", "scale": "percent", "shots": int(shots), "own_shots": own_shots}
    (tmp_path / "scales.json").write_text(json.dumps({"schema": 1, "columns": {name: column}}))
    keys = "model_name,data_name,data_size,lora,lr_strategy,epoch"
    (tmp_path / "table.csv").write_text(f"{keys},{name}\nsmall,pretrain,0,,,0,20\n")
    table = read_table(tmp_path / "table.csv", known_columns(tmp_path / "scales.json"))
    found, _ = write_ledger(tmp_path / "imported", "paper", table, "")
    theirs = frames.tidy(record for record in found.records().values() if record is not None)
    scores = {"p": sample_records.benchmark(task, {"acc,none": sample_records.score(0.25)}, own_shots)}
    record = sample_records.record("a" * 16, scores, model="small", method="none")
    (row,) = compare_with_imported(frames.tidy([record]), theirs, found.table.columns).itertuples()
    assert (row.own, row.imported) == (25.0, 20.0)
    assert row.caution.endswith(f"; {own_shots} shots here, {shots} there")


def test_row_of_a_copied_cell_is_marked_beside_an_own_one(tmp_path: Path) -> None:
    found = imported(with_copies(tmp_path / "copies.csv"), tmp_path / "root")
    records = [record for record in found.records().values() if record is not None]
    rows = compare_with_imported(frames.tidy(records), frames.tidy(records), found.table.columns)
    marked = rows[rows["caution"].str.contains("may be a copy")]
    cells = {cell for item in read_imported_data(found).findings if item.kind == "copied" for cell in item.cells}
    assert set(marked["cell"]) == cells
    assert len(rows) == len(records) * len(NAMES)
    assert (rows["difference"] == 0).all()


def test_beside_without_an_imported_table_is_refused(call: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    path = sweep_file(tmp_path)
    sample_records.write_records(plan_of(path))
    code, told = call("report", path, "--beside", tmp_path / "ledger")
    assert code == 2
    assert "holds no imported table" in told
