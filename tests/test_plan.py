"""The plan: pure, instant, and honest about what is not known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_sweep import small_sweep
from test_cell import base_file, block, changed

from massive_sft.cli.plan import plan_json
from massive_sft.core.checksummed_json import seal
from massive_sft.core.errors import Corrupt, InvalidInput
from massive_sft.core.files import write_json
from massive_sft.core.fingerprint import FileHashes, hash_file
from massive_sft.ledger.record import Record, Revision, Status, dump_record
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import make_plan, storage_root, token_key
from massive_sft.suites.task_files import task_facts
from massive_sft.sweep.cell import Recipe
from massive_sft.sweep.load import Sweep, check_sweep, load_sweep
from massive_sft.sweep.task_content import TaskContent


def sweep_in(folder: Path, **changes: object) -> Sweep:
    return check_sweep(base_file() | {"storage": {"root": str(folder / "ledger")}} | changes, folder / "x.yaml")


def test_plan_of_a_new_sweep_has_everything_to_do_and_writes_nothing(tmp_path: Path) -> None:
    plan = make_plan(sweep_in(tmp_path, blocks=[block(snapshots="1..3")]))
    assert plan.statuses == {Status.WAITING: 4}
    assert [run.steps_per_epoch for run in plan.runs] == [4]
    assert plan.runs[0].tokens_per_epoch is None
    assert list(tmp_path.iterdir()) == []


def test_plan_json_is_json_with_null_for_what_is_unknown(tmp_path: Path) -> None:
    mixtures = {"each": {"each": ["d1", "d2"]}}
    made = json.loads(json.dumps(plan_json(make_plan(sweep_in(tmp_path, mixtures=mixtures)))))
    assert made["runs"][0]["steps_per_epoch"] is None
    assert made["sharing"]["run_samples"] is None


def test_resources_first_matching_rule_wins(tmp_path: Path) -> None:
    resources = [
        {"when": {"phase": "evaluate"}, "gpus_per_replica": 1},
        {"when": {"method": "lora"}, "gpus": 1, "zero": 1},
        {"when": {"mixture": "each", "model": "all"}, "gpus": 8, "zero": 3},
        {"gpus": 2},
    ]
    sweep = sweep_in(tmp_path, resources=resources, blocks=[block(setting=["full", "lora"], mixture=["d1", "all"])])
    plan = make_plan(sweep)
    layouts = {
        (run.trajectory.recipe.mixture.name, run.trajectory.recipe.setting_name): run.layout for run in plan.runs
    }
    assert {key: (layout.gpus, layout.workers, layout.stage) for key, layout in layouts.items()} == {
        ("d1", "full"): (8, 8, 3),
        ("d1", "lora"): (1, 1, 1),
        ("all", "full"): (2, 2, 1),
        ("all", "lora"): (1, 1, 1),
    }
    assert make_plan(sweep_in(tmp_path)).runs[0].layout.gpus == 0


def test_rules_that_come_to_nothing_are_said(tmp_path: Path) -> None:
    resources = [
        {"when": {"method": "lora"}, "gpus": 1, "replicas": 2},
        {"when": {"setting": "lora"}, "gpus": 4},
        {"when": {"model": "m2"}, "gpus": 8},
        {"when": {"phase": "evaluate"}, "gpus_per_replica": 2},
    ]
    plan = make_plan(sweep_in(tmp_path, resources=resources, blocks=[block(setting=["full", "lora"])]))
    told = [f"{str(item.place).partition(': ')[2]}: {item.rule}" for item in plan.warnings]
    assert told == [
        "resources: no rule matches 1 of 2 training runs, e.g. m1 d1 full: one worker trains them on the CPU",
        "resources[1]: is never reached: earlier rules take all 1 training runs that it matches",
        "resources[2]: matches no training run",
        "resources[3].gpus_per_replica: are given to each scorer, but it loads a model on the first of them only",
    ]


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({"facts": 0.7, "arith": 0.3}, []),
        ({"facts": 3, "arith": 1}, []),
        ({"arith": 0.5, "facts": 0.7}, ["add up to 1.2, not 1: taken in proportion, arith 41.7%, facts 58.3%"]),
    ],
)
def test_weights_that_are_no_fractions_of_one_are_said_with_what_they_come_to(
    tmp_path: Path, weights: dict[str, float], told: list[str]
) -> None:
    plan = make_plan(load_sweep(small_sweep(tmp_path, mixtures={"one": {"weights": weights, "samples": 96}})))
    assert [item.rule for item in plan.warnings] == told
    assert all(item.place.endswith("sweep.yaml: mixtures.one.weights") for item in plan.warnings)


def test_task_is_known_by_its_content_and_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(folder: str, question: str, data: str = "data.jsonl") -> str:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        (place / "data.jsonl").write_text(json.dumps({"q": question}))
        (place / "t.yaml").write_text(
            'task: t\ndataset_kwargs: {data_files: {test: "' + data + '"}}\nx: !function f.g\n'
        )
        sweep = sweep_in(tmp_path, evaluation={"tasks": [{"path": str(place / "t.yaml")}]})
        return make_plan(sweep).cells[0].requirements[0].id

    first = asked("a", "one")
    assert first.startswith("t@0 ")
    monkeypatch.setenv("BENCH", str(tmp_path / "a"))
    named = asked("c", "", data="${BENCH}/data.jsonl")
    (tmp_path / "a" / "data.jsonl").write_text("{}")
    assert asked("c", "", data="${BENCH}/data.jsonl") != named
    first = asked("a", "one")
    assert asked("b", "one") == first
    assert asked("b", "two") != first


def test_task_is_known_by_what_it_includes_and_a_group_by_its_members(tmp_path: Path) -> None:
    files = {
        "group.yaml": "group: g\ntask: [a, {group: more, task: [b]}]\n",
        "below/a.yaml": "include: base.inc\ntask: a\n",
        "below/base.inc": "dataset_kwargs: {data_files: {test: data.jsonl}}\n",
        "below/data.jsonl": "{}",
        "b.yaml": "task: [x]\ntag: b\n",
        "other.yaml": "task: other\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def asked() -> str:
        return make_plan(sweep_in(tmp_path, evaluation={"tasks": [{"path": "group.yaml"}]})).cells[0].requirements[0].id

    for name, moves in {"below/data.jsonl": True, "below/base.inc": True, "b.yaml": True, "other.yaml": False}.items():
        before = asked()
        with (tmp_path / name).open("a") as file:
            file.write("\n# more" if name.endswith("jsonl") else "\nlimit: 1\n")
        assert (asked() != before) == moves, name


@pytest.mark.parametrize(
    "text", ["- a", "task: &a [*a]", "task: x\ninclude: t.yaml", "x: !function", "x: !function [1]", "\udcff"]
)
def test_task_file_of_a_strange_shape_is_known_by_its_bytes(tmp_path: Path, text: str) -> None:
    ids = []
    for number in range(2):
        (tmp_path / "t.yaml").write_bytes(f"{text} # {number}".encode(errors="surrogateescape"))
        plan = make_plan(sweep_in(tmp_path, evaluation={"tasks": [{"path": "t.yaml"}]}))
        ids.append(plan.cells[0].requirements[0].id)
    assert all(one.startswith("t@0 ") for one in ids)


@pytest.mark.parametrize(
    "odd",
    [
        "metadata: {updated: 2024-05-01}",
        "metadata: {updated: 2024-05-01T10:00:00+02:00}",
        "metadata: {7: x}",
        'doc_to_choice: {0: "no", 1: "yes"}',
        "metadata: {threshold: .inf}",
        "metadata: {threshold: .nan}",
        "metadata: {key: !!binary aGVsbG8=}",
        "metadata: {kinds: !!set {a, b, c}}",
    ],
)
def test_task_file_with_values_that_json_has_not_is_known_by_its_data_too(tmp_path: Path, odd: str) -> None:
    file, data, base = tmp_path / "t.yaml", tmp_path / "q.jsonl", tmp_path / "base.inc"
    found = {}
    for name, text in (("data", "data_files: {test: q.jsonl}"), ("includes", "include: base.inc"), ("none", "a: b")):
        file.write_text(f"task: t\n{text}\n{odd}\n")
        ids = []
        for rows in ("1", "2", "1"):
            data.write_text(rows)
            base.write_text(f"{odd.replace('metadata', 'm')}\nn: {rows}\n")
            ids.append(TaskContent(FileHashes()).of(file))
        assert ids[0] == ids[2]
        found[name] = ids
    assert found["data"][0] != found["data"][1]
    assert found["includes"][0] != found["includes"][1]
    assert found["none"] == [f"sha256:{hash_file(file)}"] * 3


def test_values_of_a_task_file_that_look_alike_are_not_alike(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    (tmp_path / "q.jsonl").write_text("1")
    ids = []
    for odd in ("7", '"7"', "2024-05-01", '"2024-05-01"', "true", '"true"', ".inf", '".inf"', "inf"):
        file.write_text(f"task: t\ndata_files: q.jsonl\nmetadata: {{0: {odd}}}\n")
        ids.append(TaskContent(FileHashes()).of(file))
    assert len(set(ids)) == len(ids)


def test_id_of_a_task_file_with_a_set_is_that_of_every_session(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("1")
    (tmp_path / "t.yaml").write_text("task: t\ndata_files: q.jsonl\nm: !!set {a, b, c, d}\n")
    code = "from massive_sft.sweep.task_content import *; print(TaskContent(FileHashes()).of(Path('t.yaml')))"
    ids = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, cwd=tmp_path, capture_output=True
        ).stdout
        for seed in "123"
    }
    assert len(ids) == 1 and ids.pop().startswith(b"task:")


@pytest.mark.timeout(20)
def test_device_and_pipe_are_no_data(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", str(tmp_path / "pipe")):
        datasets = {"d1": {"path": path, "format": "alpaca"}}
        plan = make_plan(sweep_in(tmp_path, datasets=datasets, mixtures={"each": {"each": ["d1"]}}))
        assert "is no file but a device, pipe or socket" in str(plan.missing[0])


def asked_of(tmp_path: Path, setting: str, **changes: Any) -> set[str]:
    blocks = [block(setting=["full", "lora"])]
    plan = make_plan(sweep_in(tmp_path, blocks=blocks, **changes))
    return {item.id for cell in plan.cells if cell.cell.coordinates.setting == setting for item in cell.requirements}


def test_merging_adapters_asks_nothing_of_cells_without_one(tmp_path: Path) -> None:
    def evaluation(adapters: str) -> dict[str, Any]:
        return {"tasks": [{"name": "boolq"}], "protocol": {"adapters": adapters}}

    for setting, same in {"full": True, "none": True, "lora": False}.items():
        one, other = (asked_of(tmp_path, setting, evaluation=evaluation(how)) for how in ("merged", "unmerged"))
        assert one and (one == other) == same, setting


def test_end_tokens_of_a_local_model_are_part_of_what_is_asked(tmp_path: Path) -> None:
    path = small_sweep(tmp_path)
    config = tmp_path / "world" / "models" / "tiny-llama" / "generation_config.json"
    found = []
    for ends in (1, [1], [2, 1], [1, 2], None):
        config.write_text(json.dumps({"eos_token_id": ends}))
        plan = make_plan(load_sweep(path))
        found.append({item.id for cell in plan.cells for item in cell.requirements if item.task})
    assert found[0] == found[1] != found[2] == found[3] != found[4] != found[0]


def test_version_of_a_named_task_is_part_of_what_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = tmp_path / "lm_eval" / "tasks"
    (tasks / "few").mkdir(parents=True)
    (tmp_path / "lm_eval" / "__init__.py").touch()
    (tasks / "few" / "_few.yaml").write_text(
        '"group": few\ntask: [{group: inner, task: [tagged]}, plain]\nmetadata: {version: 1}\n'
    )
    (tasks / "few" / "a.yaml").write_text('"tag": "tagged"\n"task": "few_a"\n"include": "_base"\n')
    (tasks / "few" / "_base").write_text("metadata:\n  note: x\n  version: 3.0\n")
    (tasks / "few" / "plain.yaml").write_text("task: plain\noutput_type: x\n")
    (tasks / "few" / "own.yaml").write_text("task: own\nclass: !function code.Own\n")
    (tasks / "few" / "code.py").write_text("class Own: VERSION = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "lm_eval", raising=False)
    memory = tmp_path / "memory"
    names = ["few", "own", "none"]
    first = {name: facts.versions for name, facts in task_facts(names, memory).items()}
    assert (first["few"]["few"], first["few"]["few_a"], first["none"]) == ("1", "3.0", {})
    assert first["few"].keys() == {"few", "few_a", "plain"}
    assert {name: facts.versions for name, facts in task_facts(names, memory).items()} == first
    ((installation, known),) = json.loads(memory.read_text()).items()
    of_another_version = installation.rpartition(" ")[0]
    for key, change in (
        *((installation, {field: None}) for field in known["few"]),
        (installation, {"shots": ["0"]}),
        (installation, {"tags": []}),
        (of_another_version, {"versions": {"few": "0"}}),
    ):
        memory.write_text(json.dumps({key: known | {"few": known["few"] | change}}))
        assert task_facts(names, memory)["few"].versions == first["few"], change
    memory.write_text(json.dumps({installation: known | {"few": {"few": "1", "files": {}}}}))
    assert task_facts(names, memory)["few"].versions == first["few"]
    (tasks / "few" / "_base").write_text("metadata:\n  version: 4.0\n")
    (tasks / "few" / "code.py").write_text("class Own: VERSION = 22\n")
    second = {name: facts.versions for name, facts in task_facts(names, memory).items()}
    assert second["few"] == first["few"] | {"few_a": "4.0"}
    assert second["own"] != first["own"]


def test_missing_task_file_is_reported_as_missing(tmp_path: Path) -> None:
    plan = make_plan(sweep_in(tmp_path, evaluation={"tasks": [{"path": "none.yaml"}]}))
    assert "evaluation.tasks[0].path: there is no such file" in str(plan.missing[0])


def test_unknown_suite_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="paper_zero_shot"):
        make_plan(sweep_in(tmp_path, evaluation={"suites": ["papers"]}))


COMMIT = "3" * 40


def test_lock_pins_models_and_datasets_apart(tmp_path: Path) -> None:
    lock = {"commits": {"models": {"org/m1": {"main": COMMIT}}, "datasets": {"org/d1": {"main": COMMIT}}}}
    write_json(tmp_path / "ledger" / "sweeps" / "test" / "lock.json", lock)
    plan = make_plan(sweep_in(tmp_path))
    assert not plan.unpinned
    assert plan.runs[0].trajectory.recipe.model.revision == COMMIT


@pytest.mark.parametrize("lock", ["", "[]", "{}", '{"commits": {"models": {"org/m1": "main"}}}'])
def test_damaged_lock_is_a_sentence(tmp_path: Path, lock: str) -> None:
    path = tmp_path / "ledger" / "sweeps" / "test" / "lock.json"
    path.parent.mkdir(parents=True)
    path.write_text(lock)
    with pytest.raises(Corrupt, match=r"lock\.json: is n"):
        make_plan(sweep_in(tmp_path))


def recipe_in(folder: Path, place: str = "name", value: object = "test") -> Recipe:
    file = changed(place, value) | {"storage": {"root": str(folder / "ledger")}}
    return make_plan(check_sweep(file, folder / "x.yaml")).runs[0].trajectory.recipe


SHAPES_SAMPLES = [
    ("models.m1.revision", "2" * 40),
    ("datasets.d1.revision", "2" * 40),
    ("datasets.d1.filter", {"task": "x"}),
    ("datasets.d1.limit", 500),
    ("datasets.d1.strip", ["<s>"]),
    ("datasets.d1.format", "gsm8k"),
    ("mixtures.sample_seed", 1),
    ("mixtures.each.samples", 101),
    ("settings.full.template", "plain"),
    ("settings.full.loss_on", "all"),
    ("settings.full.max_length", 1024),
    ("settings.full.truncation", "left"),
]


@pytest.mark.parametrize(("place", "value"), SHAPES_SAMPLES)
def test_what_shapes_samples_moves_the_token_key(tmp_path: Path, place: str, value: object) -> None:
    assert token_key(recipe_in(tmp_path, place, value)) != token_key(recipe_in(tmp_path))


def test_new_training_semantics_move_the_token_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = token_key(recipe_in(tmp_path))
    monkeypatch.setattr("massive_sft.sweep.cell.TRAIN_SEMANTICS", 999)
    assert token_key(recipe_in(tmp_path)) != before


@pytest.mark.parametrize("place", ["settings.full.lr", "settings.full.batch", "settings.full.seed"])
def test_what_leaves_samples_alone_leaves_the_token_key(tmp_path: Path, place: str) -> None:
    assert token_key(recipe_in(tmp_path, place, 7)) == token_key(recipe_in(tmp_path))


@pytest.mark.parametrize("cached", ["", "[]", "{}", '{"counts": []}', '{"counts": {"total": {"tokens": "many"}}}'])
def test_damaged_token_cache_counts_as_not_cached(tmp_path: Path, cached: str) -> None:
    path = tmp_path / "ledger" / "cache" / "tokens" / f"{token_key(recipe_in(tmp_path))}.json"
    path.parent.mkdir(parents=True)
    path.write_text(cached)
    assert make_plan(sweep_in(tmp_path)).runs[0].tokens_per_epoch is None
    path.write_bytes(seal({"counts": {"total": {"samples": 90, "tokens": 12}}}))
    assert make_plan(sweep_in(tmp_path)).runs[0].tokens_per_epoch == 12


TEN_THOUSAND = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_cell import base_file, block
from massive_sft.planning.plan import make_plan
from massive_sft.cli.plan import plan_view
from massive_sft.sweep.load import check_sweep
file = base_file() | {{"storage": {{"root": {root!r}}}}}
file["models"] = {{f"m{{i}}": {{"hub": f"org/m{{i}}"}} for i in range(10)}}
file["blocks"] = [block(model="all", mixture="each", setting=["full", "lora"], override={{"seed": list(range(25))}},
                        horizon=10, snapshots="1..10")]
plan = make_plan(check_sweep(file, Path({root!r}) / "x.yaml"))
print(len(plan.cells))
plan_view(plan)
"""


