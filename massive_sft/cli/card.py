"""The model card of an exported cell: what it is, what it was trained on, how it scored, how to load it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from massive_sft.cli.cell_lookup import CellMatch
from massive_sft.cli.show import find_losses
from massive_sft.cli.views import score_texts
from massive_sft.core.fingerprint import flatten
from massive_sft.ledger.provenance import redact
from massive_sft.suites.metrics import EARLY
from massive_sft.sweep.schema import Model

# Parts of a cell's content that the card shows elsewhere, or that only a program reads.
_SHOWN_APART = ("base", "data", "epoch", "train_semantics")


@dataclass(frozen=True)
class TrainedPrompt:
    """How a model was asked in its training.

    Attributes:
        template: a text with ``{prompt}``; None for the tokenizer's chat template.
        end: the token that ended every answer.
    """

    template: str | None
    end: str


def render_card(
    match: CellMatch, model: Model, merged: bool, weights: dict[str, str], prompt: TrainedPrompt, folder: str
) -> str:
    """Return the README.md of an exported cell, as Markdown with YAML front matter.

    Args:
        match: a trained cell of the sweep.
        model: its base.
        merged: whether the adapter was added to the base.
        weights: SHA-256 of the weight files by name.
        prompt: how to ask it.
        folder: the name of the folder that it is in.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("massive_sft.cli"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _table_cell
    environment.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)
    record = match.asked_record
    return environment.get_template("README.md.jinja").render(
        match=match,
        coordinates=match.coordinates,
        model=model,
        base=model.hub or str(model.path),
        is_adapter=match.coordinates.method == "lora" and not merged,
        merged=merged,
        dtype="fp32" if merged else match.run.trajectory.recipe.setting.precision if match.run else "",
        setting=_setting(match),
        data=_data(match),
        counts=dict(record.counts.get("total") or {}) if record else {},  # type: ignore[arg-type]
        scores=_scores(match),
        early=_early(match),
        protocol=match.sweep.sweep.file.evaluation.protocol if match.sweep else None,
        plainly=record.cost.get("plainly") if record else None,
        missing=dict(record.missing) if record else {},
        training=dict(record.training) if record else {},
        losses=find_losses(match.ledger, record) if record else {},
        provenance=_provenance(match),
        weights=weights,
        template=prompt.template,
        end=prompt.end,
        fence="`" * max(3, 1 + max((len(run) for run in re.findall("`+", prompt.template or "")), default=0)),
        folder=folder,
    )


def _setting(match: CellMatch) -> dict[str, Any]:
    content = {key: value for key, value in match.content.items() if key not in _SHOWN_APART}
    return flatten(content)


def _data(match: CellMatch) -> list[dict[str, Any]]:
    """Return the datasets of the mixture: name, source and how many rows were drawn (None: all)."""
    if match.run is None:
        return []
    parts = match.run.trajectory.recipe.mixture.parts
    return [
        {"name": part.name, "source": redact(str(part.dataset.hub or part.dataset.path)), "samples": part.count}
        for part in parts
    ]


def _scores(match: CellMatch) -> list[dict[str, str]]:
    if match.record is None:
        return []
    return [
        {
            "benchmark": item.benchmark,
            "task": task,
            **score_texts(metric, score, item.early is not None),
        }
        for item in sorted(match.record.scores.values(), key=lambda item: item.benchmark)
        for task, metrics in {**item.tasks, **item.groups}.items()
        for metric, score in metrics.items()
    ]


def _early(match: CellMatch) -> list[str]:
    """Return a line for each benchmark of which not all questions were asked."""
    scores = match.record.scores.values() if match.record else ()
    return [f"{EARLY} {item.benchmark}: {item.early}" for item in scores if item.early]


def _provenance(match: CellMatch) -> dict[str, Any]:
    record = match.asked_record
    if record is None:
        return {}
    kept = ("git", "python", "libraries", "sweep_file")
    origin = {key: record.provenance.get(key) for key in kept}
    return {key: value for key, value in flatten(origin).items() if value is not None}


def _table_cell(value: Any) -> str:
    """Return a value for a cell of a Markdown table: one line, nothing in it read as Markdown or HTML."""
    text = " ".join(str(value).split())
    return re.sub(r"([\\`*_{}\[\]<>#|~!$&])", r"\\\1", text)
