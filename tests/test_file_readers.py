"""Readers of data files: every kind of file, mapping and filter, and what is said about bad ones."""

import datetime
import gzip
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from massive_sft.core.errors import InvalidInput
from massive_sft.data.file_readers import load_rows
from massive_sft.sweep.schema import Dataset

PAIRS = [{"question": f"q{number}", "answer": f"a{number}"} for number in range(4)]
EXPECTED = [((f"q{number}", f"a{number}"),) for number in range(4)]


def load(path, **fields):
    fields.setdefault("format", None if "columns" in fields else "gsm8k")
    return load_rows(Dataset(path=str(path), **fields), "datasets.d")


def turns(path, **fields):
    return [row.turns for row in load(path, **fields).rows]


def problems(path, **fields):
    with pytest.raises(InvalidInput) as caught:
        load(path, **fields)
    return str(caught.value)


def lines(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def talk(*pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


# Kinds of files


def write_array(folder):
    (folder / "d.json").write_text(json.dumps(PAIRS, indent=2))
    return folder / "d.json"


def write_lines(folder):
    return lines(folder / "d.jsonl", PAIRS)


def write_lines_named_json(folder):
    return lines(folder / "d.json", PAIRS)


def write_zipped_lines(folder):
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(lines(folder / "plain.jsonl", PAIRS).read_bytes()))
    return folder / "d.jsonl.gz"


def write_zipped_array(folder):
    (folder / "d.json.gz").write_bytes(gzip.compress(json.dumps(PAIRS).encode()))
    return folder / "d.json.gz"


def write_csv(folder):
    (folder / "d.csv").write_text("question,answer\n" + "".join(f"q{n},a{n}\n" for n in range(4)))
    return folder / "d.csv"


def write_parquet(folder):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(PAIRS), folder / "d.parquet")
    return folder / "d.parquet"


@pytest.mark.parametrize(
    "write",
    [
        write_array,
        write_lines,
        write_lines_named_json,
        write_zipped_lines,
        write_zipped_array,
        write_csv,
        write_parquet,
    ],
)
def test_load_rows_of_every_kind_of_file_gives_the_same_rows(tmp_path, write):
    loaded = load(write(tmp_path))
    assert [row.turns for row in loaded.rows] == EXPECTED
    assert loaded.indices.tolist() == [0, 1, 2, 3] and loaded.source_rows == 4


def test_load_rows_from_a_csv_without_header_takes_column_numbers_and_drops_the_byte_order_mark(tmp_path):
    (tmp_path / "d.csv").write_bytes(b"\xef\xbb\xbf" + b'"first, quoted",x,yes\nsecond,"two\nlines",no\n')
    path = tmp_path / "d.csv"
    assert turns(path, columns={"prompt": [0, 1], "completion": 2}) == [
        (("first, quoted\nx", "yes"),),
        (("second\ntwo\nlines", "no"),),
    ]
    assert turns(path, columns={"prompt": 0, "completion": 2}, filter={"2": "no"}) == [(("second", "no"),)]


def test_load_rows_from_json_lines_with_a_byte_order_mark_and_blank_lines_counts_rows_and_lines(tmp_path):
    (tmp_path / "d.jsonl").write_bytes(
        b"\xef\xbb\xbf" + json.dumps(PAIRS[0]).encode() + b"\n\n" + json.dumps(PAIRS[1]).encode()
    )
    rows = load(tmp_path / "d.jsonl").rows
    assert [(row.index, row.line) for row in rows] == [(0, 1), (1, 3)]


def test_load_rows_from_a_folder_reads_its_files_in_the_given_order(tmp_path):
    lines(tmp_path / "a.jsonl", PAIRS[:1])
    lines(tmp_path / "b.jsonl", PAIRS[1:])
    loaded = load(tmp_path, files=["b.jsonl", "a.jsonl"])
    assert [row.turns for row in loaded.rows] == [*EXPECTED[1:], EXPECTED[0]]
    assert loaded.rows[-1].index == 3 and loaded.rows[-1].place == f"{tmp_path}/a.jsonl:1"


