"""The command line: a few verbs and a sweep file. Knobs live in the file."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from gc import freeze
from typing import Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperGroup

from massive_sft import __version__
from massive_sft.cli import (
    answers,
    best,
    cancel,
    check,
    diff,
    doctor,
    export,
    fetch,
    gc,
    import_table,
    init,
    inspect,
    invalidate,
    logs,
    plan,
    publish,
    retry,
    run,
    show,
    status,
    submit,
    suites,
    tiny,
)
from massive_sft.cli.options import console
from massive_sft.cli.views import print_line
from massive_sft.core.errors import ExitCode, InvalidInput, MassiveSFTError
from massive_sft.core.files import explain_os_error
from massive_sft.core.stop import INTERRUPTED, redeliver_lost_interrupts

err = console(is_error=True)


class _Group(TyperGroup):
    def invoke(self, ctx: Any) -> object:
        """Run a verb; Ctrl-C ends it with a sentence, whatever it was at."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            err.print(INTERRUPTED)
            raise typer.Exit(ExitCode.INTERRUPTED) from None


# Heavy modules (torch, transformers, lm-eval) are imported inside the verbs that need them, so that `plan`, `status`
# and `show` answer at once.
VERBS: tuple[Callable[..., None], ...] = (
    *(init.init, plan.plan, check.check, run.run, retry.retry, status.status, show.show, inspect.inspect, tiny.tiny),
    *(best.best, answers.answers, logs.logs, diff.diff, export.export, publish.report, publish.ui, publish.mirror),
    *(cancel.cancel, submit.submit, submit.job, gc.gc, doctor.doctor, fetch.fetch, invalidate.invalidate),
    *(import_table.import_table, import_table.export_table, init.schema, suites.suites),
)
app = typer.Typer(cls=_Group, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"massive-sft {__version__}")
        raise typer.Exit


@app.callback()
def massive_sft(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Supervised fine-tuning studies as one declared, resumable sweep."""


for verb in VERBS:
    app.command()(verb)


def main() -> None:
    """Run the command line; what a user can cause ends in sentences on stderr, never in a traceback."""
    # Else every small local file that lm-eval reads prints a progress bar.
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    redeliver_lost_interrupts()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without ≈ shows a question mark
            stream.reconfigure(errors="replace")
    try:
        app(standalone_mode=True)
    except InvalidInput as error:
        for line in error.lines():
            print_line(err, Text(line, style="red"))
        sys.exit(error.exit_code)
    except MassiveSFTError as error:
        print_line(err, Text(str(error), style="red"))
        sys.exit(error.exit_code)
    except OSError as error:
        explanation = explain_os_error(error)
        if explanation is None:
            raise
        print_line(err, Text(explanation, style="red"))
        sys.exit(ExitCode.INCOMPLETE)
    finally:
        freeze()  # else the interpreter looks through all that torch and Ray made, for seconds after the last line
