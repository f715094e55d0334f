"""The training sets that are left to do, each tokenised once: in this process, and in others where that takes long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from massive_sft.core.cores import usable_cores
from massive_sft.core.errors import MassiveSFTError
from massive_sft.ledger.store import Ledger
from massive_sft.planning.plan import RunPlan
from massive_sft.running.token_process import TokenisedSet, TokenProcess, tokenise

HERE_S = 10.0  # seconds of tokenising in this process, after which others share the rest: each takes seconds to start

Say = Callable[[str], None]
Outcome = TokenisedSet | MassiveSFTError


class TrainingSets:
    """A context manager: what it began is over when the block ends.

    Args:
        runs: one for each distinct training set.
        ledger: whose token cache they go into.
    """

    def __init__(self, runs: Sequence[RunPlan], ledger: Ledger):
        self._runs, self._ledger = runs, ledger
        self._outcomes: list[Outcome | Future[Outcome]] = []
        self._others = _TokenProcesses(ledger.root)

    def __enter__(self) -> TrainingSets:
        return self

    def __exit__(self, *_: object) -> None:
        self._others.end()

    def begin(self, say: Say) -> None:
        """Tokenise sets here for ``HERE_S``, and have other processes go on with the rest meanwhile."""
        began, cores = time.monotonic(), usable_cores()
        for number, run in enumerate(self._runs):
            left = len(self._runs) - number
            if min(left, cores) > 1 and time.monotonic() - began > HERE_S:
                say(f"data: {left} training sets in {self._others.start(min(left, cores))} processes")
                self._outcomes += [self._others.tokenise(each) for each in self._runs[number:]]
                return
            say(_name(run))
            self._outcomes.append(tokenise(run, self._ledger))

    def outcomes(self, say: Say) -> Iterator[tuple[RunPlan, Outcome]]:
        """Yield each run with what its training set came to, or with what is wrong with it."""
        for run, outcome in zip(self._runs, self._outcomes, strict=True):
            if isinstance(outcome, Future):
                say(_name(run))
                yield run, outcome.result()
            else:
                yield run, outcome


def _name(run: RunPlan) -> str:
    return f"data {run.trajectory.recipe.mixture.name} for {run.trajectory.recipe.model_name}"


class _TokenProcesses:
    """Processes that share what is to be tokenised, with a thread each."""

    def __init__(self, root: Path):
        self._root = root
        self._processes: list[TokenProcess] = []
        self._idle = SimpleQueue[TokenProcess]()
        self._threads: ThreadPoolExecutor | None = None

    def start(self, count: int) -> int:
        """Start so many of them; return how many."""
        self._processes = [TokenProcess(self._root) for _ in range(count)]
        for process in self._processes:
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(count)
        return count

    def tokenise(self, run: RunPlan) -> Future[Outcome]:
        """Have one of them tokenise a set."""
        assert self._threads is not None
        return self._threads.submit(self._tokenise, run)

    def _tokenise(self, run: RunPlan) -> Outcome:
        process = self._idle.get()
        try:
            return process.tokenise(run)
        finally:
            self._idle.put(process)

    def end(self) -> None:
        """End them; what none has begun is not begun."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.end()