def test_load_rows_from_the_hub_equals_the_local_file(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    monkeypatch.chdir(tmp_path)  # a hub name that is a folder here
    (tmp_path / "data").mkdir()
    lines(tmp_path / "data" / "d.jsonl", PAIRS)
    loaded = load_rows(Dataset(hub="data", files=["d.jsonl"], format="gsm8k"), "datasets.d")
    assert [row.turns for row in loaded.rows] == EXPECTED
    assert loaded.rows[2].place == "data[train] row 2"
    with pytest.raises(InvalidInput, match=r'datasets.d.hub: cannot be loaded: Unknown split "nope"'):
        load_rows(Dataset(hub="data", split="nope", format="gsm8k"), "datasets.d")
    parts = [{"config_name": part, "data_files": "d.jsonl"} for part in ("one", "two")]
    (tmp_path / "data" / "README.md").write_text(f"---\nconfigs: {json.dumps(parts)}\n---\n")
    with pytest.raises(InvalidInput, match=r"Config name is missing. Please pick one .*'one', 'two'"):
        load_rows(Dataset(hub="data", format="gsm8k"), "datasets.d")


# Mappings


def test_alpaca_joins_instruction_and_input_and_skips_a_blank_input(tmp_path):
    path = lines(
        tmp_path / "d.jsonl",
        [
            {"instruction": "Add.", "input": "1 2", "output": "3"},
            {"instruction": "Greet.", "input": "", "output": "Hi"},
            {"instruction": "Greet.", "input": None, "output": "Hi"},
        ],
    )
    assert turns(path, format="alpaca") == [(("Add.\n1 2", "3"),), (("Greet.", "Hi"),), (("Greet.", "Hi"),)]


def test_column_paths_reach_into_lists_and_objects(tmp_path):
    value = {"instruction": "Do", "instances": [{"input": "this", "output": "done"}], "a.b": "literal"}
    path = lines(tmp_path / "d.jsonl", [value])
    columns = {"prompt": ["instruction", "instances[0].input"], "completion": "instances[0].output"}
    assert turns(path, columns=columns) == [(("Do\nthis", "done"),)]
    assert turns(path, columns={"prompt": "a.b", "completion": "instruction"}) == [(("literal", "Do"),)]
    two = lines(tmp_path / "two.jsonl", [{"q": "a", "a": "b"}] * 2)
    assert "no row has this column, got 'q[' (did you mean 'q'?)" in problems(
        two, columns={"prompt": "q[", "completion": "a"}
    )


def test_integers_become_text_and_white_space_is_kept(tmp_path):
    path = lines(tmp_path / "d.jsonl", [{"question": " 6 x 7 \n", "answer": 42}])
    assert turns(path) == [((" 6 x 7 \n", "42"),)]


def test_strip_removes_every_listed_text_before_the_filter_looks(tmp_path):
    path = lines(
        tmp_path / "d.jsonl", [{"prompt": "p", "completion": "none<|end|>"}, {"prompt": "p", "completion": "x<|end|>"}]
    )
    fields = {"format": "p3", "strip": ["<|end|>"]}
    assert turns(path, **fields) == [(("p", "none"),), (("p", "x"),)]
    assert turns(path, **fields, filter={"not": {"completion": "none"}}) == [(("p", "x"),)]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, "abcd", strict=True)],
        [{"from": role, "value": text} for role, text in zip(["human", "gpt"] * 2, "abcd", strict=True)],
        list("abcd"),
    ],
)
def test_messages_in_every_known_form_become_turns(tmp_path, messages):
    path = lines(tmp_path / "d.jsonl", [{"conversations": messages}])
    assert turns(path, format="messages") == [(("a", "b"), ("c", "d"))]
    assert turns(path, format="messages", turns="first") == [(("a", "b"),)]
    assert turns(path, columns={"messages": "conversations"}) == [(("a", "b"), ("c", "d"))]


