"""Data: mixtures as sets, everything counted, bad rows refused together, the token cache, the preview."""

import io
import json

import numpy as np
import pytest
from rich.console import Console
from small_tokenizers import small_tokenizer

from massive_sft.core.errors import InvalidInput
from massive_sft.data.cache import load_or_build
from massive_sft.data.mixture import build_samples
from massive_sft.data.preview import render, render_sample
from massive_sft.sweep import spec
from massive_sft.sweep.schema import Dataset, Setting, TemplateText

TOKENIZER = small_tokenizer("<s> $A")
NAMES = ("lima", "maths", "code")


def setting(**fields):
    return Setting(method="full", lr=1e-5, batch=1, **{"template": TemplateText(prompt="{prompt}\t"), **fields})


def part(folder, name, count, **fields):
    repeats = fields.pop("max_repeats", 1)
    dataset = Dataset(path=str(folder / f"{name}.jsonl"), format="gsm8k", **fields)
    return spec.Part(name=name, dataset=dataset, count=count, max_repeats=repeats)


def mixture(*parts, name="m", sample_seed=0):
    return spec.Mixture(name=name, parts=parts, sample_seed=sample_seed)


def write(folder, name, pairs):
    values = [{"question": question, "answer": answer} for question, answer in pairs]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))


@pytest.fixture
def folder(tmp_path):
    for name in NAMES:
        write(tmp_path, name, [(f"{name} {number}", str(number)) for number in range(60)])
    return tmp_path


def build(*parts, **fields):
    return build_samples(mixture(*parts), setting(**fields), TOKENIZER)


def content(samples, counts):
    """Return the set of (part's name, row, tokens)."""
    return {
        (counts.parts[samples.part[index]].name, int(samples.row[index]), samples[index][0].tobytes())
        for index in range(len(samples))
    }


def problems(*parts, **fields):
    with pytest.raises(InvalidInput) as caught:
        build(*parts, **fields)
    return str(caught.value)


# Mixtures as sets


def test_small_draw_is_the_beginning_of_a_large_one(folder):
    small, large = build(part(folder, "lima", 10)), build(part(folder, "lima", 40))
    assert content(*small) < content(*large)
    assert np.array_equal(small[0].row, large[0].row[:10])


def test_all_holds_exactly_the_rows_of_the_singles(folder):
    singles = [content(*build(part(folder, name, 20))) for name in NAMES]
    together = content(*build(*(part(folder, name, 20) for name in NAMES)))
    assert together == set.union(*singles) and len(together) == 60


def test_leave_one_out_is_all_minus_the_one(folder):
    parts = {name: part(folder, name, 20) for name in NAMES}
    everything = content(*build(*parts.values()))
    without = content(*build(*(parts[name] for name in NAMES if name != "maths")))
    assert without == everything - content(*build(parts["maths"]))


def test_another_sample_seed_draws_other_rows_and_the_training_seed_does_not_matter(folder):
    one = build(part(folder, "lima", 20))
    other = build_samples(mixture(part(folder, "lima", 20), sample_seed=1), setting(), TOKENIZER)
    assert content(*one) != content(*other)
    assert content(*one) == content(*build(part(folder, "lima", 20), seed=7))


def test_filter_leaves_the_remaining_rows_in_their_order(folder):
    whole = build(part(folder, "lima", None))[0].row
    some = build(part(folder, "lima", None, filter={"not": {"answer": ["3", "5"]}}))[0].row
    assert some.tolist() == [row for row in whole if row not in (3, 5)]


# Samples and counts


def test_samples_hold_every_part_in_order_with_rows_masks_and_bytes(folder):
    samples, counts = build(part(folder, "code", 3), part(folder, "lima", 2))
    assert samples.part.tolist() == [0, 0, 0, 1, 1] and len(samples) == 5
    assert (samples.tokens.dtype, samples.trainable.dtype, samples.offsets.dtype) == (np.int32, bool, np.int64)
    assert (samples.part.dtype, samples.row.dtype, samples.text_bytes.dtype) == (np.int16, np.int64, np.int64)
    for index in range(5):
        tokens, trainable = samples[index]
        row, name = samples.row[index], counts.parts[samples.part[index]].name
        assert TOKENIZER.decode(tokens.tolist()) == f"<s>{name} {row}\t{row}</s>"
        assert TOKENIZER.decode(tokens[trainable].tolist()) == f"\t{row}</s>"
        assert samples.text_bytes[index].tolist() == [len(f"{name} {row}\t{row}"), len(f"\t{row}")]