def test_plan_of_ten_thousand_cells_is_complete(tmp_path: Path) -> None:
    code = TEN_THOUSAND.format(tests=str(Path(__file__).parent), root=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["10010"]


def test_new_scoring_semantics_ask_again_and_the_first_ones_are_not_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = {"evaluation": {"tasks": [{"name": "gsm8k"}]}}
    before = {item.id for cell in make_plan(sweep_in(tmp_path, **tasks)).cells for item in cell.requirements}
    monkeypatch.setattr("massive_sft.sweep.semantics.SCORE_SEMANTICS", 2)
    after = {item.id for cell in make_plan(sweep_in(tmp_path, **tasks)).cells for item in cell.requirements}
    assert before and not before & after


def test_answers_of_a_vllm_server_have_semantics_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(**protocol: str) -> list[str]:
        servers = {"vllm": {"servers": "http://localhost:1/v1"}} if protocol else {}
        evaluation = {"tasks": [{"name": "gsm8k"}, {"name": "arc_easy"}], "protocol": protocol, **servers}
        plan = make_plan(sweep_in(tmp_path, evaluation=evaluation))
        return sorted({item.id for cell in plan.cells for item in cell.requirements if item.is_benchmark})

    plain, (choices, answers) = asked(), asked(engine="vllm")
    monkeypatch.setattr("massive_sft.sweep.semantics.VLLM_SEMANTICS", 7)
    assert asked() == plain
    others = asked(engine="vllm")
    assert others[0] == choices and others[1] != answers and others[1].startswith("gsm8k@")


# Events of the interpreter that open or list something; it tells of no stat.
FILE_CALLS: list[str] = []


def note(event: str, arguments: tuple[object, ...]) -> None:
    if event in ("open", "os.listdir", "os.scandir"):
        FILE_CALLS.append(str(arguments[0]))


def noted_stat(path: object, **options: Any) -> os.stat_result:
    FILE_CALLS.append(str(path))
    return STAT(path, **options)


STAT: Any = os.stat


def complete(sweep: Sweep) -> int:
    """Write a complete record for each cell of a sweep, without a flush to the disk for each; return how many."""
    plan, when = make_plan(sweep), "2026-01-31T12:00:00+00:00"
    ledger = Ledger.open(plan.root)
    for item in plan.cells:
        names, trajectory = item.cell.coordinates._asdict(), item.cell.recipe.id if item.cell.recipe else None
        own = {"cell": item.cell.id, "trajectory": trajectory, "coordinates": names, "status": Status.COMPLETE}
        path = ledger.record_path(item.cell.id, Revision(1, 1))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(dump_record(Record(**own, attempt=1, provenance={}, created=when, finished=when)))
    return len(plan.cells)


def test_plan_of_complete_cells_takes_the_same_file_calls_however_many_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records are told by their listing, training sets looked up only where they are cached, trainings not at all."""
    seeds = {"seed": list(range(100))}
    blocks = [block(horizon=10, snapshots="1..10", schedule="constant", override=seeds)]
    sweep = sweep_in(tmp_path, measures=[], evaluation={"tasks": []}, blocks=blocks)
    cells, root = complete(sweep), str(storage_root(sweep))
    assert make_plan(sweep).statuses == {Status.COMPLETE: cells}  # which writes what the index lacks
    sys.addaudithook(note)
    monkeypatch.setattr(os, "stat", noted_stat)
    FILE_CALLS.clear()
    assert make_plan(sweep).statuses == {Status.COMPLETE: cells}
    calls = [call for call in tuple(FILE_CALLS) if root in call]
    assert cells == 1001
    assert len(calls) <= 256 + 15
    assert not any("/cells/" in call or "trajectories/" in call for call in calls)


@pytest.mark.parametrize(
    ("root", "rule"),
    [
        ("gs://bucket/sweep", "must be a folder (local disk, NFS, Lustre), or s3://BUCKET/PREFIX"),
        ("s3://Bucket/sweep", "must be s3://BUCKET or s3://BUCKET/PREFIX; endpoint and keys"),
    ],
)
def test_storage_root_that_is_another_address_is_refused(tmp_path: Path, root: str, rule: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make_plan(sweep_in(tmp_path, storage={"root": root}))
    (problem,) = caught.value.problems
    assert problem.place.endswith("storage.root") and problem.value == root and problem.rule.startswith(rule)