def test_messages_keep_a_leading_system_message_apart(tmp_path):
    path = lines(tmp_path / "d.jsonl", [talk(("system", "Be brief."), ("user", "a"), ("assistant", "b"))])
    row = load(path, format="messages").rows[0]
    assert row.system == "Be brief." and row.turns == (("a", "b"),)


ASKED, ANSWERED = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize("off", [{"weight": 0}, {"train": False}, {"weight": 1, "train": False}, {"weight": 0.0}])
def test_answer_of_weight_0_is_not_trained(tmp_path, off):
    path = lines(tmp_path / "d.jsonl", [{"messages": [ASKED, {**ANSWERED, **off}, ASKED, {**ANSWERED, "weight": 1}]}])
    (row,) = load(path, format="messages").rows
    assert row.turns == (("a", "b"), ("a", "b")) and row.untrained == (0,)
    assert "d.jsonl:1: has no answer to train" in problems(path, format="messages", turns="first")


@pytest.mark.parametrize(
    ("asked", "answered", "rule"),
    [
        ({}, {"content": "", "tool_calls": [{"name": "f"}]}, "message 1 has tool_calls, which is not supported"),
        ({}, {"content": None, "function_call": {"name": "f"}}, "message 1 has function_call, which is not supported"),
        ({}, {"reasoning_content": "so", "thinking": "so"}, "message 1 has reasoning_content, thinking, which"),
        ({"name": "Eve"}, {}, "message 0 has name, which is not supported"),
        ({"images": ["a.png"]}, {}, "message 0 has images, which is not supported"),
        ({"value": "else"}, {}, "message 0 has value, which is not supported"),
        ({"content": [{"type": "text", "text": "a"}]}, {}, "message 0 must be one text: content in parts"),
        ({"weight": 1}, {}, "message 0: weight must be 0 or left out: only answers are trained"),
        ({}, {"weight": 0.5}, "message 1: weight must be 0 or 1, got 0.5"),
        ({}, {"train": "no"}, "message 1: train must be 0 or 1, got 'no'"),
    ],
)
def test_message_whose_keys_would_be_lost_is_refused(tmp_path, asked, answered, rule):
    path = lines(tmp_path / "d.jsonl", [{"messages": [{**ASKED, **asked}, {**ANSWERED, **answered}]}])
    assert f"d.jsonl:1: {rule}" in problems(path, format="messages")


def test_message_keys_that_say_nothing_or_are_about_the_message_do_no_harm(tmp_path):
    about = {"id": 3, "timestamp": 1.5, "lang": "en", "tool_calls": None, "name": "", "images": [], "weight": None}
    path = lines(tmp_path / "d.jsonl", [{"messages": [{**ASKED, **about}, {**ANSWERED, **about}], "topic": "x"}])
    assert turns(path, format="messages") == [(("a", "b"),)]


@pytest.mark.parametrize("column", ["tools", "functions", "system_prompt", "images"])
def test_column_beside_the_messages_that_would_be_lost_is_refused_unless_empty(tmp_path, column):
    conversation = {"messages": [ASKED, ANSWERED]}
    path = lines(tmp_path / "d.jsonl", [{**conversation, column: ["x"]}, {**conversation, column: []}, conversation])
    assert problems(path, format="messages").startswith(f"{path}:1: has a column {column} beside its messages")
    assert len(load(path, format="messages", filter={"not": {f"{column}[0]": "x"}}).rows) == 2


def test_system_column_beside_the_messages_is_the_system_message(tmp_path):
    path = lines(tmp_path / "d.jsonl", [{"system": "Be brief.", "conversations": ["a", "b"]}, {"messages": ["a", "b"]}])
    assert [row.system for row in load(path, format="messages").rows] == ["Be brief.", None]
    path = lines(tmp_path / "e.jsonl", [{"system": "x", **talk(("system", "y"), ("user", "a"), ("assistant", "b"))}])
    assert "e.jsonl:1: has a system message and a column system" in problems(path, format="messages")


