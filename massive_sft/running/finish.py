"""Take one cell to its record, whatever happens: what inline runs and scorers both do."""

from __future__ import annotations

from massive_sft.core.errors import Interrupted, LeaseLost
from massive_sft.ledger.record import Record
from massive_sft.planning.plan import CellPlan, RunPlan
from massive_sft.running.failures import leave_traceback
from massive_sft.running.finishing import CellEvaluator
from massive_sft.running.outcome import find_trained
from massive_sft.running.trial import CellRecorded, CellSkipped, Listen, ids, sentence


def finish_cell(cell: CellPlan, run: RunPlan | None, finisher: CellEvaluator, listen: Listen) -> None:
    """Take a cell whose training came to its epoch, or a base model's (``run`` is None), to its record.

    What goes wrong becomes a FAILED record, the traceback a file beside it. Where the run should end there is none yet.
    """
    try:
        record = _finish(cell, run, finisher)
    except Interrupted:
        return
    except LeaseLost as error:
        listen(CellSkipped(str(error), ids([cell])))
        return
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not end the other cells
        leave_traceback(finisher.ledger.cell_dir(cell.cell.id), error)
        record = finisher.recorder.failed(cell, 1, sentence(error))
    listen(CellRecorded(cell.cell, record) if record else CellSkipped(str(cell.cell.coordinates), ids([cell])))


def _finish(cell: CellPlan, run: RunPlan | None, finisher: CellEvaluator) -> Record | None:
    if run is None:
        return finisher.base(cell)
    trained = find_trained(finisher.ledger, run.trajectory.id, cell.cell.epoch)
    if trained is None:
        raise RuntimeError("the training came to its epoch, but what it published cannot be read")
    return finisher.trained(cell, run, trained)
