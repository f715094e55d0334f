"""``export CELL DIR``: a trained cell as a model folder that transformers, or peft, loads, with a model card."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from massive_sft.cli.card import TrainedPrompt, render_card
from massive_sft.cli.cell_lookup import CellMatch, locate_cell
from massive_sft.cli.options import CellId, Overlays, Sweep, console, report_write_errors
from massive_sft.core.errors import Corrupt, InvalidInput, LedgerError, Problem
from massive_sft.core.files import format_bytes, read_json, write_json
from massive_sft.core.fingerprint import hash_file
from massive_sft.ledger.record import Status
from massive_sft.running.outcome import open_snapshot, snapshot_folder
from massive_sft.sweep.schema import Model

ADAPTER, CARD = "adapter_config.json", "README.md"
# The ledger's own statements about a snapshot, which are wrong or idle outside of it.
_OWN = ("manifest.json", "snapshot.json")


def export(
    cell: CellId,
    folder: Annotated[Path, typer.Argument(help="Where to put it; must not exist, or be empty.", show_default=False)],
    sweep: Sweep = None,
    overlay: Overlays = None,
    merge: Annotated[bool, typer.Option("--merge", help="Add the adapter to its base, in fp32.")] = False,
) -> None:
    """Write a cell's weights as a model folder with tokenizer and model card."""
    match = locate_cell(cell, sweep, overlay)
    export_model(match, folder, merge)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    line = f"{match.coordinates} is in {folder} ({format_bytes(size)}); README.md says how to load it"
    console().print(line, soft_wrap=True)


def export_model(match: CellMatch, folder: Path, merge: bool = False) -> None:
    """Write a cell's model to ``folder``, whole or not at all.

    A full snapshot is copied as it is, an adapter too, naming its base by hub id or absolute path; with ``merge``
    the adapter is added to the base in fp32, in which a small change is not lost. The tokenizer is the base's, its chat
    template left out unless the model was trained with it.

    Raises:
        InvalidInput: it is a base model, its snapshot is not there or is removed meanwhile (with how to get it back),
            ``folder`` is not empty, or there is no adapter to merge. All problems at once.
        Corrupt: the snapshot does not match its manifest, or the copy does not match the snapshot.
    """
    _require_exportable(match, folder, merge)
    try:
        with open_snapshot(match.ledger, str(match.trajectory), match.coordinates.epoch) as found:
            if found is None:
                raise _no_snapshot(match)
            _write(match, *found, folder, merge)
    except Exception as error:  # of the disk, or of what reads a model
        if _folder(match).is_dir():
            raise
        raise _no_snapshot(match) from error  # a run or ``gc`` removed it while it was read


