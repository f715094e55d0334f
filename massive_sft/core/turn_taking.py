"""Functions on threads of their own that take turns, one at a time, and meet where they want something in common."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
Result = TypeVar("Result")


class Turn(Generic[Asked, Answer, Result]):
    """One function and its thread. Whoever holds it runs it until it asks or ends; nothing of it runs in between.

    Attributes:
        asked: what the function waits for an answer to; None before it begins and once it has ended.
        result, error: what it returned or raised.
        interrupt: what it raised that is no ``Exception``; it is for whoever holds it.
    """

    def __init__(self, function: Callable[[Turn[Asked, Answer, Result]], Result]):
        self.asked: Asked | None = None
        self.result: Result | None = None
        self.error: Exception | None = None
        self.interrupt: BaseException | None = None
        self._answer: Answer | BaseException | None = None
        self._has_ended = self._runs = False
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        threading.Thread(target=self._run, args=(function,), daemon=True).start()

    def ask(self, asked: Asked) -> Answer:
        """Wait for the answer to ``asked`` and return it, or raise it; called by the function."""
        self.asked = asked
        self._back.release()
        self._go.acquire()
        self.asked = None
        answer, self._answer = self._answer, None
        if isinstance(answer, BaseException):
            raise answer
        return answer  # type: ignore[return-value]  # None only where that is an answer

    def go_on(self, answer: Answer | BaseException | None = None) -> None:
        """Let the function run, with an answer to what it asked, until it asks again or has ended."""
        self._answer, self._runs = answer, True
        self._go.release()
        self._wait()

    def end(self, error: BaseException) -> None:
        """Raise ``error`` wherever the function waits, until it has ended."""
        self._wait()  # where an interrupt broke off ``go_on``
        while not self._has_ended:
            self.go_on(error)

    def _wait(self) -> None:
        if self._runs:
            self._back.acquire()
            self._runs = False

    def _run(self, function: Callable[[Turn[Asked, Answer, Result]], Result]) -> None:
        self._go.acquire()
        try:
            if not isinstance(self._answer, BaseException):
                self.result = function(self)
        except Exception as error:  # noqa: BLE001 - whoever holds it looks at it
            self.error = error
        except BaseException as interrupt:  # noqa: BLE001 - it is raised again by whoever holds it
            self.interrupt = interrupt
        self._has_ended = True
        self._back.release()


def take_turns(
    functions: Sequence[Callable[[Turn[Asked, Answer, Result]], Result]],
    serve: Callable[[Mapping[int, Asked]], Mapping[int, Answer | Exception]],
) -> list[Turn[Asked, Answer, Result]]:
    """Run functions by turns, each to its end.

    Args:
        functions: each is given its ``Turn``, whose ``ask`` waits until all others ask as well or have ended.
        serve: called on this thread with what is asked, by the number of the function; returns answers to some of it,
            at least one. An exception is raised where it was asked.

    Returns:
        What became of each. An error of ``serve``, or an interrupt, is raised in all functions, and then here.
    """
    turns = [Turn(function) for function in functions]
    waiting: dict[int, Turn[Asked, Answer, Result]] = {}
    ready: deque[tuple[int, Answer | Exception | None]] = deque((number, None) for number in range(len(turns)))
    try:
        while ready or waiting:
            while ready:
                number, answer = ready.popleft()
                turn = turns[number]
                turn.go_on(answer)
                if turn.interrupt is not None:
                    raise turn.interrupt
                if turn.asked is not None:
                    waiting[number] = turn
            if waiting:
                asked = {number: turn.asked for number, turn in sorted(waiting.items()) if turn.asked is not None}
                for number, answer in serve(asked).items():
                    del waiting[number]
                    ready.append((number, answer))
    except BaseException as error:
        for turn in turns:
            turn.end(error)
        raise
    return turns
