"""What a run prints is free of the lines of Ray's native code, and of nothing else."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from massive_sft.core.errors import ExitCode
from massive_sft.core.stop import KILL_MESSAGE
from massive_sft.scheduling.native_log import without_native_log


def test_lines_of_ray_are_left_out_and_all_others_come_in_order(capfd: pytest.CaptureFixture[str]) -> None:
    with without_native_log():
        os.write(
            2, b"[2026-11-27 13:43:55,962 E 24032 24352] core_worker.cc:2465: Actor with class name: 'MapWorker'\n"
        )
        sys.stderr.write("a warning\n")
        sys.stderr.flush()
        os.write(2, b"[2026-11-27 13:43:55,963 W 24032 24352] (python-core-driver) raylet_client.cc:1: slow\n")
        os.write(2, b"[2026-11-27 13:43:56,000 C 24032 24352] core_worker.cc:99: Check failed: what ends the process\n")
        os.write(2, b"half a line")
    sys.stderr.write("after\n")
    sys.stderr.flush()
    assert capfd.readouterr().err == (
        "a warning\n[2026-11-27 13:43:56,000 C 24032 24352] core_worker.cc:99: Check failed: what ends the process\n"
        "half a lineafter\n"
    )


def test_standard_error_is_what_it_was_though_a_child_keeps_the_pipe(capfd: pytest.CaptureFixture[str]) -> None:
    before = os.fstat(2)
    with pytest.raises(KeyError), without_native_log():
        child = os.fork()
        if child == 0:
            os.read(os.open("/dev/zero", os.O_RDONLY), 1)
            os._exit(0)
        os.waitpid(child, 0)
        raise KeyError
    assert os.path.samestat(before, os.fstat(2))
    os.write(2, b"here\n")
    assert capfd.readouterr().err == "here\n"


def test_sentence_of_a_second_interrupt_comes_though_no_other_thread_gets_its_turn() -> None:
    code = """
import os, signal, threading
from massive_sft.core.stop import StopSignal
from massive_sft.core.errors import ExitCode
from massive_sft.core.stop import KILL_MESSAGE
from massive_sft.scheduling.native_log import without_native_log

threading.Thread.start = lambda self: None
with StopSignal().handle_signals(lambda: False, print), without_native_log():
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
"""
    ended = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, timeout=60)
    assert (ended.stderr, ended.returncode) == (KILL_MESSAGE, ExitCode.INTERRUPTED)
