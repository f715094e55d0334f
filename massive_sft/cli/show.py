"""``show``: one cell, its record where it has one; or a search, each decision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from massive_sft.cli.cell_lookup import CellMatch, find_record, locate_cell
from massive_sft.cli.logs import sparkline
from massive_sft.cli.options import CellId, Json, Overlays, Sweep, console, print_json
from massive_sft.cli.search_view import find_search, search_json, search_view
from massive_sft.cli.views import STYLES, indented, make_table, score_texts
from massive_sft.core.errors import Corrupt
from massive_sft.ledger.record import BenchmarkScores, Record, Status
from massive_sft.ledger.record_warnings import find_warnings
from massive_sft.ledger.store import Ledger
from massive_sft.planning.outcome import find_remedies
from massive_sft.study.imported import is_imported, open_imported
from massive_sft.suites.metrics import EARLY, protocol_name
from massive_sft.sweep.cell import Coordinates

OF_WHAT = {"perplexity": " of the training data under the base model"}  # where a measure is not of the cell's own model
LAYERS = 8  # that are listed each on a line; more are drawn on one


def show(cell: CellId, sweep: Sweep = None, overlay: Overlays = None, as_json: Json = False) -> None:
    """One cell: scores, measures, training, data, settings, provenance; without a record, what is asked of it.

    By a search's name: each of its decisions, what came of it and why it was made.
    """
    searched = None if sweep is not None and is_imported(sweep) else find_search(cell, sweep, overlay)
    if searched is not None:
        if as_json:
            print_json(search_json(searched))
        else:
            console().print(search_view(searched))
        return
    if sweep is not None and is_imported(sweep):
        ledger = open_imported(sweep).ledger
        record: Record | None = find_record(ledger, cell)
        beside: Collection[str] = ()
        templates: Mapping[str, str] = {}
        untried, remedies = list[str](), list[str]()
    else:
        match = locate_cell(cell, sweep, overlay)
        ledger, record, beside = match.ledger, match.asked_record, match.beside
        templates = match.templates
        untried, remedies = match.untried, find_remedies(match.sweep, [match.id]) if match.sweep else []
    if as_json:
        print_json(record_json(record) if record else waiting_json(match))
    elif record is None:
        console().print(waiting_view(match))
    else:
        losses, settings = find_losses(ledger, record), find_settings(ledger, record)
        console().print(record_view(record, losses, settings, beside, templates))
        for sentence in (*(f"missing {name}: not done yet" for name in untried), *remedies):
            console().print(sentence, style="yellow", soft_wrap=True)


def find_settings(ledger: Ledger, record: Record) -> dict[str, Any]:
    """Return a cell's hyperparameters as in the sweep file; nothing of a base model, or where its content is gone."""
    from massive_sft.study.hyperparameters import hyperparameters

    with suppress(FileNotFoundError, Corrupt):
        return hyperparameters(ledger.read_cell(record.cell))
    return {}


def find_losses(ledger: Ledger, record: Record) -> dict[str, float]:
    """Return the losses of a cell's training by what they are in words."""
    from massive_sft.study.file_frames import end_losses, loss_words

    return loss_words(record, end_losses(ledger, record))


def record_json(record: Record) -> dict[str, Any]:
    """Return a record as it is on the disk, but for the mixture's name."""
    shown = {"mixture" if name == "data" else name: value for name, value in record.coordinates.items()}
    return record.model_dump(mode="json", by_alias=True) | {"coordinates": shown}


def waiting_json(match: CellMatch) -> dict[str, Any]:
    """Return what is known of a cell without a record, under a record's names."""
    about = {"cell": match.id, "trajectory": match.trajectory, "coordinates": match.coordinates.by_shown_name()}
    return {"schema": 1, **about, "status": str(match.status), "scores": {}, "measures": {}}


def waiting_view(match: CellMatch) -> Group:
    """Return what is known of a cell without a record, for people."""
    requirements = match.plan.requirements if match.plan else ()
    asked = ", ".join(item.label for item in requirements) or "nothing but its training"
    return Group(_head(match.id, str(match.coordinates), match.status), Text(f"no record yet; asked for: {asked}"))


