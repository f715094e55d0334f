"""The command line: a few verbs and a sweep file. Knobs live in the file."""

from __future__ import annotations

import io
import math
import os
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from gc import freeze
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperGroup

from massive_sft import show as views
from massive_sft.changes import changes, remember
from massive_sft.cost.budget import Portion, within_budget
from massive_sft.cost.words import portion_json
from massive_sft.errors import Interrupted, InvalidInput, MassiveSFTError, Problem
from massive_sft.files import refusal
from massive_sft.ledger.record import Status
from massive_sft.ledger.store import Ledger
from massive_sft.plan import Plan, make_plan, require_settled, storage_root
from massive_sft.progress import RunProgress, outliving
from massive_sft.scheduling import submit
from massive_sft.stop import Stop
from massive_sft.study.imported import is_imported, open_imported
from massive_sft.sweep.load import load_sweep
from massive_sft.trial import Listen
from massive_sft.verbs import cancel, check, diff, doctor, export, fetch, gc, import_table, invalidate, logs, publish
from massive_sft.verbs.options import CellId, File, Json, Overlays, Where, console, print_json, writing
from massive_sft.verbs.options import Sweep as SweepOption
from massive_sft.verbs.pick import find_record
from massive_sft.verbs.retry import count_diverged, retry_view, take_up
from massive_sft.where import narrow, parse

EXIT_INCOMPLETE = 1


class _Group(TyperGroup):
    def invoke(self, ctx: Any) -> object:
        """Run a verb; Ctrl-C ends it with a sentence, whatever it was at."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            err.print("interrupted; run the same command to go on")
            raise typer.Exit(Interrupted.exit_code) from None


# Heavy modules (torch, transformers, lm-eval) are imported inside the verbs that need them, so that `plan`, `status`
# and `show` answer at once.
app = typer.Typer(
    cls=_Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich"
)
out, err = console(), console(is_error=True)


def planned(file: Path, overlay: list[Path] | None, where: str | None = None) -> Plan:
    """Return a sweep file's plan, or the part of it that ``--where`` names."""
    return narrow(make_plan(load_sweep(file, overlay or ())), parse(where))


BudgetHours = Annotated[
    float | None,
    typer.Option(
        "--budget-gpu-hours",
        min=0.0,
        help="Only what so many GPU-hours pay for (hours of this machine where no GPU is used): base rows, then a "
        "balanced part of models × datasets.",
    ),
]


def paid_for(made: Plan, hours: float | None) -> Portion | None:
    """Return what a budget pays for, by the command line or else by the sweep file; None without a budget."""
    hours = made.sweep.file.budget.gpu_hours if hours is None else hours
    if hours is not None and not math.isfinite(hours):
        raise InvalidInput(Problem("--budget-gpu-hours", "must be a finite number", hours))
    return None if hours is None else within_budget(made, hours)


@app.command()
def plan(
    file: File,
    overlay: Overlays = None,
    where: Where = None,
    budget: BudgetHours = None,
    cells: Annotated[Path | None, typer.Option(help="Also write one line a cell to this CSV file.")] = None,
    as_json: Json = False,
) -> None:
    """What the sweep means and what is left of it: cells, training runs, what is shared, steps, tokens, cost."""
    whole = planned(file, overlay)
    made = narrow(whole, parse(where))
    portion = None
    try:
        portion = paid_for(made, budget)
    except InvalidInput as error:
        if budget is not None:
            raise
        for problem in error.problems:  # the file's budget cannot be kept, which `run` refuses
            err.print(str(problem), style="yellow", soft_wrap=True)
    made = portion.plan if portion else made
    if cells is not None:
        with writing("--cells", cells):
            cells.write_text(views.cells_csv(made), encoding="utf-8")
    if as_json:
        paid = portion_json(portion) if portion else None
        print_json({**views.plan_json(made), "budget": paid, "changes": changes(whole)})
    else:
        out.print(views.plan_view(made), views.budget_view(portion), views.changes_view(changes(whole)))


app.command()(check.check)

Inline = Annotated[
    bool, typer.Option("--inline", help="In this process, one after another, without Ray: for debugging.")
]
Retrain = Annotated[bool, typer.Option(help="Train again where a snapshot that is needed was removed.")]


