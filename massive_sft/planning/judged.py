"""Benchmarks that a judge scores, as what they are: their files by content, their judges by name."""

from __future__ import annotations

from typing import Any

from massive_sft.core.errors import InvalidInput
from massive_sft.sweep import semantics
from massive_sft.sweep.content import Contents, resolve_path
from massive_sft.sweep.load import Sweep
from massive_sft.sweep.schema import JudgedBenchmark, Judging

FILES = ("questions", "references", "baseline", "gamed", "prompts")


def judged_benchmarks(sweep: Sweep, contents: Contents) -> list[tuple[JudgedBenchmark, dict[str, Any]]]:
    """Return each benchmark that a sweep has judged, with absolute paths, and what it is.

    A judge is its name and how much it may write: endpoints, keys, prices and limits change no verdict. A file that is
    not there is noted as missing in ``contents``.
    """
    judging = sweep.file.evaluation.judging
    if judging is None:
        return []
    found = []
    for number, benchmark in enumerate(judging.benchmarks):
        located, content = {}, {}
        for name in FILES:
            text = getattr(benchmark, name)
            if text is not None:
                place = judged_place(number, name)
                content[name] = contents.file(text, place)
                located[name] = _located(sweep, text, place)
        found.append((benchmark.model_copy(update=located), content | _plain(benchmark, judging)))
    return found


def judged_place(number: int, name: str) -> str:
    """Return where a sweep file names something of a judged benchmark."""
    return f"evaluation.judging.benchmarks[{number}].{name}"


def _located(sweep: Sweep, text: str, place: str) -> str:
    try:
        return str(resolve_path(text, sweep.folder, sweep.place(place)))
    except InvalidInput:  # which ``contents`` has noted
        return text


def _plain(benchmark: JudgedBenchmark, judging: Judging) -> dict[str, Any]:
    return {
        **benchmark.model_dump(include={"kind", "logprobs", "max_tokens", "limit"}),
        "judges": [judge.model_dump(include={"name", "max_tokens"}) for judge in judging.judges],
        "judging": semantics.JUDGING_SEMANTICS,
    }
