"""Requests: what lm-eval's tasks ask, how it is wrapped, how a request set is named, and what is refused."""

from __future__ import annotations

import math
import shutil
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluation_world import own_datasets_cache, tokenizer, write_group, write_rows, write_tasks
from jinja2 import Environment

from massive_sft.core.errors import Corrupt, InvalidInput
from massive_sft.evaluation import build, shards, tasks, wrapping
from massive_sft.evaluation import requests as sets
from massive_sft.evaluation.protocol import ScoreCache, protocol_id
from massive_sft.evaluation.requests import Generation, Likelihood, Request, RequestSet, Rolling
from massive_sft.evaluation.task_errors import TaskUnavailable
from massive_sft.evaluation.wrapping import Wrapping
from massive_sft.ledger.storage import Folder
from massive_sft.sweep import schema

__all__ = ["own_datasets_cache"]
PAPER = wrapping.training("###Question: {prompt}\n###Answer: ")
CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"


def ask(path: Path, shots: int = 0, wrap: Wrapping = wrapping.NONE, limit: int | None = None, **fewshot) -> RequestSet:
    task = schema.Task(path=str(path), shots=(shots,), limit=limit)
    return build.build(task, shots, schema.Fewshot(**fewshot), wrap, path.parent / "requests")


def read(requests: RequestSet) -> list[Request]:
    return sets.read_requests(requests, requests.leaves[0])


def edited(path: Path, **changes: object) -> Path:
    """Write a copy of a task file, with changes, beside it."""
    config = yaml.safe_load(path.read_text()) | changes
    changed = path.with_name(f"edited-{path.name}")
    changed.write_text(yaml.safe_dump(config))
    return changed


def test_requests_without_a_template_are_the_task_s_own_text(tmp_path: Path) -> None:
    paths = write_tasks(tmp_path)
    choices = read(ask(paths["tiny_mc"]))
    assert len(choices) == 48
    assert all(isinstance(request, Likelihood) for request in choices)
    assert choices[0].context == "Question: ünï yes red\nAnswer:"
    assert [request.continuation[0] for request in choices] == [" "] * 48
    assert [(request.doc, request.choice) for request in choices[:5]] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]
    generation = read(ask(paths["tiny_gen"]))[0]
    assert isinstance(generation, Generation)
    assert (generation.until, generation.max_tokens) == (("\n", "e"), 24)
    assert isinstance(read(ask(paths["tiny_bpb"]))[0], Rolling)


def test_template_is_compiled_once_however_many_questions_fill_it_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    compile_it = Environment.compile

    def note(self: Environment, source: str, *arguments: Any, **options: Any) -> Any:
        compiled.append(source)
        return compile_it(self, source, *arguments, **options)

    monkeypatch.setattr(Environment, "compile", note)
    own = "Q: {{q}} (as in this test alone)"
    asked = read(ask(edited(write_tasks(tmp_path)["tiny_mc"], doc_to_text=own), 2))
    assert len(asked) == 48 and all(request.context.count("(as in this test alone)") == 3 for request in asked)
    assert compiled.count(own) == 1


def test_training_template_wraps_the_context_and_keeps_one_space_before_the_answer(tmp_path: Path) -> None:
    paths = write_tasks(tmp_path)
    bare, wrapped = read(ask(paths["tiny_mc"], 2)), read(ask(paths["tiny_mc"], 2, PAPER))
    for before, after in zip(bare, wrapped, strict=True):
        assert after.context == f"###Question: {before.context}\n###Answer: "
        assert " " + after.continuation == before.continuation
    generation = read(ask(paths["tiny_gen"], 0, PAPER))[0]
    assert generation.until == ("\n", "e", "\n###Question:")
    assert read(ask(paths["tiny_bpb"], 0, PAPER)) == read(ask(paths["tiny_bpb"]))


def test_template_that_ends_without_a_space_leaves_the_task_s_delimiter_out(tmp_path: Path) -> None:
    wrapped = read(ask(write_tasks(tmp_path)["tiny_mc"], 0, wrapping.training("[{prompt}]")))
    assert wrapped[0].context.endswith("Answer:]")
    assert not wrapped[0].continuation.startswith(" ")