def test_first_message_column_with_a_value_is_read_and_two_that_differ_are_refused(tmp_path):
    talks = [{"messages": empty, "conversations": ["a", "b"]} for empty in (None, [], ["a", "b"])]
    path = lines(tmp_path / "d.jsonl", [*talks, {"messages": ["a", "b"], "conversations": None}])
    assert turns(path, format="messages") == [(("a", "b"),)] * 4
    path = lines(tmp_path / "e.jsonl", [{"messages": ["a", "b"], "conversations": ["a", "c"]}])
    assert "e.jsonl:1: has messages and conversations, which differ" in problems(path, format="messages")
    assert turns(path, columns={"messages": "messages"}) == [(("a", "b"),)]


# Filters


def test_filter_keeps_and_refuses_and_the_row_numbers_are_those_of_the_file(tmp_path):
    values = [{**pair, "task": task} for pair, task in zip(PAIRS, ["x", "y", "z", "x"], strict=True)]
    path = lines(tmp_path / "d.jsonl", values)
    loaded = load(path, filter={"task": ["x", "y"], "not": {"completion": "a0"}})
    assert loaded.indices.tolist() == [1, 3] and loaded.source_rows == 4
    assert load(path, filter={"task": ["x", "y"]}, limit=2).indices.tolist() == [0, 1]
    assert [row.turns for row in loaded.at(loaded.indices[::-1])] == [EXPECTED[3], EXPECTED[1]]


def test_filter_compares_numbers_truth_and_null_with_what_the_file_holds(tmp_path):
    path = lines(tmp_path / "d.jsonl", [{**PAIRS[0], "n": 1, "ok": True}, {**PAIRS[1], "n": "1", "ok": None}])
    assert len(load(path, filter={"n": 1}).rows) == 2
    assert load(path, filter={"ok": True}).indices.tolist() == [0]
    assert load(path, filter={"not": {"ok": None}}).indices.tolist() == [0]


def test_filter_may_refuse_the_rows_without_a_completion(tmp_path):
    path = lines(tmp_path / "d.jsonl", [PAIRS[0], {"question": "q", "answer": None}, {"question": "q"}])
    assert load(path, filter={"not": {"completion": None}}).indices.tolist() == [0]


# Bad input


def test_broken_json_lines_are_all_named_by_file_and_line(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n{"question": \n[1, 2\n"text"\n')
    said = problems(path)
    assert (
        f"{path}:2: is not valid JSON: Expecting value at column 14" in said and f"{path}:3: is not valid JSON" in said
    )
    assert f"{path}:4: must be an object, got 'text'" in said


def test_problem_of_many_rows_is_said_once_with_its_first_places_and_many_of_a_kind_are_counted(tmp_path):
    lacking, odd = [{"question": "q", "answer": None}] * 25, [{"question": 1.5 + n, "answer": "a"} for n in range(12)]
    path = lines(tmp_path / "d.jsonl", [*lacking, *odd])
    said = problems(path).splitlines()
    assert len(said) == 12
    assert said[0] == f"{path}:1, 2, 3, 4, 5 and 20 more: has no completion: column answer is missing or null"
    assert said[1] == f"{path}:26: column question must be text or an integer, got 1.5"
    assert said[10] == f"{path}:35: column question must be text or an integer, got 10.5"
    assert said[11].startswith(f"{path}:35: and 2 more: ")


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.csv"])
def test_empty_file_is_named(tmp_path, name):
    (tmp_path / name).write_text("")
    assert problems(tmp_path / name) == f"{tmp_path / name}: is empty: it has no rows"


def test_empty_parquet_and_empty_array_and_header_alone_are_named(tmp_path):
    schema = pyarrow.schema({"question": pyarrow.string(), "answer": pyarrow.string()})
    pyarrow.parquet.write_table(schema.empty_table(), tmp_path / "d.parquet")
    (tmp_path / "d.json").write_text("[]")
    (tmp_path / "d.csv").write_text("question,answer\n")
    for name in ("d.parquet", "d.json", "d.csv"):
        assert "is empty: it has no rows" in problems(tmp_path / name)


def test_missing_column_is_named_once_with_the_columns_that_exist(tmp_path):
    path = lines(tmp_path / "d.jsonl", PAIRS)
    said = problems(path, columns={"prompt": "questoin", "completion": "answer"}, filter={"task": "x"})
    assert said.splitlines() == [
        "datasets.d.columns.prompt: no row has this column, got 'questoin' (did you mean 'question'?); "
        "valid: question, answer",
        "datasets.d.filter: no row has this column, got 'task'; valid: question, answer",
    ]
    assert "datasets.d.format: no row has this column, which the format needs (columns: " in problems(
        path, format="messages"
    )


def test_filter_that_leaves_nothing_says_of_how_many(tmp_path):
    path = lines(tmp_path / "d.jsonl", [{**pair, "n": 1, "m": 1} for pair in PAIRS])
    assert problems(path, filter={"n": 2, "m": 1}) == "datasets.d.filter: leaves none of the 4 rows"


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"question": {"a": 1}}, "question must be text, a number"),
        ({"question": []}, "question must be text, a number"),
        ({"question": [["a"]]}, "question must be text, a number"),
        ({"question": datetime.date(2024, 1, 1)}, "question must be text, a number"),
        ({"question": float("nan")}, "question must be text, a number"),
        ({"not": {"question": {"a": 1}}}, "question must be text, a number"),
        ({"not": "none"}, "not must map columns"),
    ],
)
def test_malformed_filter_is_refused_by_the_schema(rules, message):
    with pytest.raises(ValidationError, match=message):
        Dataset(path="d.jsonl", format="gsm8k", filter=rules)


