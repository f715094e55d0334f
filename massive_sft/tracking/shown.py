"""What the tracker shows of each cell, noted down on disk: to read it from the tracker takes minutes for 10,000 runs.

MLflow sends a run only with all of its metrics. So whoever writes notes it down here, in the order of writing. Where
the last that was written is there, all before it are: a tracker that lost some, or was set back, lost the last.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from massive_sft.core import files

log = logging.getLogger(__name__)

STALE_LINES = 1000  # superseded lines, from which on the file is written anew


@dataclass(frozen=True)
class ShownCell:
    """What a cell's run shows.

    Attributes:
        run: its id on the tracker.
        version: as ``run_fields.version``.
        end: when it ended, in milliseconds since 1970.
        stamp: of the record that has this version (``source.CellSource``); empty where it is not known.
    """

    run: str
    version: tuple[str, str]
    end: int
    stamp: str = ""


class Shown:
    """The cells that the tracker shows, by id, in the order in which they were written. For one thread.

    A disk that refuses is no error: what could not be noted down is read from the tracker, or written to it again.

    Attributes:
        parent: id of the sweep's run on the tracker; empty where nothing is remembered.
        token: what that run must carry; another one is that of another reading.
        cells: what each cell's run shows.
        last: the cell that was written last; None when none was since the last reading.
    """

    def __init__(self, path: Path):
        self._path = path
        self.parent, self.token = "", ""
        self.cells: dict[str, ShownCell] = {}
        self.last: str | None = None

    def load(self) -> None:
        """Read the file; what is unsound in it was never noted down."""
        self.parent, self.token, self.cells, self.last = "", "", {}, None
        try:
            head, *lines = self._path.read_text().splitlines()
            self.parent, self.token = (str(json.loads(head)[key]) for key in ("parent", "token"))
        except (OSError, ValueError, KeyError, TypeError):
            return
        for line in lines:
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # torn by a crash
        if len(lines) > len(self.cells) + STALE_LINES:
            self._write()

    def reset(self, parent: str, token: str, cells: dict[str, ShownCell]) -> None:
        """Forget everything but what was just read from the tracker."""
        self.parent, self.token, self.cells, self.last = parent, token, cells, None
        self._write()

    def wrote(self, cell: str, shown: ShownCell) -> None:
        """Note down that a cell was written."""
        self.cells.pop(cell, None)
        self.cells[cell], self.last = shown, cell
        self._append([{"cell": cell, **asdict(shown)}])

    def stamp(self, stamps: dict[str, str]) -> None:
        """Note down which records have the versions that are shown."""
        for cell, stamp in stamps.items():
            self.cells[cell] = replace(self.cells[cell], stamp=stamp)
        self._append({"cell": cell, "stamp": stamp} for cell, stamp in stamps.items())

    def _take(self, line: dict[str, Any]) -> None:
        cell = line.pop("cell")
        if line.keys() == {"stamp"}:
            self.cells[cell] = replace(self.cells[cell], stamp=line["stamp"])
            return
        is_last = not line.pop("read", False)
        record, gains = line.pop("version")
        shown = ShownCell(**line, version=(record, gains))
        self.cells.pop(cell, None)
        self.cells[cell] = shown
        self.last = cell if is_last else self.last

    def _write(self) -> None:
        head = {"parent": self.parent, "token": self.token}
        # In order, so that the one that was written last is the last one that is not marked.
        lines = [{"cell": cell, **asdict(shown), "read": cell != self.last} for cell, shown in self.cells.items()]
        try:
            files.write_bytes(self._path, "".join(f"{json.dumps(line)}\n" for line in (head, *lines)).encode())
        except OSError as error:
            log.info("%s cannot be written: %s", self._path, error)

    def _append(self, lines: Iterable[dict[str, object]]) -> None:
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        try:
            if text and self.parent and self._path.exists():
                with self._path.open("a") as file:
                    file.write(text)
        except OSError as error:
            log.info("%s cannot be written: %s", self._path, error)