def test_chat_template_has_a_turn_for_every_example(tmp_path: Path) -> None:
    chatty = tokenizer()
    chatty.chat_template = CHAT
    request = read(ask(write_tasks(tmp_path)["tiny_mc"], 2, wrapping.chat(chatty)))[0]
    assert request.context.count("<user>") == 3
    assert request.context.count("<assistant>") == 2
    assert request.context.endswith("<bot>")


def test_choices_stand_behind_what_a_chat_template_writes_before_every_answer(tmp_path: Path) -> None:
    chatty, block = tokenizer(), "<think>\n\n</think>\n\n"
    answered = f"{{% if m.role == 'assistant' and loop.last %}}{block}{{% endif %}}{{{{ m.content }}}}"
    chatty.chat_template = (
        f"{{% for m in messages %}}<{{{{ m.role }}}}>{answered}</s>\n{{% endfor %}}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )  # as Qwen3's
    paths, wrapped = write_tasks(tmp_path), wrapping.chat(chatty)
    asked = read(ask(paths["tiny_mc"], 1, wrapped))
    assert all(request.context.endswith(f"<assistant>{block}") for request in asked)
    assert all(request.context.count(block) == 1 for request in asked), "earlier answers have none in this template"
    (first, *_) = read(ask(paths["tiny_gen"], 0, wrapped))
    assert (first.context.endswith("<assistant>"), first.lead) == (True, block)


def test_wrapping_follows_the_protocol_and_the_setting(tmp_path: Path) -> None:
    chatty = tokenizer()
    with pytest.raises(InvalidInput, match="chat needs a tokenizer with one chat template"):
        wrapping.choose_wrapping(schema.Protocol(template="chat"), "paper", chatty)
    chatty.chat_template = CHAT
    own = schema.TemplateText(prompt="Q {prompt} A")
    assert wrapping.choose_wrapping(schema.Protocol(template="none"), "paper", chatty) == wrapping.NONE
    assert wrapping.choose_wrapping(schema.Protocol(), "paper", chatty).text == PAPER.text
    assert wrapping.choose_wrapping(schema.Protocol(), own, chatty).text == own.prompt
    assert wrapping.choose_wrapping(schema.Protocol(), "chat", chatty).kind == "chat"
    assert wrapping.choose_wrapping(schema.Protocol(), "plain", chatty).stops == ()


def test_first_n_gives_every_question_the_same_examples_and_default_draws_with_the_seed(tmp_path: Path) -> None:
    path = write_tasks(tmp_path)["tiny_mc"]
    prefixes = {request.context.rsplit("Question:", 1)[0] for request in read(ask(path, 3))}
    assert len(prefixes) == 1
    drawn = read(ask(path, 3, sampler="default", seed=1))
    assert len({request.context.rsplit("Question:", 1)[0] for request in drawn}) > 1
    assert drawn == read(ask(path, 3, sampler="default", seed=1))
    assert drawn != read(ask(path, 3, sampler="default", seed=2))


def test_first_n_over_the_tested_split_leaves_the_evaluated_document_out(tmp_path: Path) -> None:
    path = edited(write_tasks(tmp_path)["tiny_mc"], fewshot_split=None)
    for request in read(ask(path, 2)):
        *examples, question = request.context.split("Question: ")[1:]
        assert question.removesuffix("\nAnswer:") not in [example.split("\n")[0] for example in examples]


def test_limit_takes_the_first_documents(tmp_path: Path) -> None:
    path = write_tasks(tmp_path)["tiny_mc"]
    assert read(ask(path, 2, limit=3)) == read(ask(path, 2))[:12]


def test_request_set_is_equal_wherever_its_files_lie(tmp_path: Path) -> None:
    here, there = write_tasks(tmp_path / "here")["tiny_mc"], tmp_path / "there"
    shutil.copytree(here.parent, there)
    first, second = ask(here, 2), ask(there / here.name, 2)
    assert first.id == second.id
    assert first.folder != second.folder
    assert sets.read_set(first.folder).id == first.id


def test_protocol_id_moves_with_whatever_changes_a_score_and_with_nothing_else(tmp_path: Path) -> None:
    paths = write_tasks(tmp_path)
    path = paths["tiny_mc"]
    protocol = schema.Protocol()
    metric = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    variants = {
        "plain": ask(path),
        "shots": ask(path, 2),
        "limit": ask(path, limit=5),
        "template": ask(path, 0, PAPER),
        "sampler": ask(path, 2, sampler="default"),
        "seed": ask(path, 2, sampler="default", seed=5),
        "metrics": ask(edited(path, metric_list=[metric])),
        "version": ask(edited(path, metadata={"version": 2.0})),
    }
    write_rows(tmp_path / "data" / "mc.jsonl", [{"q": "other", "choices": ["a", "b", "c", "d"], "label": 0}])
    variants["data"] = ask(edited(path, task_alias="x"))
    ids = [protocol_id(protocol, requests) for requests in variants.values()]
    ids += [
        protocol_id(protocol.model_copy(update=update), variants["plain"])
        for update in ({"engine": "trie"}, {"dtype": "fp32"}, {"adapters": "merged"})
    ]
    assert len(set(ids)) == len(ids)


def test_protocol_id_does_not_move_with_names_for_people_or_a_seed_that_draws_nothing(tmp_path: Path) -> None:
    path = write_tasks(tmp_path)["tiny_mc"]
    assert ask(path).id == ask(edited(path, task_alias="Shown", tag="some")).id
    assert ask(path).id == ask(path, sampler="default", seed=5).id
    assert ask(path, 2).id == ask(path, 2, seed=5).id


def test_damaged_request_set_is_refused(tmp_path: Path) -> None:
    requests = ask(write_tasks(tmp_path)["tiny_mc"])
    sets.requests_path(requests.folder, "tiny_mc").write_bytes(b"broken")
    with pytest.raises(Corrupt, match="cannot be read"):
        read(requests)
    manifest = requests.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"shots": 0', '"shots": 1'))
    with pytest.raises(Corrupt, match="does not match its id"):
        sets.read_set(requests.folder)


def test_damaged_request_set_is_written_again(tmp_path: Path) -> None:
    requests = ask(write_tasks(tmp_path)["tiny_mc"])
    listed = {"tiny_mc": read(requests)}
    sets.requests_path(requests.folder, "tiny_mc").write_bytes(b"broken")
    sets.write_set(requests.folder.parent, requests, listed)
    assert read(requests) == listed["tiny_mc"]


def made_up(words: int, choices: int = 4, count: int = 64) -> list[sets.Request]:
    """Questions of so many words of four letters behind a head of as many."""
    return [
        sets.Likelihood(i, i // choices, i % choices, "", 1, "head " * words + f"{i // choices:04} " * words, " a")
        for i in range(count * choices)
    ]


def written(most: int) -> list[sets.Request]:
    """Questions whose answers may have so many tokens."""
    return [sets.Generation(i, i, 0, "", 1, "head", ("x",), most) for i in range(1200)]


def test_shards_hold_whole_documents_in_order_at_about_the_same_cost() -> None:
    short, long = made_up(250), made_up(4000)
    plain, sharing, gpu = shards.Cut(), shards.Cut(shared=True), shards.Cut(slots=512)
    for listed, cut, counts in (
        (made_up(1, count=500), plain, [1024, 976]),  # however little they cost
        (made_up(1, count=500), gpu, [1024, 976]),
        (short, plain, [256]),
        (long, plain, [28] * 9 + [4]),  # of 10,000 tokens each
        (long, sharing, [208, 48]),  # of which a head is computed once a shard, and a question once for its choices
        (written(4096), plain, [512] * 2 + [176]),
        (written(256), plain, [1024, 176]),
        (written(4096), gpu, [1200]),  # all are planned at once
    ):
        parts = list(shards.shards(listed, cut))
        assert [request for part in parts for request in part] == listed
        assert [len(part) for part in parts] == counts
        documents = [{request.doc for request in part} for part in parts]
        assert sum(map(len, documents)) == len(set.union(*documents))


def test_what_follows_a_shard_does_not_depend_on_it() -> None:
    listed = made_up(4000)
    sharing = shards.Cut(shared=True)
    first, *others = shards.shards(listed, sharing)
    assert list(shards.shards(listed[len(first) :], sharing)) == others


@pytest.mark.parametrize(
    ("name", "changes", "shots", "reason"),
    [
        ("tiny_gen", {"generation_kwargs": {"temperature": -0.8, "until": []}}, 0, "must be 0 or more"),
        ("tiny_gen", {"generation_kwargs": {"do_sample": True, "until": []}}, 0, "names no temperature"),
        ("tiny_gen", {"generation_kwargs": {"max_gen_toks": 0, "until": []}}, 0, "answers of up to 0 tokens"),
        ("tiny_gen", {"generation_kwargs": {"num_beams": 4, "until": []}}, 0, "num_beams"),
        ("tiny_gen", {"unsafe_code": True}, 0, "allow_code_execution"),
        ("tiny_mc", {"num_fewshot": 0}, 2, "takes no few-shot examples"),
        ("tiny_bpb", {}, 2, "takes no few-shot examples"),
        ("tiny_mc", {}, 13, "has 12 examples to show in its split train: shots must be 12 at most, got 13"),
        ("tiny_mc", {"fewshot_split": "test"}, 12, "in its split test beside the question itself: shots must be 11 at"),
        ("tiny_mc", {"doc_to_text": "{{ nothing.there }}"}, 0, "cannot be loaded"),
        ("tiny_mc", {"dataset_path": "no/such-dataset", "dataset_kwargs": None}, 0, "cannot be loaded"),
        ("tiny_mc", {"dataset_kwargs": {"data_files": "a/../no.jsonl"}}, 0, "there is no file /"),
    ],
)
def test_benchmark_that_cannot_be_built_is_missing_with_a_reason_and_the_rest_goes_on(
    tmp_path: Path, name: str, changes: dict, shots: int, reason: str
) -> None:
    paths = write_tasks(tmp_path)
    bad = schema.Task(path=str(edited(paths[name], **changes)), shots=(shots,))
    good = schema.Task(path=str(paths["tiny_bpb"]))
    prepared = build.prepare((bad, good), schema.Fewshot(), wrapping.NONE, tmp_path / "requests")
    assert [benchmark.requests.label for benchmark in prepared.benchmarks] == ["tiny_bpb-0shot"]
    assert list(prepared.missing) == [f"edited-{name}-{shots}shot"]
    assert reason in prepared.missing[f"edited-{name}-{shots}shot"]


def test_benchmark_that_executes_code_is_built_where_that_is_allowed(tmp_path: Path) -> None:
    task = schema.Task(path=str(edited(write_tasks(tmp_path)["tiny_gen"], unsafe_code=True)))
    allowed = build.prepare((task,), schema.Fewshot(), wrapping.NONE, tmp_path / "requests", "none")
    assert len(allowed.benchmarks) == 1
    refused = build.prepare((task,), schema.Fewshot(), wrapping.NONE, tmp_path / "requests", None)
    assert list(refused.missing) == ["edited-tiny_gen-0shot"]


def test_temperature_zero_is_greedy_even_where_the_task_says_sample() -> None:
    greedy = build.generation({"do_sample": True, "temperature": 0.0, "until": "x", "max_tokens": 5}, ())
    assert greedy == {"until": ("x",), "max_tokens": 5}


def test_group_file_expands_to_its_tasks(tmp_path: Path) -> None:
    requests = ask(write_group(tmp_path, weight_by_size=True))
    assert [(leaf.name, leaf.documents) for leaf in requests.leaves] == [("part_a", 12), ("part_b", 5)]


def test_two_benchmarks_under_one_name_are_an_error_and_equal_ones_are_one(tmp_path: Path) -> None:
    task = schema.Task(path="a/x.yaml", shots=(0, 5))
    assert [shots for _, shots in build.expand((task, schema.Task(path="a/x.yaml", shots=(5,))))] == [0, 5]
    with pytest.raises(InvalidInput, match=r"one name.*x-5shot"):
        build.expand((task, schema.Task(path="a/x.yaml", shots=(5,), limit=3)))


def test_declared_tasks_that_are_wrong_are_all_named_with_close_choices(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("task: [unclosed")
    (tmp_path / "other.yaml").write_text("name: a sweep")
    good = write_tasks(tmp_path)["tiny_mc"]
    declared = [
        schema.Task(name="gsm8k"),
        schema.Task(name="gsm8kk"),
        schema.Task(path=str(tmp_path / "absent.yaml")),
        schema.Task(path=str(tmp_path / "broken.yaml")),
        schema.Task(path=str(tmp_path / "other.yaml")),
        schema.Task(path=str(good)),
    ]
    problems = tasks.problems(declared)
    assert [problem.place for problem in problems] == [
        "evaluation.tasks[1].name",
        *(f"evaluation.tasks[{number}].path" for number in (2, 3, 4)),
    ]
    assert problems[0].hint.startswith("did you mean 'gsm8k' or ")
    assert len(problems[0].choices) <= 5


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"task": "a", "doc_to_txt": "{{q}}"}, "has the unknown key doc_to_txt (did you mean doc_to_text?)"),
        ({"group": "g", "num_fewshots": 2, "task": ["a"]}, "has the unknown key num_fewshots"),
        (
            {"group": "g", "task": ["a", {"task": "b", "include": "base.yaml"}]},
            "includes base.yaml within its entry b, which lm-eval does at the top of a file alone: give the task a "
            "file of its own",
        ),
        (
            {"group": "g", "task": [{"group": "h", "task": [{"task": "b", "metrics": []}]}]},
            "has the unknown key metrics in its entry b",
        ),
        (
            {"task": "a", "output_type": "multiple_choice", "doc_to_choice": ["{{A}}", "{{B}}"]},
            "has choices that lm-eval takes as they are, '{{A}}': write \"{{[first, second]}}\" for columns",
        ),
        (
            {"task": "a", "metadata": {"opencompass": "gsm8"}},
            "has metadata.opencompass: 'gsm8' (did you mean gsm8k?), which must be one of first_capital, first_option, "
            "gsm8k, ",
        ),
        (
            {"task": "a", "output_type": "multiple_choice", "metadata": {"opencompass": "gsm8k"}},
            "has metadata.opencompass, which is for generated answers, beside output_type: multiple_choice",
        ),
    ],
    ids=["task", "group", "include", "nested", "choices", "rule", "output"],
)
def test_key_that_lm_eval_would_stumble_over_is_named(tmp_path: Path, content: dict[str, Any], reason: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(content))
    (problem,) = tasks.problems([schema.Task(path=str(path))])
    assert problem.place == "evaluation.tasks[0].path" and problem.rule.startswith(reason)


