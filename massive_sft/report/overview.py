"""Sections around the numbers: what went wrong, what ran, what data it saw, where it came from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from massive_sft.core.wording import counted
from massive_sft.ledger.record import Status
from massive_sft.planning.plan import Plan
from massive_sft.report.formatting import (
    MISSING,
    format_count,
    format_duration,
    format_interval,
    format_large,
    format_number,
    is_missing,
)
from massive_sft.report.html_table import Column, Table, of_texts, without
from massive_sft.report.report_data import ReportData
from massive_sft.report.section import FactBlock, Section, TableBlock
from massive_sft.study.findings import Finding
from massive_sft.study.frames import to_rows
from massive_sft.sweep.schema import Measure
from massive_sft.sweep.semantics import text_set
from massive_sft.sweep.spec import Layout


def head(data: ReportData) -> list[tuple[str, str]]:
    """Return the figures that stand at the top."""
    runs = data.trainings.drop_duplicates("trajectory")
    records = data.records.values()
    when = MISSING
    if records:
        when = f"{_minute(data.began)} to {_minute(max(record.finished for record in records))} UTC"
    benchmarks = data.scores["column"].nunique()
    return [
        ("Cells", f"{len(data.plan.cells):,}"),
        ("Training runs", f"{len(runs):,} of {len(data.plan.runs):,}"),
        ("Benchmarks", f"{benchmarks:,}"),
        ("Tokens trained", format_large(runs["tokens"].sum()) if runs["tokens"].notna().any() else MISSING),
        ("Training time", format_duration(float(runs["seconds"].sum())) if runs["seconds"].notna().any() else MISSING),
        ("When", when),
        ("Commit", commits(data)),
    ]


def statuses(data: ReportData) -> list[tuple[str, int]]:
    """Return how many cells have each status, those that occur."""
    counts = Counter(data.statuses.values())
    return [(str(status), counts[status]) for status in Status if counts[status]]


def _minute(moment: str) -> str:
    return moment[:16].replace("T", "\N{NO-BREAK SPACE}")


def commits(data: ReportData) -> str:
    """Return the commits that the records were made with; ``+`` marks uncommitted changes."""
    counts = Counter(_commit(record.provenance) for record in data.records.values())
    shown = [name for name, _ in counts.most_common(3)]
    return ", ".join(shown) + (f" and {len(counts) - 3} more" if len(counts) > 3 else "") if shown else MISSING


def _commit(provenance: dict[str, Any]) -> str:
    git = provenance.get("git")
    if not isinstance(git, dict) or not git.get("commit"):
        return "unknown"
    return str(git["commit"])[:10] + ("+" if git.get("dirty_sha256") else "")


def warnings_section(findings: Sequence[Finding], remedies: Sequence[str] = ()) -> Section:
    """Return everything that limits what the numbers can say.

    Args:
        remedies: commands that fill what is missing, a sentence each.
    """
    rows = [
        [item.kind, item.text, str(len(item.cells)) if item.cells else MISSING, ", ".join(item.cells[:8])]
        for item in findings
    ]
    if not rows:
        return Section("troubles", "Failures and warnings", ["None: every cell has all that was asked of it."], [])
    notes = [", ".join(_concerned(kind, findings) for kind in dict.fromkeys(item.kind for item in findings)) + "."]
    notes += [f"{sentence}." for sentence in remedies]
    columns = [
        Column("kind", "facet"),
        Column("what", "long"),
        Column("cells", "number"),
        Column("ids (the first eight)", "long"),
    ]
    table = of_texts("troubles", "Failures and warnings", columns, rows, page=10)
    return Section("troubles", "Failures and warnings", notes, [TableBlock(table)], alarming=True)


def _concerned(kind: str, findings: Sequence[Finding]) -> str:
    """Return a kind of finding with how many cells it concerns; how often it was found where it names no cells."""
    found = [item for item in findings if item.kind == kind]
    cells = {cell for item in found for cell in item.cells}
    return f"{kind}: {counted(len(cells), 'cell') if cells else len(found)}"


def runs_section(data: ReportData) -> Section:
    """Return models, mixtures, settings, layouts, and what sharing saved."""
    plan = data.plan
    saved = plan.sharing
    runs, epochs = counted(saved.runs, "training run"), counted(saved.run_epochs, "epoch")
    note = f"{runs} of {epochs} in all for {counted(saved.cells, 'trained cell')}"
    if saved.cell_epochs > saved.run_epochs:
        note += f"; a training for each cell would take {counted(saved.cell_epochs, 'epoch')}"
    note += "."
    if saved.split_by_horizon:
        note += (
            f" {saved.split_by_horizon} training runs differ only in the horizon of a decaying schedule and cannot be "
            "shared."
        )
    protocol, until = plan.sweep.file.evaluation.protocol, plan.sweep.file.evaluation.until
    facts = [
        ("Benchmarks", ", ".join(data.columns) or MISSING),
        (
            "Protocol",
            f"engine {protocol.engine}, {protocol.dtype}, template {protocol.template}, adapters {protocol.adapters}",
        ),
        *([] if until is None else [("Early answers", f"within ±{until:g} points of the full score")]),
        ("Measures", ", ".join(map(_measure, plan.sweep.file.measures)) or "none"),
        ("Storage", str(plan.storage)),
    ]
    return Section(
        "ran", "What ran", [note], [TableBlock(_models(data)), TableBlock(_settings(plan)), FactBlock(facts)]
    )


def _measure(declared: Measure) -> str:
    return declared if isinstance(declared, str) else text_set(declared.title)


def _parameters(training: Mapping[str, Any], lora: bool) -> int:
    """Return a model's weights, by what a record says of a training: its adapter's are counted there, too."""
    return int(training["parameters"]) - (int(training["trained_parameters"]) if lora else 0)


def _models(data: ReportData) -> Any:
    file = data.plan.sweep.file
    names = dict.fromkeys(item.cell.coordinates.model for item in data.plan.cells)
    parameters = {
        record.coordinates["model"]: _parameters(record.training, record.coordinates["method"] == "lora")
        for record in data.records.values()
        if "parameters" in record.training
    }
    rows = []
    for name in names:
        model = file.models[name]
        source = f"{model.hub} @ {model.revision}" if model.hub else str(model.path)
        cells = [item for item in data.plan.cells if item.cell.coordinates.model == name]
        done = sum(data.statuses[item.cell.id] is Status.COMPLETE for item in cells)
        rows.append([name, source, format_large(parameters.get(name)), f"{done} of {len(cells)}"])
    return of_texts(
        "models",
        "Models",
        [Column("model"), Column("source"), Column("parameters", "number"), Column("cells complete", "number")],
        rows,
    )


def _settings(plan: Plan) -> Any:
    columns = [Column(name) for name in ("setting", "method", "schedule", "snapshots")]
    columns += [Column(name, "number") for name in ("learning rate", "batch", "max length")]
    columns += [Column("precision"), Column("LoRA"), Column("layout"), Column("training runs", "number")]
    rows: Counter[tuple[str, ...]] = Counter()
    for run in plan.runs:
        recipe, setting = run.trajectory.recipe, run.trajectory.recipe.setting
        first = run.trajectory.cells[0].coordinates
        lora = f"rank {setting.lora.rank}, alpha {setting.lora.alpha:g}" if setting.method == "lora" else MISSING
        layout = f"{counted(run.layout.workers, 'worker')}, {counted(run.layout.gpus, 'GPU')}"
        layout += _engine(run.layout)
        schedule = recipe.schedule.label + (f" over {first.horizon}" if first.horizon else "")
        epochs = ", ".join(map(str, run.trajectory.snapshots))
        name = f"{recipe.setting_name} {first.variant}".strip()
        row = (name, setting.method, schedule, epochs, f"{setting.lr:g}", str(setting.batch), str(setting.max_length))
        rows[(*row, setting.precision, lora, layout)] += 1
    return of_texts("settings", "Settings", columns, [[*row, str(runs)] for row, runs in rows.items()])


def _engine(layout: Layout) -> str:
    return "" if layout.stage is None else f", ZeRO-{layout.stage}"


def data_section(data: ReportData) -> Section:
    """Return what each model saw of each mixture, and how new that was to it."""
    frame = data.trainings
    rows = to_rows(frame[frame["samples"].notna()])
    columns = [Column(name, "number") for name in _COUNTS]
    columns += [] if frame["token_length"].isna().all() else [Column("tokens a sample", "number")]
    tables = [_data_table("data", "Training data", columns, rows, lambda row: _counts(row)[: len(columns)])]
    if any(not is_missing(row["perplexity_all"]) for row in rows):
        caption = "Perplexity of the training data under the base model"
        tables.append(_data_table("data-perplexity", caption, _PERPLEXITY, rows, _perplexities))
    notes = [
        "Samples are drawn from the available rows by one permutation; truncated ones lost text to the maximum length, "
        "dropped ones are not in the training, duplicates occur more than once. Perplexity per token, under the "
        "base model; that of the text, and bits per byte, without EOS and other special tokens.",
    ]
    return Section("data", "Training data", notes, [TableBlock(table) for table in tables])


_COUNTS = {
    "available": "available",
    "samples": "samples",
    "truncated": "truncated",
    "dropped": "dropped",
    "duplicates": "duplicates",
    "repeated": "repeated",
    "tokens": "data_tokens",
    "trained tokens": "trainable_tokens",
}
"""Columns, and what they are in ``frames.cell_frame``."""
_PERPLEXITY = [
    Column("all tokens", "number"),
    Column("95 % interval"),
    Column("n", "number"),
    Column("response tokens", "number"),
    Column("95 % interval"),
    Column("n", "number"),
    Column("response text", "number"),
    Column("its bits per byte", "number"),
]


def _counts(row: dict[str, Any]) -> list[str]:
    length = row["token_length"]
    counts = [format_count(row[name]) for name in _COUNTS.values()]
    return [*counts, MISSING if is_missing(length) else format_number(length, 1)]


def _perplexities(row: dict[str, Any]) -> list[str]:
    values: list[str] = []
    for over in ("all", "response"):
        bounds = format_interval(row[f"perplexity_{over}_low"], row[f"perplexity_{over}_high"])
        values += [format_number(row[f"perplexity_{over}"], 2), bounds, format_count(row[f"perplexity_tokens_{over}"])]
    return [*values, format_number(row["perplexity_text_response"], 2), format_number(row["bits_per_byte_response"], 3)]


def _data_table(
    key: str,
    caption: str,
    columns: Sequence[Column],
    rows: Sequence[dict[str, Any]],
    values: Callable[[dict[str, Any]], list[str]],
) -> Table:
    """Return a line a model and mixture, told apart by their settings only where these made other data of it."""
    settings: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        line = (str(row["model"]), str(row["mixture_label"]), *values(row))
        settings.setdefault(line, []).append(str(row["setting_label"]))
    heads = [Column("model", "facet"), Column("mixture", "facet"), Column("settings", "long"), *columns]
    told = [[*line[:2], ", ".join(dict.fromkeys(settings[line])), *line[2:]] for line in settings]
    if len({tuple(line[:2]) for line in told}) == len(told):
        heads, told = without(2, heads), [without(2, line) for line in told]
    return of_texts(key, caption, heads, told)


def provenance_section(data: ReportData) -> Section:
    """Return the distinct circumstances under which the records were made."""
    counts: Counter[str] = Counter()
    for record in data.records.values():
        counts[
            json.dumps({key: value for key, value in record.provenance.items() if key != "captured"}, sort_keys=True)
        ] += 1
    rows = [_provenance_row(json.loads(text), cells) for text, cells in counts.most_common()]
    columns = [
        Column("cells", "number"),
        *(Column(name) for name in ("commit",)),
        Column("command", "long"),
        *(Column(name) for name in ("sweep file", "host", "Python", "platform")),
        Column("libraries", "long"),
    ]
    several = "All under the same circumstances." if len(rows) == 1 else f"{len(rows)} different circumstances."
    notes = [
        f"{several} A commit with + had uncommitted changes. Each cell's own record, with the checksums of all files "
        "it rests on, lies in the ledger."
    ]
    return Section(
        "provenance", "Provenance", notes, [TableBlock(of_texts("provenance", "Provenance", columns, rows, page=10))]
    )


def _provenance_row(what: dict[str, Any], cells: int) -> list[str]:
    libraries = ", ".join(f"{name} {version}" for name, version in (what.get("libraries") or {}).items() if version)
    sweep = what.get("sweep_file") or {}
    file = f"{sweep['name']} {str(sweep['sha256'])[:10]}" if sweep else MISSING
    texts = [str(what.get(name, MISSING)) for name in ("argv", "host", "python", "platform")]
    return [str(cells), _commit(what), texts[0], file, *texts[1:], libraries]