@app.command()
def run(
    file: File,
    overlay: Overlays = None,
    where: Where = None,
    budget: BudgetHours = None,
    inline: Inline = False,
    retrain: Retrain = False,
) -> None:
    """Train, score and measure what is missing. Rerunning is resuming."""
    whole = _pinned(planned(file, overlay))
    made = narrow(whole, parse(where))
    portion = paid_for(made, budget)
    made = portion.plan if portion else made
    out.print(views.budget_view(portion))
    out.print(views.changes_view(changes(whole)))
    if all(cell.is_done for cell in made.cells):
        if made.cells:
            with suppress(OSError):  # of a root that cannot be written nothing can be removed either
                remember(whole, Ledger.open(made.root, create=False))
        none = "no such cell" if portion is None else "the budget pays for no cell"
        out.print(f"nothing to do: {_counts(made) if made.cells else none}")
        return
    out.print(views.plan_view(made))
    _execute(made, whole, inline, retrain)


@app.command()
def retry(
    file: File, overlay: Overlays = None, where: Where = None, inline: Inline = False, retrain: Retrain = False
) -> None:
    """Take up only what failed or is incomplete."""
    made, meant = _pinned(planned(file, overlay)), parse(where)
    narrowed = take_up(made, meant)
    out.print(retry_view(narrowed, Ledger.open(made.root, create=False), count_diverged(made, meant)))
    if narrowed.cells:
        _execute(narrowed, made, inline, retrain)


def _pinned(whole: Plan) -> Plan:
    """Return the plan with hub revisions as commits; the hub library takes half a second, so only where one is none."""
    require_settled(whole)
    if not whole.unpinned:
        return whole
    from massive_sft.pinning import pin

    with err.status("asking the hub"):
        return pin(whole, lambda text: out.print(text, soft_wrap=True))


def _execute(made: Plan, whole: Plan, inline: bool, retrain: bool) -> None:
    """Do what a plan leaves to do; exit with 1 when something of it is still missing afterwards, 130 when stopped."""
    from massive_sft.execute import checked, execute

    stop = Stop()
    wanted = {cell.cell.id for cell in made.cells}
    status = err.status("checking")

    def tell(what: str) -> None:
        status.update(Text(f"checking {what}"))

    with outliving(), status, checked(made, whole, tell, check.warn) as registered:
        status.stop()
        with RunProgress(made, out) as progress:
            done = execute(made, registered, _runner(inline, retrain, stop, progress.say), progress, stop)
    after = [cell for cell in done.cells if cell.cell.id in wanted]
    counts = Counter(cell.status for cell in after)
    told = ", ".join(f"{counts[status]} {status}" for status in Status if counts[status])
    out.print(f"{told}; results in {made.root}", soft_wrap=True)
    if len(after) < len(wanted):
        lost = len(wanted) - len(after)
        out.print(f"{lost} cells are others now, for files that the sweep names changed: run the same command again")
    elif all(cell.is_done for cell in after):
        return
    gone = sum(run.needs_retraining and any(cell.cell.id in wanted for cell in run.cells) for run in done.runs)
    if gone:
        out.print(f"{gone} trainings are needed again, for their snapshots were removed: run with --retrain")
    if stop():
        out.print(f"stopped by {stop.reason}; run the same command to go on")
    raise typer.Exit(Interrupted.exit_code if stop() else EXIT_INCOMPLETE)


def _runner(inline: bool, retrain: bool, stop: Stop, say: Callable[[str], None]) -> Callable[[Plan, Listen], None]:
    """Return what does a plan: in this process, or on a cluster, connected to once there is something to do."""

    def run_here(plan: Plan, listen: Listen) -> None:
        from massive_sft.inline import run_inline

        run_inline(plan, listen, retrain, stop)

    def run_there(plan: Plan, listen: Listen) -> None:
        from massive_sft.scheduling.cluster import connected
        from massive_sft.scheduling.schedule import run_on_ray

        with connected():
            run_on_ray(plan, listen, say, retrain, stop)

    return run_here if inline else run_there