def record_view(
    record: Record,
    losses: Mapping[str, float],
    settings: Mapping[str, Any],
    beside: Collection[str],
    templates: Mapping[str, str],
) -> Group:
    """Return a record for people.

    Args:
        losses, settings: of ``find_losses`` and ``find_settings``.
        beside: protocols that the sweep does not ask for, whose scores stand apart.
        templates: as of ``frames.tidy``.
    """
    name = Coordinates.describe(record.coordinates)
    parts: list[Any] = [_head(record.cell, name, record.status), _facts(record, losses)]
    if record.error:
        parts.append(Text(record.error, style="red"))
    asked = [score for protocol, score in record.scores.items() if protocol not in beside]
    others = [score for protocol, score in record.scores.items() if protocol in beside]
    if asked:
        parts += [Text(), scores_table(asked, templates)]
    parts += [Text(f"{EARLY} {score.benchmark}: {score.early}", style="dim") for score in asked if score.early]
    if others:
        parts += [
            Text(),
            Text("scores that this sweep does not ask for", style="bold"),
            scores_table(others, templates),
        ]
    for name, why in record.missing.items():
        parts.append(Text(f"missing {name}: {why}", style="yellow"))
    parts += [Text(f"warning: {text}", style="yellow") for text in find_warnings(record)]
    for name, value in record.measures.items():
        parts += [Text(), Text.assemble((name, "bold"), OF_WHAT.get(name, "")), _tree(value)]
    if record.counts:
        parts += [Text(), Text("data", style="bold"), _tree(record.counts.get("total", record.counts))]
    if settings:
        parts += [Text(), Text("settings", style="bold"), _tree(_on_one_line(settings))]
    if record.provenance:
        parts += [Text(), Text("provenance", style="bold"), *_provenance(record.provenance)]
    return Group(*parts)


def _provenance(value: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield a line a fact, what belongs together (versions of libraries, the commit) on one."""
    for key, item in value.items():
        listed = isinstance(item, dict)
        yield indented(
            f"  {key}: " + (", ".join(f"{name} {_plain(it)}" for name, it in item.items()) if listed else _plain(item))
        )


def _on_one_line(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with texts of several lines, which templates are, as they stand in code."""
    texts = {name: repr(value) for name, value in settings.items() if isinstance(value, str) and "\n" in value}
    return {**settings, **texts}


def _head(cell: str, name: str, status: Status) -> Text:
    return Text.assemble((cell, "bold"), "  ", name, "  ", (str(status), STYLES[status]))


def scores_table(scores: Collection[BenchmarkScores], templates: Mapping[str, str]) -> Table:
    """Return a table of scores: one row a task, metric and filter; ``templates`` as of ``frames.tidy``."""
    several = Counter(benchmark.benchmark for benchmark in scores)
    numbers = ("value", "95 % interval", "n")
    table = make_table("benchmark", "task", "metric", *numbers, right=numbers, whole=numbers)
    for benchmark in sorted(scores, key=lambda benchmark: benchmark.benchmark):
        name = benchmark.benchmark
        if several[name] > 1:
            name += f" [{protocol_name(benchmark.asked, templates)}]"
        for task, metrics in {**benchmark.tasks, **benchmark.groups}.items():
            for metric, score in metrics.items():
                table.add_row(name, task, *score_texts(metric, score, benchmark.early is not None).values())
    return table


def _facts(record: Record, losses: Mapping[str, float]) -> Text:
    facts = [f"attempt {record.attempt}", f"finished {record.finished}"]
    for name in ("steps", "tokens", "seconds"):
        value = record.training.get(name)
        if value is not None:
            facts.append(f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value:,}")
    facts += [f"{name} {value:.4g}" for name, value in losses.items()]
    resumed = record.training.get("resumed")
    facts += [_resumed(entry) for entry in resumed] if isinstance(resumed, list) else []
    return Text(", ".join(facts), style="dim")


def _resumed(entry: Any) -> str:
    if entry["source"] is None:
        return f"attempt {entry['attempt']} began at the start ({'; '.join(entry['notes'])})"
    same = {True: ", exactly", False: ", not exactly", None: ""}[entry["exact"]]
    notes = f" ({'; '.join(entry['notes'])})" if entry["notes"] else ""
    return f"attempt {entry['attempt']} went on after step {entry['step']:,}{same}{notes}"


def _tree(value: Any, depth: int = 1) -> Text:
    if not isinstance(value, dict):
        return Text("  " * depth + _plain(value))
    lines = []
    for key, item in _in_order(value):
        if _is_series(item):
            values = [value for _, value in _in_order(item)]
            line = f"{key}: {_plain(values[0])} {sparkline(values)} {_plain(values[-1])} ({len(values)} layers)"
            lines.append(Text("  " * depth + line))
        elif isinstance(item, dict):
            lines += [Text("  " * depth + str(key)), _tree(item, depth + 1)]
        elif key != "schema":
            lines.append(Text("  " * depth + f"{key}: {_plain(item)}"))
    return Text("\n").join(lines)


def _is_series(value: Any) -> bool:
    """Return whether a value is a number for each of so many layers that a line a layer would fill the screen."""
    return (
        isinstance(value, dict)
        and len(value) > LAYERS
        and all(key.isdecimal() and isinstance(item, int | float) for key, item in value.items())
    )


def _in_order(value: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return a mapping's items, those under numbers (layers) by number; a record has them in the order of texts."""
    return sorted(value.items(), key=lambda item: int(item[0]) if item[0].isdecimal() else -1)


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