@pytest.mark.parametrize("fields", [{}, {"truncation": "left", "max_length": 6}])
def test_bytes_of_all_predicted_tokens_leave_out_those_of_a_first_one_that_is_text(folder, fields):
    tokenizer = small_tokenizer(bos=False)
    samples, counts = build_samples(mixture(part(folder, "lima", 3)), setting(**fields), tokenizer)
    for index in range(3):
        tokens, trainable = samples[index]
        texts = [tokenizer.decode(some.tolist()).removesuffix("</s>") for some in (tokens[1:], tokens[trainable])]
        assert tokens[0] >= 4 and samples.text_bytes[index].tolist() == [len(text.encode()) for text in texts]
    assert counts.total.text_bytes == samples.text_bytes[:, 0].sum() + 3  # of all tokens, the first of one byte each


def test_counts_say_what_became_of_every_row(tmp_path):
    write(tmp_path, "a", [("q", "x"), ("q", "x"), ("p", ""), (" ", "y"), ("long " * 9, "z"), ("refused", "none")])
    write(tmp_path, "b", [("q", "x"), ("q", "w"), ("q", "w")])
    samples, counts = build(
        part(tmp_path, "a", 10, max_repeats=2, filter={"not": {"completion": "none"}}),
        part(tmp_path, "b", None),
        truncation="drop",
        max_length=20,
    )
    first, second = counts.parts
    assert (first.source_rows, first.available, first.drawn, first.repeated) == (6, 5, 10, 5)
    assert (first.duplicates, first.dropped, first.truncated, first.samples) == (1, 2, 0, 8)
    assert (first.empty_prompts, first.empty_completions) == (2, 2)
    assert (second.source_rows, second.drawn, second.duplicates, second.samples) == (3, 3, 1, 3)
    total = counts.total
    assert (total.name, total.drawn, total.samples, total.duplicates) == ("m", 13, 11, 3)  # q/x of b is in a already
    assert total.longest == first.longest == len(TOKENIZER("long " * 9 + "\tz")["input_ids"]) + 1
    assert total.tokens == len(samples.tokens) == first.tokens + second.tokens
    assert total.trainable_tokens == samples.trainable.sum()
    assert [total.text_bytes, total.trainable_text_bytes] == samples.text_bytes.sum(axis=0).tolist()


@pytest.mark.parametrize("truncation", ["right", "left"])
def test_truncated_samples_are_counted(tmp_path, truncation):
    write(tmp_path, "a", [("q", "x"), ("q", "abcdefgh"), ("qqqqqqqqqq", "x")])
    samples, counts = build(part(tmp_path, "a", None, limit=2), truncation=truncation, max_length=8)
    assert counts.total.truncated == 1 and counts.total.longest == 12 and samples.lengths.max() == 8


# Bad input


def test_problems_of_all_parts_are_said_at_once(folder):
    write(folder, "code", [("q", "a</s>")])
    (folder / "maths.jsonl").write_text("{")
    said = problems(part(folder, "lima", 61), part(folder, "maths", 1), part(folder, "code", 1)).splitlines()
    assert said[0].startswith("mixtures.m: lima: must be at most 60 samples: it has 60 rows; ask for fewer")
    assert said[1].startswith(f"{folder}/maths.jsonl:1: is not valid JSON")
    assert said[2].startswith(f"datasets.code: {folder}/code.jsonl:1: holds the text of a special token")


def test_special_tokens_that_strip_removes_are_no_problem(folder):
    write(folder, "code", [("q", "a</s>")])
    samples, _ = build(part(folder, "code", 1, strip=["</s>"]))
    assert TOKENIZER.decode(samples.tokens.tolist()) == "<s>q\ta</s>"


def test_samples_without_a_trainable_token_left_are_named_with_the_remedy(folder):
    write(folder, "code", [("q", "a"), ("0123456789", "a")])
    said = problems(part(folder, "code", None), max_length=8)
    assert said == (
        f"datasets.code: {folder}/code.jsonl:2: has no trainable token left in max_length 8; "
        "raise it, or set truncation left or drop"
    )
    assert len(build(part(folder, "code", None), max_length=8, truncation="left")[0]) == 2


