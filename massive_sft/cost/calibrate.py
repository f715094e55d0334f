"""Calibration: adds the speeds and memory peaks of new records to the table of measured costs."""

from __future__ import annotations

from typing import Any

from massive_sft.cost.cost_table import ScoringCosts, TrainingCosts, scoring_key, training_key, write_cost_table
from massive_sft.cost.devices import find_gpu
from massive_sft.cost.duration import perplexity_operations, scoring_operations, training_operations
from massive_sft.cost.inputs import CostInputs
from massive_sft.cost.memory import training_memory
from massive_sft.cost.padding import computed_tokens
from massive_sft.cost.shapes import ModelShape
from massive_sft.ledger.lease import Lease, this_process
from massive_sft.ledger.loss_curve import curve_file, read_steps
from massive_sft.ledger.record import Record
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import CellPlan, Plan, RunPlan
from massive_sft.sweep.spec import Layout

LEASE = "cache/costs.lease"


def calibrate(plan: Plan, ledger: Ledger) -> int:
    """Add what is new in the records of a plan's cells to the table; return how many records that was.

    One writer at a time: while another adds, nothing is done, and the next run finds what was left. Raises OSError
    where the disk refuses.
    """
    lease = Lease.acquire(ledger.storage.at(LEASE), this_process())
    if lease is None:
        return 0
    with lease:
        inputs = CostInputs(plan)
        new = _add_new(inputs, ledger)
        if new:
            write_cost_table(ledger.storage, inputs.table)
    return new


def measured_inputs(plan: Plan) -> CostInputs:
    """Return a plan's inputs with what a run measured that was killed before it added that to the table.

    Nothing is written: the next run's ``calibrate`` does that.
    """
    inputs, ledger = CostInputs(plan), Ledger(plan.storage)
    if any(cell.record not in ("", inputs.table.cells.get(cell.cell.id)) for cell in plan.cells):
        _add_new(inputs, ledger)
    return inputs


def _add_new(inputs: CostInputs, ledger: Ledger) -> int:
    """Add new records to a table in memory; return how many."""
    table, plan = inputs.table, inputs.plan
    recorded = dict(table.cells)
    calibrator = _Calibrator(inputs, ledger)
    for run in plan.runs:
        for cell in run.cells:
            calibrator.cell(cell, run)
    for cell in plan.base:
        calibrator.cell(cell, None)
    return sum(recorded.get(cell) != revision for cell, revision in table.cells.items())


def device_name(recorded: str) -> str:
    """Return the name under which a recorded device's figures are kept: its kind where that is known."""
    kind = find_gpu(recorded)
    return recorded if kind is None else kind.name


class _Calibrator:
    def __init__(self, inputs: CostInputs, ledger: Ledger):
        self.inputs, self.table, self.ledger = inputs, inputs.table, ledger
        self.dtype = inputs.plan.sweep.file.evaluation.protocol.dtype
        self.entries = ledger.entries({cell.cell.id for cell in inputs.plan.cells})

    def cell(self, cell: CellPlan, run: RunPlan | None) -> None:
        """Add a cell's newest record, unless it was added before."""
        entry, shape = self.entries.get(cell.cell.id), self.inputs.shape(cell.cell.model)
        if entry is None or shape is None or self.table.cells.get(cell.cell.id) == entry.record:
            return
        record = self.ledger.read_record(cell.cell.id)
        if record is None:
            return
        self.table.cells[cell.cell.id] = entry.record
        self._scoring(cell, run, record, shape)
        # The record of the last snapshot tells of the whole training.
        is_last = run is not None and cell.cell.epoch == run.trajectory.epochs
        if run is not None and is_last and self.table.trainings.get(run.trajectory.id) != record.attempt:
            self._training(run, record, shape)

    def _scoring(self, cell: CellPlan, run: RunPlan | None, record: Record, shape: ModelShape) -> None:
        seconds, device = record.cost.get("seconds"), record.cost.get("device")
        if not isinstance(seconds, dict) or not isinstance(device, str):
            return
        method = run.trajectory.recipe.setting.method if run else "none"
        rows = self.table.scoring.setdefault(scoring_key(shape.key, method, self.dtype, device_name(device)), {})
        # Of early answers it is not known how much of the benchmark was asked, so they tell nothing of the speed.
        asked = {item.id: item for item in cell.requirements if item.until is None}
        workload = self.inputs.workload(run.trajectory.recipe) if run else None
        text = self.inputs.bytes_per_token(cell.cell.model)
        resumed: Any = record.cost.get("resumed") or ()  # what was asked before such a run was ended is not in its time
        for what, took in seconds.items():
            if not isinstance(took, (int, float)) or what in resumed:
                continue
            row = rows.setdefault(what, ScoringCosts())
            row.count += 1
            row.seconds += took
            load = self.inputs.requests.load(asked[what], text) if what in asked else None
            if load is not None and load.sure:
                row.operations += scoring_operations(shape, load)
            elif what == "perplexity" and workload is not None:
                row.operations += perplexity_operations(shape, workload)

    def _training(self, run: RunPlan, record: Record, shape: ModelShape) -> None:
        """Add a training by what its record and its loss curve say. An incomplete one says nothing."""
        facts, setting = record.training, run.trajectory.recipe.setting
        curve = curve_file(record)
        workload = self.inputs.workload(run.trajectory.recipe)
        try:
            layout, device = facts["layout"], facts["device"]
            wall, whole = float(facts["wall_seconds"]), float(facts["run_seconds"])  # type: ignore[arg-type]
            used_layout = Layout.model_validate(layout)
            if used_layout.gradient_checkpointing == "auto":
                used_layout = used_layout.model_copy(update={"gradient_checkpointing": facts["gradient_checkpointing"]})
            steps = [(step.tokens, step.seconds) for step in read_steps(self.ledger.storage.fetch_file(str(curve)))]
        except (OSError, KeyError, TypeError, ValueError):
            return  # of a version that did not measure, or the curve is gone
        if used_layout.lora_at_once > 1:
            return  # its steps may have been those of others too
        if workload is None or not isinstance(device, str) or not isinstance(layout, dict) or len(steps) < 2:
            return
        self.table.trainings[run.trajectory.id] = record.attempt
        row = self.table.training.setdefault(
            training_key(shape.key, setting.method, setting.precision, layout, device_name(device)), TrainingCosts()
        )
        padding = computed_tokens(workload, setting, used_layout) / workload.tokens
        computed = [(tokens * padding, seconds) for tokens, seconds in steps]
        row.add(computed, len(run.trajectory.snapshots), whole, None if facts.get("resumed") else wall)
        operations_per_token = training_operations(shape, setting, used_layout, workload, 1) / workload.tokens
        row.operations += operations_per_token * sum(tokens for tokens, _ in steps[1:]) / (used_layout.gpus or 1)
        peak = facts.get("peak_bytes")
        if isinstance(peak, int) and peak > row.peak:
            row.peak = peak
            row.peak_formula = training_memory(shape, setting, used_layout, workload.longest, smallest=False).total