def test_strip_takes_the_longest_first_whatever_the_order(tmp_path):
    path = lines(tmp_path / "d.jsonl", [{"question": "abcd", "answer": "xabbx"}])
    for strip in (["ab", "abc", "bb"], ["bb", "abc", "ab"]):
        assert turns(path, strip=strip) == [(("d", "xbx"),)]


@pytest.mark.parametrize(
    ("messages", "rule"),
    [
        ([("user", "a")], "must be an optional system message, then user and assistant in turns"),
        ([("assistant", "a"), ("user", "b")], "then user and assistant in turns"),
        ([("user", "a"), ("tool", "b")], "message 1 must have a known role"),
        ([("user", "a"), ("assistant", None)], "message 1 must be text or an integer, got None"),
        ([], "then user and assistant in turns"),
    ],
)
def test_conversations_that_cannot_be_read_are_refused(tmp_path, messages, rule):
    path = lines(tmp_path / "d.jsonl", [talk(*messages)])
    assert rule in problems(path, format="messages")
    assert f"{path}:1" in problems(path, format="messages")


@pytest.mark.parametrize("messages", ["text", [{"text": "a"}], None])
def test_messages_of_an_unknown_form_are_refused(tmp_path, messages):
    path = lines(tmp_path / "d.jsonl", [{"messages": messages}])
    assert f"{path}:1: " in problems(path, format="messages")