def test_samples_that_no_truncation_helps_are_told_what_does(folder):
    said = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, "qaqb", strict=True)]
    said[3]["weight"] = 0
    (folder / "code.jsonl").write_text(json.dumps({"messages": said}))
    chat = Dataset(path=str(folder / "code.jsonl"), format="messages")
    chats = spec.Part(name="code", dataset=chat, count=None)
    assert problems(chats, max_length=4, truncation="left").endswith(
        "left in max_length 4; raise it, or set truncation drop"
    )
    write(folder, "none", [("", "")])
    with pytest.raises(InvalidInput, match="nothing comes before its only one; take the row out of the data"):
        build_samples(mixture(part(folder, "none", None)), setting(template="plain"), small_tokenizer("$A"))


def test_refuse_names_every_sample_that_is_too_long(folder):
    write(folder, "code", [("0123456789", str(number)) for number in range(12)])
    said = problems(part(folder, "code", None), max_length=8, truncation="refuse").splitlines()
    assert len(said) == 2 and "and 5 more: is longer than max_length 8 (truncation: refuse)" in said[0]
    assert said[0].endswith("got 14") and ":11, 12: " in said[1]


def test_mixture_that_drop_leaves_empty_is_refused(folder):
    said = problems(part(folder, "lima", 3), max_length=4, truncation="drop")
    assert said == "mixtures.m: has no sample left; raise max_length or change truncation"


# Cache


def cached(cache, folder, calls):
    def make():
        calls.append(1)
        return build(part(folder, "lima", 5), part(folder, "code", 5))

    return load_or_build(cache, "key", make)


def assert_equal(one, other):
    assert one[1] == other[1]
    for name in ("tokens", "trainable", "offsets", "part", "row", "text_bytes"):
        first, second = getattr(one[0], name), getattr(other[0], name)
        assert np.array_equal(first, second) and first.dtype == second.dtype


def test_cache_builds_once_and_gives_the_same_samples_again(folder, tmp_path):
    calls = []
    first = cached(tmp_path / "tokens", folder, calls)
    again = cached(tmp_path / "tokens", folder, calls)
    assert len(calls) == 1
    assert_equal(first, again)


def test_cache_writes_equal_bytes_for_equal_samples(folder, tmp_path):
    for name in ("one", "two"):
        cached(tmp_path / name, folder, [])
    for file in ("key.npz", "key.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("key.npz", lambda data: data[:-1]),
        ("key.npz", lambda data: data[:200] + b"x" + data[201:]),
        ("key.json", lambda data: data[:20]),
        ("key.json", lambda data: b"{}"),
        ("key.json", lambda data: data.replace(b'"drawn"', b'"dawn"')),
        ("key.npz", None),
    ],
)
def test_damaged_cache_entry_is_built_again(folder, tmp_path, name, damage):
    calls = []
    first = cached(tmp_path / "tokens", folder, calls)
    path = tmp_path / "tokens" / name
    if damage:
        path.write_bytes(damage(path.read_bytes()))
    else:
        path.unlink()
    assert_equal(cached(tmp_path / "tokens", folder, calls), first)
    cached(tmp_path / "tokens", folder, calls)
    assert len(calls) == 2


# Preview


def test_preview_marks_the_trained_text_and_shows_special_tokens(folder):
    samples, _ = build(part(folder, "lima", 2))
    row = samples.row[1]
    text = render_sample(samples, 1, TOKENIZER, ["lima"])
    tokens, trained = len(samples[1][0]), samples[1][1].sum()
    assert text.plain == f"lima row {row}: {tokens} tokens, {trained} trained\n<s>lima {row}⟦\t{row}</s>⟧"
    styles = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert styles[f"\t{row}"] == "bold green" and styles["<s>"] == "magenta" and styles["</s>"] == "bold yellow"


def test_preview_does_not_read_data_as_markup_and_keeps_characters_of_several_tokens(tmp_path):
    write(tmp_path, "a", [("[bold]é[/]", " 😀 [red]")])
    samples, _ = build(part(tmp_path, "a", 1))
    assert render_sample(samples, 0, TOKENIZER).plain.splitlines()[1] == "<s>[bold]é[/]⟦\t 😀 [red]</s>⟧"


def test_preview_without_a_terminal_shows_counts_and_marks(folder):
    samples, counts = build(part(folder, "lima", 2), part(folder, "code", 1))
    out = io.StringIO()
    Console(file=out, width=80).print(render(samples, counts, TOKENIZER, indices=[0, 2, 99]))
    said = out.getvalue()
    assert "\x1b" not in said and "trainable tokens" in said and "total" in said
    assert said.count("⟦") == 3 and "code row" in said
