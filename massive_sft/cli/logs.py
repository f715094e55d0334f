"""``logs CELL``: the loss curve, the attempts, their tracebacks, and where the files are."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Group
from rich.text import Text

from massive_sft.cli.cell_lookup import CellMatch, locate_cell
from massive_sft.cli.options import CellId, Json, Overlays, Sweep, console, print_json
from massive_sft.cli.views import STYLES, make_table
from massive_sft.core.errors import Corrupt
from massive_sft.core.files import read_json
from massive_sft.ledger.lease import read_lease
from massive_sft.ledger.loss_curve import LOSSES, StepDone, curve_file, read_steps
from massive_sft.ledger.store import Ledger
from massive_sft.running.failures import TRACEBACK
from massive_sft.running.outcome import OUTCOME

PUBLISHED = "published"
WIDTH = 60  # columns of the curve
ROWS = 40  # epochs listed
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class AttemptLog:
    """One attempt at a trajectory.

    Attributes:
        state: ``published``, ``at work``, ``waits for its workers``, ``failed`` (it left a traceback) or
            ``not finished`` (stopped or killed).
        losses: its curve as far as it got; None when it took no step.
        traceback: why it failed; empty when it left none.
        epochs: whose outcome it published before it was stopped.
    """

    number: int
    state: str
    folder: Path
    losses: Path | None
    traceback: str
    epochs: tuple[int, ...] = ()


def logs(cell: CellId, sweep: Sweep = None, overlay: Overlays = None, as_json: Json = False) -> None:
    """A cell's loss curve, its attempts with their tracebacks, and where its files are."""
    match = locate_cell(cell, sweep, overlay)
    if as_json:
        print_json(logs_json(match))
    else:
        console().print(logs_view(match), soft_wrap=True)


def attempts(ledger: Ledger, trajectory: str) -> list[AttemptLog]:
    """Return the attempts at a trajectory that left anything, the newest last."""
    home = ledger.trajectory(trajectory)
    seen = read_lease(home.at("lease"))
    live = {seen.number: "waits for its workers" if seen.waits else "at work"} if seen and seen.seems_live() else {}
    folders = ledger.training_dirs(trajectory)
    published = {int(path.name.rpartition("-")[2]): path for path in folders if path.name.startswith("attempt-")}
    epochs = _epochs_by_attempt(path for path in folders if path.name.startswith("epoch-"))
    names = {item.name for item in home.list("attempts")} | {path.name for path in home.local("attempts").glob("*")}
    logs = []
    for number in sorted(published.keys() | {int(name) for name in names if name.isdecimal()}):
        folder = published.get(number) or home.local(f"attempts/{number}")
        losses = folder / LOSSES
        trace = home.fetch_file(f"attempts/{number}/{TRACEBACK}")
        text = trace.read_text() if trace.is_file() else ""
        ended = "failed" if text else "not finished"
        state = PUBLISHED if number in published else live.get(number, ended)
        if state == ended and not text and not any(folder.glob("*")):
            continue  # it was only to hold the training while its cells were scored
        logs.append(AttemptLog(number, state, folder, losses if losses.is_file() else None, text, epochs[number]))
    return logs


def _epochs_by_attempt(folders: Iterable[Path]) -> dict[int, tuple[int, ...]]:
    """Return, by the attempt, the epochs whose outcome lies in these folders, one each."""
    found: dict[int, tuple[int, ...]] = defaultdict(tuple)
    for folder in folders:
        with suppress(OSError, Corrupt, KeyError, TypeError):
            found[read_json(folder / OUTCOME)["attempt"]] += (int(folder.name.split("-")[1]),)
    return found


def last_step(ledger: Ledger, trajectory: str) -> StepDone | None:
    """Return the last step of the training in hand; None where nobody takes steps, or their curve is not here."""
    home = ledger.trajectory(trajectory)
    seen = read_lease(home.at("lease"))
    if seen is None or seen.waits or not seen.seems_live():
        return None
    try:
        steps = list(read_steps(home.local(f"attempts/{seen.number}/{LOSSES}")))
    except (OSError, ValueError):
        return None
    return steps[-1] if steps else None


def own_curve(match: CellMatch) -> AttemptLog | None:
    """Return the curve that a cell's record rests on, with the attempt that took its steps; None without one."""
    record = match.asked_record
    name = None if record is None else curve_file(record)
    if record is None or name is None or not (path := match.ledger.storage.fetch_file(name)).is_file():
        return None
    return AttemptLog(record.attempt, PUBLISHED, path.parent, path, "")


def longest_curve(tries: Sequence[AttemptLog]) -> AttemptLog | None:
    """Return the attempt whose curve counts: of those published the longest, else the newest that took a step."""
    published = [attempt for attempt in tries if attempt.state == PUBLISHED and attempt.losses]
    if published:
        return max(published, key=lambda attempt: attempt.losses.stat().st_size if attempt.losses else 0)
    return next((attempt for attempt in reversed(tries) if attempt.losses and attempt.losses.stat().st_size), None)