def test_csv_row_of_another_width_and_an_open_quote_are_named_by_line(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text('question,answer\nq,a\nq\nq,a,b\n"open,a\n')
    said = problems(path)
    assert f"{path}:3: must have 2 fields" in said and f"{path}:4: must have 2 fields" in said
    assert f"{path}:5: is not valid CSV" in said


def test_csv_that_names_a_column_twice_is_refused_but_columns_without_a_name_are_not(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text("question,question,answer\nq,other,a\n")
    assert problems(path) == f"{path}:1: must name each column once, got 'question'"
    path.write_text("question,answer,,\nq,a,,\n")
    assert turns(path) == [(("q", "a"),)]


def test_text_that_is_no_utf8_is_named_by_line(tmp_path):
    for name in ("d.jsonl", "d.json", "d.csv"):
        (tmp_path / name).write_bytes(b'["question"]\n' * 2 + b'["\xff\xfe"]')
        assert f"{tmp_path / name}:3: is not UTF-8" in problems(tmp_path / name)


def test_half_a_surrogate_pair_is_refused(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"question": "\\ud83d", "answer": "a"}\n')
    assert "d.jsonl:1: column question holds half of a surrogate pair" in problems(tmp_path / "d.jsonl")


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b"{}" * 1000, mtime=0)[:-9])
    (tmp_path / "d.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "d.json").write_text('[{"question": 1},\n {"answer"]')
    (tmp_path / "o.json").write_text("3")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "deep.jsonl").write_text("[" * 100_000 + "\n" + '{"question": ' + "9" * 5000 + "}")
    assert "deep.json: is JSON that cannot be read" in problems(tmp_path / "deep.json")
    assert problems(tmp_path / "deep.jsonl").count("is JSON that cannot be read") == 2
    assert "d.jsonl.gz: cannot be read" in problems(tmp_path / "d.jsonl.gz")
    assert "d.parquet: is not valid Parquet" in problems(tmp_path / "d.parquet")
    assert "d.json:2: is not valid JSON" in problems(tmp_path / "d.json")
    assert "o.json: must hold a list of objects, got 3" in problems(tmp_path / "o.json")


ROW = {"question": "q", "answer": "a"}
PRETTY = json.dumps(ROW, indent=1)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"

LAYOUTS = [
    ({"0": ROW, "1": ROW}, "it has a row under each key (0, 1): write its values alone, as a list, into a .json file"),
    ({"0": ROW}, "it has a row under each key (0): write its values alone, as a list, into a .json file"),
    ({f"id{n}": ROW for n in range(9)}, "it has a row under each key (id0, id1, id2, …): write its values alone"),
    ({"question": ["q", "r"], "answer": ["a", None]}, "it has its columns one by one (question, answer): write one"),
    ({"question": {"0": "q", "1": "r"}, "answer": {"0": "a", "1": "b"}}, "it has its columns one by one (question"),
    ({"version": "1", "data": [ROW]}, "the list is under data: write it alone into a .json file"),
]


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        *((f"d{end}", POINTER, "is a Git LFS pointer") for end in (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz")),
        ("d.jsonl", json.dumps([ROW, ROW]), "is a JSON array, not JSON Lines: name it .json"),
        ("d.jsonl", json.dumps([ROW, ROW], indent=1), "is a JSON array, not JSON Lines: name it .json"),
        ("d.jsonl", PRETTY, "is one JSON object over several lines, not JSON Lines: write it on one line"),
        ("d.json", PRETTY * 2, "holds JSON objects over several lines each, not JSON Lines"),
        ("d.json", json.dumps({"data": [ROW]}, indent=1), "not JSON Lines; the list is under data: write it alone"),
        ("d.jsonl.gz", gzip.compress(PRETTY.encode(), mtime=0), "is one JSON object over several lines"),
        ("d.jsonl", "question,answer\nq,a\n", "is no JSON: it begins with 'question,answer'"),
        ("d.csv", json.dumps(ROW), "holds JSON: name it .json or .jsonl"),
        ("d.jsonl", json.dumps(ROW).encode("utf-16"), "is UTF-16 or UTF-32: convert it to UTF-8"),
        ("d.csv", "question,answer\n".encode("utf-16-be"), "is UTF-16 or UTF-32, or no text"),
        ("d.json", "\n<!DOCTYPE html><html>", "is an HTML or XML page"),
        ("d.jsonl", gzip.compress(b"{}", mtime=0), "is a gzip file: name it so"),
        ("d.jsonl.gz", json.dumps(ROW), "is no gzip file: name it without .gz"),
        ("d.jsonl", b"PAR1....", "is a Parquet file: name it .parquet"),
        ("d.csv", b"PK\x03\x04", "is a zip archive or stream: unpack it"),
        (
            "d.csv",
            'question;answer\n"q;, r";a\n"s\nt";b, c\n',
            "has its fields separated by semicolons, not commas: write",
        ),
        (
            "d.csv",
            "question\tanswer\nq, r\ta\n",
            "has its fields separated by tabs, not commas: write it with commas, e.g.",
        ),
        (
            "d.csv.gz",
            gzip.compress(b"question;answer\nq;a\n" * 9999, mtime=0),
            "has its fields separated by semicolons",
        ),
        *(
            (name, text, rule)
            for value, rule in LAYOUTS
            for name, text in (
                ("d.json", json.dumps(value)),
                ("d.json", json.dumps(value, indent=1)),
                ("d.json", json.dumps([value])),
                ("d.jsonl", json.dumps(value)),
            )
            if rule.startswith("it has its columns") or not text.startswith("[")
        ),
    ],
)
def test_file_of_another_shape_is_told_in_one_sentence(tmp_path, name, content, rule):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = problems(path)
    assert said.startswith(f"{path}: {rule}") or (rule in said and said.startswith(f"{path}: "))
    assert "\n" not in said


