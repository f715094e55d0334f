"""A process that tokenises training sets into a ledger's cache, one after another: ``TrainingSets`` starts several.

It reads pickled runs from its input and answers each with what its set came to.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from massive_sft.core.errors import MassiveSFTError
from massive_sft.data.mixture import Counts
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import RunPlan
from massive_sft.running.samples import samples_of


@dataclass(frozen=True)
class TokenisedSet:
    """What a training set came to.

    Attributes:
        longest: tokens of its longest sample.
        largest: of its token ids.
    """

    counts: Counts
    longest: int
    largest: int


def tokenise(run: RunPlan, ledger: Ledger) -> TokenisedSet | MassiveSFTError:
    """Build a run's training set into the token cache, unless it is there; return what it came to, or what is wrong."""
    try:
        samples, counts = samples_of(run, ledger)
    except MassiveSFTError as error:
        return error
    return TokenisedSet(counts, int(samples.lengths.max()), int(samples.tokens.max()))


class TokenProcess:
    """One such process, started when it is needed. Calls block, so each needs a thread of its own."""

    def __init__(self, root: Path):
        # What is imported here is imported there, and each has one core.
        self._environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TOKENIZERS_PARALLELISM": "false"}
        self._command = [sys.executable, "-P", "-c", f"from {__name__} import main; main()", str(root)]
        self._process: subprocess.Popen[bytes] | None = None

    def tokenise(self, run: RunPlan) -> TokenisedSet | MassiveSFTError:
        """Return what ``tokenise`` returns there; an error as well when the process dies of it.

        Raises OSError as it does there.
        """
        if self._process is None or self._process.poll() is not None:
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, env=self._environment)
        questions, answers = self._process.stdin, self._process.stdout
        assert questions is not None
        assert answers is not None
        try:
            pickle.dump(run, questions)
            questions.flush()
            answer: TokenisedSet | MassiveSFTError | OSError = pickle.load(answers)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError):
            code = self._process.wait()
            return MassiveSFTError(f"the process that tokenised it ended with {code} (out of memory?)")
        if isinstance(answer, OSError):
            raise answer
        return answer

    def end(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def main() -> None:
    """Answer until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it too; whoever started it ends it
    answers, questions = os.fdopen(os.dup(1), "wb"), sys.stdin.buffer
    os.dup2(2, 1)  # what a library prints is no answer
    ledger = Ledger.open(Path(sys.argv[1]))
    while True:
        try:
            run = pickle.load(questions)
        except EOFError:
            return
        try:
            answer: TokenisedSet | MassiveSFTError | OSError = tokenise(run, ledger)
        except OSError as error:
            answer = error
        pickle.dump(answer, answers)
        answers.flush()