def _write(match: CellMatch, snapshot: Path, hashes: dict[str, str], folder: Path, merge: bool) -> None:
    model, target = _model(match), Path(os.path.realpath(folder))
    with report_write_errors("folder", folder):
        home = target if target.exists() else target.parent  # within one that is there, which may be a disk of its own
        home.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=home, prefix=f".{target.name}.", suffix=".partial"))
    try:
        if merge:
            _merge(model, snapshot, partial)
        else:
            _copy(snapshot, hashes, partial)
            if (partial / ADAPTER).is_file():
                _name_base(partial / ADAPTER, model)
        prompt = save_tokenizer(model, match.content["setting"]["template"], partial)
        weights = {path.name: hash_file(path) for path in sorted(partial.glob("*.safetensors"))}
        name = Path(os.path.abspath(folder)).name
        (partial / CARD).write_text(render_card(match, model, merge, weights, prompt, name))
        partial.chmod(0o755)  # temporary folders are private; a model is for all who may see where it lies
        for path in partial.iterdir():
            path.chmod(0o644)
        with report_write_errors("folder", folder):
            if home == target:
                _move_up(partial)
            else:
                os.rename(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _move_up(partial: Path) -> None:
    """Move what is in a folder to where it lies, the card last, and remove it; nothing where one cannot be moved."""
    names = sorted(os.listdir(partial), key=lambda name: name == CARD)
    try:
        for name in names:
            os.rename(partial / name, partial.parent / name)
    except BaseException:
        for name in names:
            if not os.path.lexists(partial / name):
                os.rename(partial.parent / name, partial / name)
        raise
    partial.rmdir()


def _require_exportable(match: CellMatch, folder: Path, merge: bool) -> None:
    """Raise as ``export_model`` for what can be told without the snapshot."""
    problems = []
    target = Path(os.path.realpath(folder))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        has = f", but has {min(os.listdir(target))}" if target.is_dir() else ""
        problems.append(Problem("folder", f"must not exist, or be an empty folder{has}", str(folder)))
    if match.coordinates.method == "none":
        problems.append(Problem("cell", "is a base model: nothing was trained, load it from where it is", match.id))
        raise InvalidInput(problems)
    if merge and match.coordinates.method != "lora":
        problems.append(Problem("--merge", "needs an adapter, but all weights were trained: leave it out", match.id))
    if match.plan is None:
        problems.append(
            Problem(
                "cell",
                "is in no sweep file at hand: name the one that has it, for its base",
                match.id,
            )
        )
    if problems:
        raise InvalidInput(problems)


def _no_snapshot(match: CellMatch) -> Exception:
    where = _folder(match)
    if where in match.ledger.corrupt and where.is_dir():
        return Corrupt(f"{match.ledger.corrupt[where]}; remove the folder and `run --retrain` trains it again")
    return InvalidInput(Problem("cell", _why_gone(match), match.id))


def _folder(match: CellMatch) -> Path:
    return snapshot_folder(match.ledger, str(match.trajectory), match.coordinates.epoch)


def _why_gone(match: CellMatch) -> str:
    if match.record is None:
        return "has no snapshot: it is not trained yet, `massive-sft run` does that"
    if match.record.is_invalidated:
        return f"has no snapshot: it was {match.error}"
    if match.record.status is Status.FAILED:
        return "has no snapshot: its training failed, `massive-sft logs` says why and `massive-sft retry` tries again"
    if match.record.status is Status.DIVERGED:
        return "has no snapshot: its training diverged"
    return (
        "has no snapshot any more: it was removed once it was scored (storage.keep_snapshots). To get it back, set "
        f"keep_snapshots: {{{match.coordinates.method}: all}} and train it again, with another storage.root or, while "
        "a score is missing, with `massive-sft run --retrain`"
    )


def _model(match: CellMatch) -> Model:
    if match.plan is None:
        raise LedgerError(f"{match.id}: the sweep file does not hold it")
    return match.plan.cell.model


def _copy(snapshot: Path, hashes: dict[str, str], target: Path) -> None:
    for name, expected in hashes.items():
        if name in _OWN:
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(snapshot / name, target / name)
        if hash_file(target / name) != expected:
            raise Corrupt(f"{target / name}: the copy does not match {snapshot / name}")


def _name_base(path: Path, model: Model) -> None:
    named: dict[str, Any] = {"base_model_name_or_path": model.hub or model.path}
    if model.hub is not None:
        named["revision"] = model.revision
    write_json(path, {**read_json(path), **named})


def _merge(model: Model, snapshot: Path, target: Path) -> None:
    from massive_sft.models import pretrained
    from massive_sft.models.snapshots import load_for_scoring

    merged = load_for_scoring(model, snapshot, "fp32", adapters="merged")
    with pretrained.saving(target):
        merged.save_pretrained(target)


def save_tokenizer(model: Model, trained: Mapping[str, Any], target: Path) -> TrainedPrompt:
    """Write the base's tokenizer, without a chat template that training did not use; return how training asked.

    Args:
        trained: the template in the content of the cell's setting: ``prompt``, a text, where it is no chat template.
    """
    from massive_sft.data.chat import end_of_turn
    from massive_sft.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(model)
    template = trained.get("prompt")
    end = str(tokenizer.eos_token)
    if template is None:
        end = end_of_turn(tokenizer) or end
    else:
        tokenizer.chat_template = None  # whoever chats with the model would ask it in a way that it never saw
    tokenizer.save_pretrained(target)
    return TrainedPrompt(template, end)
