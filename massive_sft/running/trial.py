"""A trial: one attempt at a trajectory, then its cells' scores. The same steps with and without Ray.

The training itself is behind ``submit``, served in this process or by a lane on the cluster. What goes wrong becomes
FAILED records; it never ends the other trials.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from massive_sft.core.errors import Interrupted, LeaseLost
from massive_sft.core.turn_taking import Turn, take_turns
from massive_sft.core.wording import counted
from massive_sft.ledger.attempt import Attempt
from massive_sft.ledger.last_plan import sweeps_keeping_snapshot
from massive_sft.ledger.lease import this_process
from massive_sft.ledger.marker import ledger_id
from massive_sft.ledger.provenance import capture_provenance
from massive_sft.ledger.record import Record, Status
from massive_sft.ledger.run_requirements import is_still_required
from massive_sft.ledger.storage import Root
from massive_sft.ledger.store import Ledger
from massive_sft.planning.lock import data_commits
from massive_sft.planning.plan import CellPlan, Plan, RunPlan
from massive_sft.planning.retention import is_kept
from massive_sft.running.events import CellRecorded, Listen, TrainingEnded, TrainingProgressed, TrainingStarted, skipped
from massive_sft.running.failures import error_text, leave_traceback
from massive_sft.running.outcome import Trained, find_trained, has_snapshot, remove_snapshot
from massive_sft.running.recorder import RecordWriter
from massive_sft.sweep.schema import KeepSnapshots
from massive_sft.training.events import Begun, Event, SnapshotPublished


@dataclass(frozen=True)
class Order:
    """What a lane is asked to do: train one run under an attempt. Can be sent to other processes.

    Attributes:
        ledger: the id of the ledger under the root, by which a machine knows whether it sees it.
        grouped_with: orders that are served with it, in common passes; ``Layout.lora_at_once``.
    """

    run: RunPlan
    attempt: Attempt
    root: Root
    ledger: str
    grouped_with: tuple[Order, ...] = ()

    @property
    def id(self) -> str:
        return self.run.trajectory.id


Ready = Callable[[Sequence[CellPlan]], None]
# Trains what is ordered, reports its events, and returns once it is published. Raises what the training raises.
Submit = Callable[[Order, Callable[[Event], None]], None]
# The same of an order with others beside it, whose events come with their numbers; returns what each raised, if it did.
# What an order with nothing beside it raises is raised.
SubmitAll = Callable[[Order, Callable[[int, Event], None]], Sequence[Exception | None]]


def make_record_writer(plan: Plan) -> RecordWriter:
    """Return what makes this run's records."""
    ledger = plan.open_ledger()
    return RecordWriter(
        ledger=ledger,
        evaluation=plan.sweep.file.evaluation,
        provenance=capture_provenance(plan.sweep.path),
        owner=this_process(),
        commits=data_commits(ledger.sweep(plan.sweep.file.name)),
    )


def todo(run: RunPlan) -> list[CellPlan]:
    """Return the cells of a run that are not done."""
    return [cell for cell in run.cells if not cell.is_done]


def is_trained(run: RunPlan, ledger: Ledger) -> bool:
    """Return whether a training of each of a run's epochs is published and sound."""
    return all(find_trained(ledger, run.trajectory.id, cell.cell.epoch) for cell in run.cells)


def trainings_left(plan: Plan, ledger: Ledger, retrain: bool = False) -> list[RunPlan]:
    """Return the runs of a plan whose training is to do, or may be (``retrain``): what a run schedules and checks."""
    return [run for run in plan.todo if retrain or not is_trained(run, ledger)]