@app.command()
def status(file: File, overlay: Overlays = None, where: Where = None, as_json: Json = False) -> None:
    """How far every cell is."""
    if is_imported(file):
        import_table.status(file, where, as_json)
        return
    whole = planned(file, overlay)
    made = narrow(whole, parse(where))
    if as_json:
        print_json(views.status_json(made))
    else:
        out.print(views.status_view(made), views.changes_view(changes(whole)))


@app.command()
def show(cell: CellId, file: SweepOption, overlay: Overlays = None, as_json: Json = False) -> None:
    """One cell's record: scores, measures, training, data, provenance."""
    if is_imported(file):
        ledger = open_imported(file).ledger
    else:
        ledger = Ledger.open(storage_root(load_sweep(file, overlay or ())), create=False)
    record = find_record(ledger, cell)
    if as_json:
        print_json(record.model_dump(mode="json", by_alias=True))
    else:
        out.print(views.record_view(record))


@app.command()
def inspect(
    file: File,
    overlay: Overlays = None,
    model: Annotated[str | None, typer.Option(help="Of this model's tokenizer.")] = None,
    mixture: Annotated[str | None, typer.Option(help="Of this mixture.")] = None,
    setting: Annotated[str | None, typer.Option(help="Under this setting.")] = None,
    samples: Annotated[int, typer.Option("-n", min=1, help="How many samples.")] = 3,
) -> None:
    """Training samples as the model gets them, the trained tokens marked."""
    from massive_sft.sft import cautions
    from massive_sft.sft.preview import render
    from massive_sft.stages.training import build_recipe_samples

    made = make_plan(load_sweep(file, overlay or ()))
    recipe = views.pick_run(made, model, mixture, setting).trajectory.recipe
    try:
        built, counts, tokenizer = build_recipe_samples(recipe)
    except InvalidInput:
        require_settled(made)  # what is missing is the reason; weights may be: samples need the tokenizer alone
        raise
    out.print(Text.assemble((recipe.mixture.name, "bold"), f" for {recipe.model_name} under {recipe.setting_name}"))
    place = f"{file}: settings.{recipe.setting_name}"
    for caution in cautions.joined(recipe.setting, counts.parts, place, recipe.model_name):
        check.warn(caution)
    shown = min(samples, len(built))
    out.print(render(built, counts, tokenizer, [index * len(built) // shown for index in range(shown)]))


@app.command()
def tiny(
    folder: Annotated[Path, typer.Argument(help="Where to put it; made if missing.")],
    seed: Annotated[int, typer.Option(help="Of the invented data.")] = 0,
) -> None:
    """Make an offline world: two base models, four datasets, benchmarks and a sweep file over them."""
    from massive_sft.tiny import build

    world = build(folder, seed)
    out.print(
        f"{len(world.models)} models, {len(world.datasets)} datasets and {len(world.tasks)} benchmarks in {world.root}"
    )
    out.print(f"next: massive-sft run {world.sweep}")


VERBS: tuple[Callable[..., None], ...] = (
    *(logs.logs, diff.diff, export.export, publish.report, publish.ui, publish.mirror),
    *(cancel.cancel, submit.submit, submit.job, gc.gc, doctor.doctor, fetch.fetch, invalidate.invalidate),
    *(import_table.import_table, import_table.export_table),
)
for verb in VERBS:
    app.command()(verb)


def main() -> None:
    """Run the command line; what a user can cause ends in sentences on stderr, never in a traceback."""
    # Else every small local file that lm-eval reads prints a progress bar.
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without ≈ shows a question mark
            stream.reconfigure(errors="replace")
    try:
        app(standalone_mode=True)
    except InvalidInput as error:
        for problem in error.problems:
            err.print(str(problem), style="red", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except MassiveSFTError as error:
        err.print(str(error), style="red", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except OSError as error:
        told = refusal(error)
        if told is None:
            raise
        err.print(told, style="red", highlight=False, soft_wrap=True)
        sys.exit(EXIT_INCOMPLETE)
    finally:
        freeze()  # else the interpreter looks through all that torch and Ray made, for seconds after the last line


def _counts(made: Plan) -> str:
    return ", ".join(f"{made.statuses[status]} {status}" for status in Status if made.statuses[status])


if __name__ == "__main__":
    main()
