"""What a sweep's report in its storage was made of: read again from the page, so that one that is behind is noticed."""

from __future__ import annotations

import re
from pathlib import Path

from massive_sft.core.fingerprint import fingerprint
from massive_sft.planning.plan import Plan

FOLDER = "report"  # in the folder of a sweep
PAGE = "report.html"
META = "massive-sft-source"
HEAD_BYTES = 4096  # of a page, within which it says what it was made of
_SOURCE = re.compile(rf'<meta name="{META}" content="(\w+)">')


def report_folder(plan: Plan) -> Path:
    """Return where a run writes the sweep's report; of an object store, on this machine."""
    return plan.open_ledger(create=False).sweep_dir(plan.sweep.file.name) / FOLDER


def source_of(plan: Plan) -> str:
    """Return the hash of what a report of this plan rests on: each cell's names, what is asked of it, its record."""
    cells = ((item.cell, item.record, sorted(asked.id for asked in item.requirements)) for item in plan.cells)
    return fingerprint({cell.id: [record, cell.coordinates, asked] for cell, record, asked in cells})


def is_current(plan: Plan) -> bool:
    """Whether the sweep's report is there, and made of what a plan of the whole sweep has."""
    try:
        with (report_folder(plan) / PAGE).open("rb") as page:
            found = _SOURCE.search(page.read(HEAD_BYTES).decode(errors="replace"))
    except FileNotFoundError:
        return False
    return found is not None and found[1] == source_of(plan)