def train_run(
    run: RunPlan, recorder: RecordWriter, submit: Submit, listen: Listen, ready: Ready, retrain: bool = False
) -> None:
    """See to it that a run is trained, by the ledger's training or a new one; hand over what can be scored.

    Args:
        ready: given each cell to do once, as soon as it can be scored: its epoch is published, or was before.
        retrain: train again where a published snapshot is needed and was removed.
    """
    attempt = recorder.ledger.begin_attempt(run.trajectory.id, recorder.owner)
    if attempt is None:
        left = todo(run)
        listen(skipped(str(left[-1].cell.coordinates), left))  # the training's name, as where it starts
        return
    trial = _Trial(run, attempt, recorder.ledger, listen, ready, todo(run))
    with attempt:
        try:
            trial.train(submit, retrain)
        except Interrupted:
            pass  # no outcome: the next run goes on from the checkpoint
        except LeaseLost as error:
            listen(skipped(str(error), trial.remaining))
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end the other trajectories
            leave_traceback(attempt.storage.at(f"attempts/{attempt.number}"), error)
            if not attempt.claim.held():  # a lane sends its reason as text, whatever it was
                listen(skipped(error_text(error), trial.remaining))
                return
            trial.hand_over([cell for cell in trial.remaining if trial.trained(cell)])
            for cell in trial.remaining:
                record = recorder.failed(cell, attempt.number, error_text(error))
                listen(CellRecorded(cell.cell, record) if record else skipped(str(cell.cell.coordinates), [cell]))


def train_runs(
    runs: Sequence[RunPlan],
    recorder: RecordWriter,
    submit: SubmitAll,
    listen: Listen,
    ready: Callable[[RunPlan, Sequence[CellPlan]], None],
    retrain: bool = False,
) -> None:
    """As ``train_run`` of each of several runs; those that must be trained are submitted as one order.

    Args:
        ready: told of which run the cells are.
    """
    if len(runs) == 1:
        (run,) = runs

        def submit_one(order: Order, report: Callable[[Event], None]) -> None:
            submit(order, lambda _, event: report(event))

        train_run(run, recorder, submit_one, listen, partial(ready, run), retrain)
        return

    def train(run: RunPlan, turn: _Turn) -> None:
        def ask(order: Order, report: Callable[[Event], None]) -> None:
            turn.ask((order, report))

        train_run(run, recorder, ask, listen, partial(ready, run), retrain)

    def serve(asked: Mapping[int, _Asked]) -> dict[int, Exception | None]:
        (first, *others), reports = zip(*asked.values(), strict=True)
        ended = submit(replace(first, grouped_with=tuple(others)), lambda number, event: reports[number](event))
        return dict(zip(asked, ended, strict=True))

    for turn in take_turns([partial(train, run) for run in runs], serve):
        if turn.error is not None:
            raise turn.error


_Asked = tuple[Order, Callable[[Event], None]]
_Turn = Turn[_Asked, None, None]


