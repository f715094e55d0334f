"""The command line called in this process."""

from __future__ import annotations

from typer.testing import CliRunner

from massive_sft.cli.app import app
from massive_sft.core.errors import MassiveSFTError


def call(*arguments: object) -> tuple[int, str]:
    """Run a verb; return its exit code and what it printed, an error's sentence included."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "220"})
    if isinstance(done.exception, MassiveSFTError):
        return done.exception.exit_code, str(done.exception)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output
