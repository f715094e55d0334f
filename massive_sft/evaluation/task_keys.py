"""The keys of a task file, and of the entries of a group's list, that nothing reads, and values that nothing knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from lm_eval.config.group import GroupConfig
from lm_eval.config.task import TaskConfig

from massive_sft.evaluation.opencompass import DECLARED, PROGRAMS, RULES
from massive_sft.evaluation.task_errors import did_you_mean
from massive_sft.suites.declared import number_of_shots

CLOSEST = 5  # names, or reasons, that are printed


def keys_problem(config: Mapping[str, Any]) -> str | None:
    """Return what lm-eval, or this package, does not know in a task file's content; None where it knows all."""
    reasons = list(_key_reasons(config))
    more = [f"and {len(reasons) - CLOSEST} more"] if len(reasons) > CLOSEST else []
    return "; ".join(reasons[:CLOSEST] + more) or None


_KEYS = {field.name for kind in (TaskConfig, GroupConfig) for field in dataclasses.fields(kind)} | {"task_list"}


def _key_reasons(config: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Yield what lm-eval would not know in a task file, and in the entries of a group's list of tasks."""
    if "class" in config:
        return  # which takes what it likes
    for key in sorted(map(str, config.keys() - _KEYS)):
        if above and key == "include":
            yield (
                f"includes {config[key]} within {above}, which lm-eval does at the top of a file alone: "
                "give the task a file of its own, and name it in the group"
            )
        else:
            yield f"has the unknown key {key}{f' in {above}' if above else ''}{did_you_mean(key, sorted(_KEYS))}"
    choices = config.get("doc_to_choice")
    if isinstance(choices, list) and any("{{" in str(choice) for choice in choices):
        yield f'has choices that lm-eval takes as they are, {choices[0]!r}: write "{{{{[first, second]}}}}" for columns'
    if number_of_shots(shots := config.get("num_fewshot")) is None:
        yield f"has num_fewshot: {shots!r}, which must be one whole number: several are for shots in the sweep file"
    metadata = config.get("metadata")
    if isinstance(metadata, Mapping) and DECLARED in metadata:
        yield from _rule_reasons(metadata[DECLARED], config)
    members = config.get("task")
    for member in members if isinstance(members, list) else []:
        if isinstance(member, Mapping):
            yield from _key_reasons(member, f"its entry {member.get('task') or member.get('group')}")


def _rule_reasons(rule: Any, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield why no answer would be scored by the rule of OpenCompass that a task file names."""
    valid = sorted({*RULES, *PROGRAMS})
    if rule not in valid:
        near = did_you_mean(str(rule), valid)
        yield f"has metadata.{DECLARED}: {rule!r}{near}, which must be one of {', '.join(valid)}"
    if (output := config.get("output_type")) not in (None, "generate_until"):
        yield f"has metadata.{DECLARED}, which is for generated answers, beside output_type: {output}"