@dataclass
class _Trial:
    """One attempt at a run.

    Attributes:
        remaining: which of its cells to do are not handed over yet.
        begun: whether its training is in somebody's hands.
    """

    run: RunPlan
    attempt: Attempt
    ledger: Ledger
    listen: Listen
    ready: Ready
    remaining: list[CellPlan]
    begun: bool = False

    def train(self, submit: Submit, retrain: bool) -> None:
        """Train where that is needed; hand over each cell as soon as it can be scored, in the end all of them."""
        cells = tuple(cell.with_record(self.ledger.read_record(cell.cell.id)) for cell in self.run.cells)
        run, is_over = replace(self.run, cells=cells), True
        try:
            if todo(run) and self._must_train(run, retrain):  # not by somebody else, since the plan was made
                self.hand_over([cell for cell in self.remaining if self._is_complete(cell)])
                settled = self._settled(run, retrain)
                last = max(epoch for epoch in run.trajectory.snapshots if epoch not in settled)
                self.run = run = replace(run, trajectory=run.trajectory.up_to(last), settled=settled)
                root = self.ledger.storage
                submit(Order(run, self.attempt, root, ledger_id(root)), self._on_event)
        except (Interrupted, KeyboardInterrupt):
            is_over = False
            raise
        finally:
            if is_over:
                self.listen(TrainingEnded(run.trajectory))
        self.hand_over(self.remaining)

    def hand_over(self, cells: Sequence[CellPlan]) -> None:
        """Hand over cells that are left."""
        self.remaining = [cell for cell in self.remaining if cell not in cells]
        if cells:
            self.ready(cells)

    def trained(self, cell: CellPlan) -> Trained | None:
        """Return the training up to a cell's epoch, if it is published."""
        return find_trained(self.ledger, self.run.trajectory.id, cell.cell.epoch)

    def _on_event(self, event: Event) -> None:
        if not isinstance(event, Begun):
            self.listen(TrainingProgressed(self.run.trajectory, event))
        elif not self.begun:  # else its workers were lost, and others have it in hand
            self.begun = True
            self.attempt.take_up()
            self.listen(TrainingStarted(self.run.trajectory, self.attempt.number))
        if isinstance(event, SnapshotPublished):
            self.hand_over([cell for cell in self.remaining if cell.cell.epoch == event.epoch])

    def _must_train(self, run: RunPlan, retrain: bool) -> bool:
        return not is_trained(run, self.ledger) or (retrain and not all(self._is_complete(cell) for cell in todo(run)))

    def _settled(self, run: RunPlan, retrain: bool) -> frozenset[int]:
        """Return the epochs whose snapshots the training need not give: they are trained, and none is made again."""
        again = {cell.cell.epoch for cell in todo(run) if retrain and not self._is_complete(cell)}
        epochs = (epoch for epoch in run.trajectory.snapshots if epoch not in again)
        return frozenset(epoch for epoch in epochs if find_trained(self.ledger, run.trajectory.id, epoch))

    def _is_complete(self, cell: CellPlan) -> bool:
        """Return whether a cell is trained, and its snapshot there unless it diverged."""
        trained, epoch = self.trained(cell), cell.cell.epoch
        if trained is None:
            return False
        return bool(trained.diverged(epoch)) or has_snapshot(self.ledger, self.run.trajectory.id, epoch)


def retain(run: RunPlan, policy: KeepSnapshots, ledger: Ledger) -> list[CellPlan]:
    """Remove the snapshots that the policy does not keep, of complete cells of which no live run wants more.

    Those that another sweep's policy keeps, by its last run, stay. Returns the cells that have none now.
    """
    removed = []
    for cell in run.cells:
        if is_kept(run, cell.cell.epoch, policy) or sweeps_keeping_snapshot(ledger.sweeps, cell.cell.id):
            continue
        record = ledger.read_record(cell.cell.id)
        if record is not None and _is_settled(cell.with_record(record), record, ledger):
            remove_snapshot(ledger, run.trajectory.id, cell.cell.epoch)
            removed.append(cell)
    return removed


def retain_rest(plan: Plan, ledger: Ledger, say: Callable[[str], None]) -> None:
    """Remove the snapshots that ``retain`` would have, had their run not been killed before it came to that."""
    policy, removed = plan.sweep.file.storage.keep_snapshots, 0
    for run in plan.runs:
        epochs = [cell.cell.epoch for cell in run.cells if cell.is_done and not is_kept(run, cell.cell.epoch, policy)]
        left = ledger.snapshots(run.trajectory.id).intersection(f"epoch-{epoch}" for epoch in epochs) if epochs else ()
        removed += sum(f"epoch-{cell.cell.epoch}" in left for cell in retain(run, policy, ledger)) if left else 0
    if removed:
        say(f"removed {counted(removed, 'snapshot')} that an earlier run left (storage.keep_snapshots)")


def _is_settled(cell: CellPlan, record: Record, ledger: Ledger) -> bool:
    answered = cell.status is Status.COMPLETE and not is_still_required(ledger.sweeps, record.cell, record.answers)
    return answered or cell.status is Status.DIVERGED