def test_messages_in_columns_are_told_as_such_and_one_row_of_messages_is_a_row(tmp_path):
    talks = [["q", "a"], ["r", "b"]]
    path = lines(tmp_path / "d.jsonl", [{"messages": talks, "id": [1, 2]}])
    assert "holds one JSON object; it has its columns one by one (messages, id)" in problems(path, format="messages")
    path = lines(tmp_path / "d.jsonl", [{"messages": ["q", "a", "r"], "id": [1, 2, 3]}])
    assert "d.jsonl:1: must be an optional system message" in problems(path, format="messages")


def test_every_file_that_is_one_object_is_told(tmp_path):
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(json.dumps({"question": ["q", "r"], "answer": ["a", "b"]}))
    said = problems(tmp_path, files=["a.json", "b.json"])
    assert said.count("it has its columns one by one") == 1 and f"{tmp_path}/a.json, {tmp_path}/b.json" in said


def test_rows_that_look_like_another_shape_are_read(tmp_path):
    path = lines(tmp_path / "nested.jsonl", [{"question": {"text": "q"}, "answer": {"text": "a"}}])
    assert turns(path, columns={"prompt": "question.text", "completion": "answer.text"}) == [(("q", "a"),)]
    path = lines(tmp_path / "lists.jsonl", [{"question": ["q", "r"], "answer": ["a", "b"]}])
    assert turns(path, columns={"prompt": "question[0]", "completion": "answer[1]"}) == [(("q", "b"),)]
    (tmp_path / "d.csv").write_text("question,answer\na;b,c;d\ne;f\tg,h|i;j\n")
    assert turns(tmp_path / "d.csv") == [(("a;b", "c;d"),), (("e;f\tg", "h|i;j"),)]
    (tmp_path / "list.jsonl").write_text('["q", "a"]\n["r", "b"]\n')
    assert len(load(tmp_path / "list.jsonl", columns={"prompt": 0, "completion": 1}).rows) == 2
    path = lines(tmp_path / "one.jsonl", [talk(("user", "a"), ("assistant", "b"))])
    assert turns(path, format="messages") == [(("a", "b"),)]
    path = lines(tmp_path / "p3.jsonl", [{"instances": [{"input": "a", "output": "b"}]}])
    columns = {"prompt": "instances[0].input", "completion": "instances[0].output"}
    assert turns(path, columns=columns) == [(("a", "b"),)]


def test_paths_that_name_no_readable_file_are_all_refused(tmp_path):
    (tmp_path / "d.txt").write_text("x")
    (tmp_path / "d.jsonl").write_text("{}")
    assert "datasets.d.path: does not exist" in problems(tmp_path / "none.jsonl")
    assert "has an extension that cannot be read, got 'd.txt'; valid: .jsonl" in problems(tmp_path / "d.txt")
    assert "is a folder: name its files under files" in problems(tmp_path)
    assert "goes with a folder, but path is a file" in problems(tmp_path / "d.jsonl", files=["d.jsonl"])
    said = problems(tmp_path, files=["d.txt", "no.jsonl"]).splitlines()
    assert len(said) == 2