def test_column_of_choices_that_is_none_is_named(tmp_path: Path) -> None:
    path = edited(write_tasks(tmp_path)["tiny_mc"], doc_to_choice="choicez")
    rule = r"tiny_mc cannot be loaded: doc_to_choice is neither a column of its data .*, got 'choicez'"
    with pytest.raises(TaskUnavailable, match=rule):
        ask(path, 0)


@pytest.mark.parametrize(("name", "executes"), [("humaneval", True), ("mbpp", True), ("gsm8k", False)])
def test_shipped_task_is_missing_when_it_executes_code_or_has_no_data(name: str, executes: bool) -> None:
    with pytest.raises(TaskUnavailable, match="executes generated code" if executes else "cannot be loaded"):
        tasks.load(schema.Task(name=name))


def test_score_cache_returns_what_was_put(tmp_path: Path) -> None:
    cache = ScoreCache(Folder(tmp_path))
    assert cache.get("w", "p") is None
    cache.put("w", "p", {"a": 1}, b"rows")
    assert cache.get("w", "p") == ({"a": 1}, b"rows")
    assert cache.get("other", "p") is None


def test_protocol_id_of_generated_answers_moves_with_the_end_tokens_and_that_of_likelihoods_stands(
    tmp_path: Path,
) -> None:
    paths = write_tasks(tmp_path)
    protocol = schema.Protocol()
    choices, answers = ask(paths["tiny_mc"]), ask(paths["tiny_gen"])
    assert protocol_id(protocol, choices, {1}) == protocol_id(protocol, choices, {1, 2}) == "e62210237064c6cd"
    assert protocol_id(protocol, answers, {1}) != protocol_id(protocol, answers, {1, 2})
    assert protocol_id(protocol, answers, [2, 1]) == protocol_id(protocol, answers, {1, 2})


def test_hub_that_does_not_answer_is_asked_once_for_all_benchmarks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its library would try six times for each. What hangs up on everybody counts who called."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        callers: list[object] = []

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    connection, caller = server.accept()
                    callers.append(caller)
                    connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        for place in ("huggingface_hub.constants.ENDPOINT", "datasets.config.HF_ENDPOINT"):
            monkeypatch.setattr(place, address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("massive_sft.models.hub.ASKED_ANEW_S", math.inf)
        for name in ("one", "two"):
            path = tmp_path / f"{name}.yaml"
            path.write_text(f"task: {name}\ndataset_path: org/{name}\noutput_type: generate_until\n")
            with pytest.raises(TaskUnavailable, match=f"the dataset org/{name} is not in this node's cache"):
                tasks.load(schema.Task(path=str(path)))
        assert len(callers) == 1
        server.shutdown(socket.SHUT_RDWR)
