"""How long the reference programs of HumanEval and MBPP take behind each wall that this machine allows.

    python benchmarks/sandbox.py HumanEval.jsonl.gz mbpp.jsonl

The files are as published: {task_id, prompt, canonical_solution, test, entry_point} and {task_id, code, test_list}.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from massive_sft.sandbox.run import NoWall, run, run_all
from massive_sft.sandbox.walls import Wall

WALLS: tuple[Wall, ...] = ("bubblewrap", "namespaces", "rlimits")
SANITIZED = range(11, 268)  # as many MBPP problems as its sanitized part has


def rows(path: Path) -> Iterator[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    yield from map(json.loads, text.decode().splitlines())


def programs(humaneval: Path, mbpp: Path) -> list[str]:
    """Return each problem's reference solution, followed by its tests."""
    found = [
        f"{row['prompt']}{row['canonical_solution']}\n{row['test']}\ncheck({row['entry_point']})"
        for row in rows(humaneval)
    ]
    return found + [
        "\n".join([row["code"], row.get("test_setup_code", ""), *row["test_list"]])
        for row in rows(mbpp)
        if row["task_id"] in SANITIZED
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("humaneval", type=Path)
    parser.add_argument("mbpp", type=Path)
    arguments = parser.parse_args()
    listed = programs(arguments.humaneval, arguments.mbpp)
    print(f"{len(listed)} programs on {len(os.sched_getaffinity(0))} CPUs")
    for wall in WALLS:
        try:
            walls = run("pass", wall).walls
        except (NoWall, OSError) as error:
            print(f"{wall}: cannot be put up here ({error})")
            continue
        begun = time.perf_counter()
        passed = sum(outcome.passed for outcome in run_all(listed, wall))
        print(f"{' + '.join(walls)}: {time.perf_counter() - begun:.1f} s, {passed} passed")


if __name__ == "__main__":
    main()