def by_epoch(steps: Iterable[StepDone]) -> list[dict[str, Any]]:
    """Return what each epoch of a curve came to; losses in nats per trainable token, None where none is finite."""
    groups: dict[int, list[StepDone]] = defaultdict(list)
    for step in steps:
        groups[step.epoch].append(step)
    rows = []
    for epoch, members in sorted(groups.items()):
        losses = [step.loss for step in members]
        finite = [loss for loss in losses if math.isfinite(loss)]
        rows.append(
            {
                "epoch": epoch,
                "steps": len(members),
                "first": _finite(losses[0]),
                "last": _finite(losses[-1]),
                "mean": fmean(finite) if finite else None,
                "min": min(finite, default=None),
                "not_finite": len(losses) - len(finite),
                "tokens": sum(step.tokens for step in members),
                "seconds": sum(step.seconds for step in members),
            }
        )
    return rows


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """Return values as a line of bars, means of equal stretches; one that is not finite makes its stretch ``!``."""
    count = min(width, len(values))
    means = [fmean(values[i * len(values) // count : (i + 1) * len(values) // count]) for i in range(count)]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] if math.isfinite(mean) else "!" for mean in means)


def logs_json(match: CellMatch) -> dict[str, Any]:
    """Return what ``logs`` shows as JSON values; the curve's steps are in the file it names."""
    tries = attempts(match.ledger, match.trajectory) if match.trajectory else []
    curve = own_curve(match) or longest_curve(tries)
    return {
        "schema": 1,
        "cell": match.id,
        "status": str(match.status),
        "trajectory": match.trajectory,
        "losses": str(curve.losses) if curve else None,
        "epochs": by_epoch(read_steps(curve.losses)) if curve and curve.losses else [],
        "attempts": [
            {
                "number": attempt.number,
                "state": attempt.state,
                "folder": str(attempt.folder),
                "traceback": attempt.traceback or None,
            }
            for attempt in tries
        ],
        "error": match.asked_record.error if match.asked_record else None,
        "traceback": _cell_traceback(match) or None,
        "files": [str(path) for path in _files(match)],
    }


def logs_view(match: CellMatch) -> Group:
    """Return what ``logs`` shows, for people."""
    head = Text.assemble(
        (match.id, "bold"), "  ", str(match.coordinates), "  ", (str(match.status), STYLES[match.status])
    )
    parts: list[Any] = [head]
    if match.error:
        parts.append(Text(match.error, style="red"))
    tries = attempts(match.ledger, match.trajectory) if match.trajectory else []
    curve = own_curve(match) or longest_curve(tries)
    if curve is not None and curve.losses is not None:
        epoch = match.coordinates.epoch
        parts += _curve_view(curve, [step for step in read_steps(curve.losses) if step.epoch <= epoch])
    elif match.record is not None and match.record.is_invalidated:
        parts.append(Text("its files were set aside", style="dim"))
    elif match.trajectory:
        parts.append(Text("no optimizer step was taken yet", style="dim"))
    for attempt in tries:
        parts += [
            Text(),
            Text(f"attempt {attempt.number}: {attempt.state}{_published_part(attempt)}, {attempt.folder}"),
        ]
        parts += [Text(attempt.traceback.rstrip(), style="red")] if attempt.traceback else []
    trace = _cell_traceback(match)
    if trace:
        parts += [Text(), Text("scoring or measuring failed:"), Text(trace.rstrip(), style="red")]
    files = _files(match)
    parts += [Text(), *(Text(f"files: {path}", style="dim") for path in files)] if files else []
    return Group(*parts)


def _published_part(attempt: AttemptLog) -> str:
    """Return which epochs an attempt published that did not get to its end."""
    if not attempt.epochs or attempt.state == PUBLISHED:
        return ""
    several = len(attempt.epochs) > 1
    named = f"epochs {', '.join(map(str, attempt.epochs))}" if several else f"epoch {attempt.epochs[0]}"
    return f", but {named} {'count' if several else 'counts'}"


def _curve_view(curve: AttemptLog, steps: list[StepDone]) -> list[Any]:
    if not steps:
        return [Text("no optimizer step was taken yet", style="dim")]
    losses = [step.loss for step in steps]
    head = f"loss, nats a token, up to step {steps[-1].step:,} (attempt {curve.number})"
    line = f"{losses[0]:.4g} {sparkline(losses)} {losses[-1]:.4g}"
    rows = by_epoch(steps)
    columns = [name for name in rows[0] if name != "not_finite" or any(row["not_finite"] for row in rows)]
    headers = [name.replace("_", " ") for name in columns]
    table = make_table(*headers, right=headers, whole=headers)
    for row in rows[-ROWS:]:
        table.add_row(*(_plain(row[name]) for name in columns))
    more = [Text(f"and {len(rows) - ROWS} epochs before them", style="dim")] if len(rows) > ROWS else []
    return [Text(), Text(head), Text(line), table, *more]


def _plain(value: float | None) -> str:
    if value is None:
        return "not finite"
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _cell_traceback(match: CellMatch) -> str:
    """Return why the cell's own work failed; an old traceback of a cell that went well since is not shown."""
    path = match.ledger.cell(match.id).fetch_file(TRACEBACK)
    return path.read_text() if path.is_file() and not _went_well(match) else ""


def _went_well(match: CellMatch) -> bool:
    return match.asked_record is not None and not match.asked_record.error and not match.asked_record.missing


def _files(match: CellMatch) -> list[Path]:
    folders = [match.ledger.cell_dir(match.id)]
    if match.trajectory:
        folders.append(match.ledger.trajectory_dir(match.trajectory))
    return [folder for folder in folders if folder.is_dir()]
