"""What of the sweep file is a cell's identity: the fields that are hashed, and what is left out of them.

A content is made from these tables, never from a list of keys beside them: a field of the schema is in exactly one of
``HASHED`` and ``UNHASHED`` (a test holds them closed, and changes each to see whether the id moves).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from massive_sft.sweep import semantics, template
from massive_sft.sweep.schema import Schedule, Setting, StrictModel, TemplateText

# Hashed: it changes the result. A path is hashed as the content it leads to, a name never is.
HASHED: dict[str, frozenset[str]] = {
    "Model": frozenset({"hub", "path", "revision", "tokenizer", "trust_remote_code"}),
    "Dataset": frozenset(
        {"hub", "path", "revision", "subset", "split", "files", "format", "columns", "turns", "filter", "limit"}
        | {"strip"}
    ),
    "Columns": frozenset({"prompt", "completion", "messages"}),
    "MixtureEntry": frozenset({"each", "concat", "leave_one_out", "weights", "samples"}),
    "Mixtures": frozenset({"sample_seed"}),
    "TemplateText": frozenset({"prompt"}),
    "Optimizer": frozenset({"name", "betas", "eps", "weight_decay", "decay", "clip"}),
    "Lora": frozenset({"rank", "alpha", "dropout", "targets"}),
    "Setting": frozenset(
        {"method", "lr", "batch", "template", "loss_on", "max_length", "truncation", "precision", "optimizer"}
        | {"warmup_steps", "seed", "lora"}
    ),
    "Schedule": frozenset({"name", "final", "decay"}),
    "Block": frozenset({"model", "mixture", "setting", "schedule", "horizon", "snapshots", "exclude", "override"}),
}
UNHASHED: dict[str, frozenset[str]] = {
    "Model": frozenset({"gated"}),
    "MixtureEntry": frozenset({"max_repeats"}),  # a permission: the counts say what was repeated
    "Block": frozenset({"name"}),
    "Fewshot": frozenset({"sampler", "seed"}),  # this and the next three have an identity of their own: what is asked
    "Protocol": frozenset({"engine", "dtype", "template", "adapters", "fewshot"}),
    "Task": frozenset({"name", "path", "shots", "limit"}),
    "TextSet": frozenset({"texts", "name", "column", "limit"}),
    "Evaluation": frozenset(
        {"base", "protocol", "vllm", "suites", "tasks", "until", "allow_code_execution", "sandbox", "judging"}
    ),
    "Vllm": frozenset({"servers", "at_once", "timeout"}),
    "Judging": frozenset({"judges", "benchmarks", "budget", "max_failures"}),  # and these: see planning.judged
    "Judge": frozenset({"name", "endpoint", "key", "max_tokens", "concurrency", "per_minute", "timeout", "price"}),
    "Price": frozenset({"input", "output"}),
    "JudgedBenchmark": frozenset(
        {"kind", "name", "questions", "references", "baseline", "gamed", "prompts", "logprobs", "max_tokens", "limit"}
    ),
    "When": frozenset({"model", "mixture", "setting", "method", "phase"}),
    "Resource": frozenset(
        {"when", "gpus", "workers", "zero", "offload", "micro_batch", "packing", "gradient_checkpointing", "attention"}
        | {"kernels", "lora_at_once", "gpu", "gpus_per_replica", "replicas"}
    ),
    "Cluster": frozenset({"wait"}),
    "KeepSnapshots": frozenset({"full", "lora"}),
    "Storage": frozenset({"root", "snapshots", "keep_snapshots", "keep_state", "max_waiting", "resume_every"}),
    "Tracking": frozenset({"mlflow"}),
    "Budget": frozenset({"gpu_hours", "price_per_gpu_hour"}),
    # Of searches, whose ids are made of what their words stand for (``search.identity``).
    "Search": frozenset(
        {"name", "from_", "over", "model", "mixture", "setting", "schedule", "horizon", "snapshots", "space"}
        | {"objective", "constraints", "rungs", "sampler", "trials", "at_once", "seed", "retries", "start", "order"}
        | {"stop", "budget", "evaluate", "proxy", "confirm"}
    ),
    "Range": frozenset({"log", "linear", "powers_of_2", "times", "by"}),
    "Mean": frozenset({"mean", "scale"}),
    "Objective": frozenset({"maximize", "minimize", "for_each"}),
    "Bound": frozenset({"at_least", "at_most"}),
    "Start": frozenset({"portfolio", "qmc", "singles", "all", "leave_one_out", "pairs"}),
    "Parked": frozenset({"at_most"}),
    "Rungs": frozenset({"at", "keep", "parked"}),
    "Weights": frozenset({"samples", "weights", "max_repeats", "at_most"}),
    "Stop": frozenset({"regret", "probability"}),
    "SearchBudget": frozenset({"gpu_hours"}),
    "SearchEvaluation": frozenset({"shards"}),
    "Proxy": frozenset({"merge"}),
    "Confirm": frozenset({"top", "seeds"}),
}
# Fields added after ids were first given out, as {class: {field: neutral value}}: the neutral value reproduces the
# earlier behaviour and is left out of the content, so that earlier ids stay. Entries are never changed or removed.
NEUTRAL: dict[str, dict[str, Any]] = {"Optimizer": {"decay": "all"}}


def entry_content(entry: StrictModel, but: Collection[str] = ()) -> dict[str, Any]:
    """Return an entry's hashed fields with every default written out, entries within it likewise.

    Left out are fields that have no effect beside the others' values (``StrictModel.unused_fields``) and later fields
    that have their neutral value.

    Args:
        but: fields that the caller renders: a path as the content it leads to.
    """
    kind = type(entry).__name__
    neutral = NEUTRAL.get(kind, {})
    left_out = {*but, *entry.unused_fields, *(name for name, value in neutral.items() if getattr(entry, name) == value)}
    values = {name: getattr(entry, name) for name in HASHED[kind] - left_out}
    return {name: entry_content(value) if isinstance(value, StrictModel) else value for name, value in values.items()}


def setting_content(setting: Setting) -> dict[str, Any]:
    """Return a setting's identity, less its seed: every default written out, LoRA fields only for LoRA."""
    content = entry_content(setting, but=("seed", "template")) | {"template": template_content(setting)}
    if "lora" in content and isinstance(setting.lora.targets, tuple):
        content["lora"]["targets"] = sorted(set(setting.lora.targets))
    if setting.method == "lora":
        content["optimizer"].pop("decay", None)  # adapters have matrices only
    return content


def template_content(setting: Setting) -> dict[str, Any]:
    """Return a template's identity: its text, so that renaming one changes nothing."""
    if isinstance(setting.template, TemplateText):
        return entry_content(setting.template)
    if setting.template == template.CHAT:
        return {"chat": True, **semantics.chat()}
    return entry_content(TemplateText(prompt=template.PROMPTS[setting.template]))


def schedule_content(schedule: Schedule, horizon: int) -> dict[str, Any]:
    """Return a schedule's identity, less what it ignores: a constant one has no horizon and no end."""
    return entry_content(schedule) | ({"horizon": horizon} if schedule.has_horizon else {})
