"""The offline world: deterministic, loadable offline, and free of what it is meant to teach."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from massive_sft import tiny
from massive_sft.core.errors import InvalidInput
from massive_sft.tiny.corpus import documents, template
from massive_sft.tiny.domains import ATTRIBUTES, all_domains

SHIPPED_LIMIT = 3_000_000  # bytes


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny.build(tmp_path_factory.mktemp("tiny") / "world")


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_build_twice_gives_identical_bytes(tmp_path):
    first = tiny.build(tmp_path / "world", seed=3)
    before = _bytes(first.root)
    assert tiny.build(tmp_path / "world", seed=3) == first
    assert _bytes(first.root) == before


def test_build_another_seed_changes_data_but_not_models(world, tmp_path):
    other = tiny.build(tmp_path / "world", seed=1)
    for name, path in world.datasets.items():
        assert path.read_bytes() != other.datasets[name].read_bytes()
    for name, path in world.models.items():
        assert _bytes(path) == _bytes(other.models[name])


def test_build_paths_exist_inside_the_folder(world):
    paths = [*world.models.values(), *world.datasets.values(), *world.tasks.values(), world.sweep]
    assert all(path.exists() and path.is_relative_to(world.root) for path in paths)
    assert not world.ledger.exists()


def test_build_again_leaves_a_sweep_file_that_somebody_edited(tmp_path):
    assert not tiny.build(tmp_path / "world").is_edited
    sweep = tmp_path / "world" / "sweep.yaml"
    sweep.write_text(sweep.read_text() + "# mine\n")
    assert tiny.build(tmp_path / "world").is_edited
    assert sweep.read_text().endswith("# mine\n")


def test_build_where_a_file_stands_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="must be writable"):
        tiny.build(tmp_path / "file")


def test_build_under_a_pattern_character_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="must hold none of"):
        tiny.build(tmp_path / "a[1]")


def test_shipped_weights_stay_small():
    assert sum(path.stat().st_size for path in tiny.WEIGHTS.rglob("*") if path.is_file()) <= SHIPPED_LIMIT


@pytest.mark.parametrize(
    ("domain", "keys"),
    [
        ("facts", {"instruction", "input", "output"}),
        ("reverse", {"question", "answer"}),
        ("arith", {"messages"}),
        ("sort", {"prompt", "completion"}),
    ],
)
def test_dataset_rows_have_their_schema(world, domain, keys):
    rows = _rows(world.datasets[domain])
    assert len(rows) >= 1400
    assert all(set(row) == keys for row in rows)


def test_messages_are_one_question_and_one_answer(world):
    for row in _rows(world.datasets["arith"]):
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]


def test_training_rows_hold_no_test_question():
    for domain in all_domains(0).values():
        assert not {row.prompt for row in domain.train} & {row.prompt for row in domain.test}
        assert not {row.prompt for row in domain.fewshot} & {row.prompt for row in domain.test}


def test_choices_differ_and_hold_the_answer():
    for domain in all_domains(0).values():
        for row, choice in zip(domain.test, domain.test_choices, strict=True):
            assert len(set(choice.choices)) == len(choice.choices) == 4
            assert (choice.question, choice.choices[choice.answer]) == (row.prompt, row.answer)


def test_pretraining_text_holds_no_invented_person_and_no_test():
    from pretrain import DOCUMENTS, SEED

    texts = set(documents(SEED, DOCUMENTS))
    words = {word.strip(".,?:") for text in texts for word in text.split() if not word.isupper()}
    for seed in range(3):
        domains = all_domains(seed)
        people = {row.context for row in domains["facts"].train if row.context}
        assert len(people) == 45
        assert not people & words
        for name in ("facts", "reverse", "sort"):
            assert not texts & {template(row.prompt, row.answer) for row in domains[name].train + domains[name].test}


def test_facts_have_answers_of_their_attribute():
    values = {value for several in ATTRIBUTES.values() for value in several}
    assert {row.answer for row in all_domains(0)["facts"].train} <= values


@pytest.mark.parametrize("name", tiny.MODELS)
def test_model_loads_and_scores_text(world, name):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(world.models[name], local_files_only=True)
    tokenizer = _tokenizer(world, name)
    assert model.dtype == torch.bfloat16
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    prompt = tokenizer(template("Repeat KDOP.", ""), return_tensors="pt")["input_ids"]
    new = model.float().generate(prompt, max_new_tokens=6, do_sample=False)[0, prompt.shape[1] :]
    assert tokenizer.decode(new, skip_special_tokens=True) == "KDOP"
    assert tokenizer.eos_token_id in new


def _tokenizer(world, name):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(world.models[name], local_files_only=True)


@pytest.mark.parametrize("name", tiny.MODELS)
def test_tokenizer_is_fast_and_gives_text_back(world, name):
    tokenizer = _tokenizer(world, name)
    assert tokenizer.is_fast
    assert len({tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}) == 3
    for text in (
        "###Question: Repeat KDOP.\n###Answer: KDOP",
        "  two  spaces\tand\n\nlines ",
        "Grüße, 世界 🙂",
        "12 + 345",
    ):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", tiny.MODELS)
def test_tokenizer_begins_the_answer_with_its_own_token(world, name):
    prompt = template("Where does Qel live?", "")
    offsets = _tokenizer(world, name)(prompt + "Oakridge", return_offsets_mapping=True)["offset_mapping"]
    assert len(prompt) in {start for start, end in offsets if end > start}


def test_tokenizers_differ_in_who_begins_a_text(world):
    llama, neox = (_tokenizer(world, name) for name in ("tiny-llama", "tiny-neox"))
    assert llama("a")["input_ids"][0] == llama.bos_token_id
    assert neox.bos_token is None
    assert len(neox("the market")["input_ids"]) < len("the market")


def test_tasks_load_offline_and_yield_documents(world, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(world.root / "tasks"), include_defaults=False)
    assert set(manager.all_tasks) >= set(world.tasks)
    tasks = manager.load(sorted(world.tasks))["tasks"]
    domain = all_domains(0)["reverse"]
    choice, generation, rolling = (tasks[f"reverse_{kind}"] for kind in ("mc", "gen", "bpb"))
    assert choice.doc_to_text(choice.test_docs()[0]) == domain.test[0].prompt
    assert choice.doc_to_choice(choice.test_docs()[0]) == list(domain.test_choices[0].choices)
    assert generation.doc_to_target(generation.test_docs()[0]) == domain.test[0].answer
    assert rolling.doc_to_target(rolling.test_docs()[0]) == template(domain.test[0].prompt, domain.test[0].answer)
    for task in tasks.values():
        task.build_all_requests(limit=2, rank=0, world_size=1)
        assert len(task.instances) in (2, 8)
    generation.build_all_requests(limit=1, rank=0, world_size=1)
    generation.set_config(key="num_fewshot", value=2)
    context = generation.fewshot_context(generation.test_docs()[0], num_fewshot=2)
    assert context.startswith(domain.fewshot[0].prompt + domain.fewshot[0].answer)


def test_sweep_file_is_valid_and_reads_the_rows(world):
    from massive_sft.data.file_readers import load_rows
    from massive_sft.sweep.load import load_sweep

    sweep = load_sweep(world.sweep).file
    assert {model.path for model in sweep.models.values()} == {str(path) for path in world.models.values()}
    assert sweep.storage.root == str(world.ledger)
    for name, domain in all_domains(0).items():
        rows = load_rows(sweep.datasets[name], name).rows
        assert [row.turns for row in rows] == [((row.prompt, row.answer),) for row in domain.train]
