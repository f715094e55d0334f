"""The command line: a few verbs and a sweep file. Knobs live in the file."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from massive_sft import show as views
from massive_sft.errors import InvalidInput, MassiveSFTError, Problem
from massive_sft.ledger.record import Record, Status
from massive_sft.ledger.store import Ledger
from massive_sft.plan import Plan, make_plan, require_settled, storage_root
from massive_sft.sweep.load import load_sweep

EXIT_INCOMPLETE = 1
EXIT_INTERRUPTED = 130
PIPE_WIDTH = 200  # columns of output that is no terminal's


def _console(is_error: bool) -> Console:
    """Names from the user are printed as they are, never read as markup; a pipe has room for whole tables."""
    stream = sys.stderr if is_error else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(stderr=is_error, width=width, markup=False, emoji=False, highlight=False)


class _Group(TyperGroup):
    def invoke(self, ctx: Any) -> object:
        """Run a verb; Ctrl-C ends it with a sentence, whatever it was at."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            err.print("interrupted; run the same command to go on")
            raise typer.Exit(EXIT_INTERRUPTED) from None


# Heavy modules (torch, transformers, lm-eval) are imported inside the verbs that need them, so that `plan`, `status`
# and `show` answer at once.
app = typer.Typer(
    cls=_Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich"
)
out = _console(is_error=False)
err = _console(is_error=True)

File = Annotated[Path, typer.Argument(help="The sweep file.", show_default=False)]
Overlays = Annotated[
    list[Path] | None, typer.Option("--overlay", help="A file merged over the sweep file; repeatable.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@app.command()
def plan(
    file: File,
    overlay: Overlays = None,
    cells: Annotated[Path | None, typer.Option(help="Also write one line a cell to this CSV file.")] = None,
    as_json: Json = False,
) -> None:
    """What the sweep means and what is left of it: cells, training runs, what is shared, steps, tokens."""
    made = make_plan(load_sweep(file, overlay or ()))
    if cells is not None:
        _write(cells, views.cells_csv(made))
    if as_json:
        _print_json(views.plan_json(made))
    else:
        out.print(views.plan_view(made))


@app.command()
def check(file: File, overlay: Overlays = None, as_json: Json = False) -> None:
    """Try everything a run needs (files, models, tokenizers, data, benchmarks, storage, tracker); train nothing."""
    from massive_sft.check import check as find_problems

    made = make_plan(load_sweep(file, overlay or ()))
    with err.status("checking") as status:
        problems = find_problems(made, lambda what: status.update(Text(f"checking {what}")))
    if as_json:
        _print_json([{"place": p.place, "rule": p.rule, "text": str(p)} for p in problems])
    if problems:
        raise InvalidInput([] if as_json else problems)
    if not as_json:
        out.print(views.warnings_view(made))
        amount = f"{len(made.todo)} training runs and {len(made.cells)} cells"
        out.print(Text.assemble(("ready", "green"), f": {amount}, nothing stands in the way"))


@app.command()
def run(
    file: File,
    overlay: Overlays = None,
    inline: Annotated[
        bool, typer.Option("--inline", help="In this process, one after another, without Ray: for debugging.")
    ] = False,
    retrain: Annotated[bool, typer.Option(help="Train again where a snapshot that is needed was removed.")] = False,
) -> None:
    """Train, score and measure what is missing. Rerunning is resuming."""
    made = make_plan(load_sweep(file, overlay or ()))
    require_settled(made)
    if all(cell.is_done for cell in made.cells):
        out.print(f"nothing to do: {_counts(made)}")
        return
    from massive_sft.execute import execute

    out.print(views.plan_view(made))
    after = execute(made, out, err, inline, retrain)
    out.print(f"{_counts(after)}; results in {after.root}", soft_wrap=True)
    if not all(cell.is_done for cell in after.cells):
        raise typer.Exit(EXIT_INCOMPLETE)


@app.command()
def status(file: File, overlay: Overlays = None, as_json: Json = False) -> None:
    """How far every cell is."""
    made = make_plan(load_sweep(file, overlay or ()))
    if as_json:
        _print_json(views.status_json(made))
    else:
        out.print(views.status_view(made))


@app.command()
def show(
    cell: Annotated[str, typer.Argument(help="A cell's id, or its beginning.")],
    file: Annotated[
        Path, typer.Option("--sweep", help="The sweep file whose storage holds the cell.", show_default=False)
    ],
    overlay: Overlays = None,
    as_json: Json = False,
) -> None:
    """One cell's record: scores, measures, training, data, provenance."""
    ledger = Ledger.open(storage_root(load_sweep(file, overlay or ())), create=False)
    record = _find(ledger, cell)
    if as_json:
        _print_json(record.model_dump(mode="json", by_alias=True))
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
    from massive_sft.sft.preview import render
    from massive_sft.stages.training import build_recipe_samples

    made = make_plan(load_sweep(file, overlay or ()))
    require_settled(made)
    recipe = views.pick_run(made, model, mixture, setting).trajectory.recipe
    built, counts, tokenizer = build_recipe_samples(recipe)
    out.print(Text.assemble((recipe.mixture.name, "bold"), f" for {recipe.model_name} under {recipe.setting_name}"))
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
    out.print(f"next: massive-sft run {world.sweep} --inline")


def main() -> None:
    """Run the command line; what a user can cause ends in sentences on stderr, never in a traceback."""
    # Else every small local file that lm-eval reads prints a progress bar.
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    try:
        app(standalone_mode=True)
    except InvalidInput as error:
        for problem in error.problems:
            err.print(str(problem), style="red", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except MassiveSFTError as error:
        err.print(str(error), style="red", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidInput(Problem("--cells", f"cannot be written ({error.strerror})", str(path))) from None


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def _counts(made: Plan) -> str:
    return ", ".join(f"{made.statuses[status]} {status}" for status in Status if made.statuses[status])


def _find(ledger: Ledger, beginning: str) -> Record:
    matching = [cell for cell in ledger.entries() if cell.startswith(beginning)]
    if len(matching) != 1:
        rule = "is no cell with a record" if not matching else f"is the beginning of {len(matching)} cells"
        raise InvalidInput(Problem("show", rule, beginning, matching[:10]))
    record = ledger.read_record(matching[0])
    if record is None:
        raise InvalidInput(Problem("show", "its record is damaged", matching[0]))
    return record


if __name__ == "__main__":
    main()
