"""The cells of a sweep scored again by both engines: seconds of each, and whether every question's pick is the same.

    MODELS=... DATA=... ROOT=... python benchmarks/rescore.py SWEEP [--where CONDITION] [--benchmark NAME ...]

Base models are scored as they are; a trained cell must be complete and have its snapshot. Requests and their tokens are
the ledger's, made where they are not there yet; generated answers, which both engines write in the same way, are left out.
Seconds are the processor's, the tree's proof included, one thread. It fails where a pick differs by more than a tie.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from massive_sft.evaluation.requests import Generation, Likelihood, Request, read_requests
from massive_sft.evaluation.responses import TOKENS
from massive_sft.evaluation.scorer import PlainScorer
from massive_sft.evaluation.tree import TreeScorer
from massive_sft.evaluation.wrapping import choose_wrapping
from massive_sft.ledger.store import Ledger
from massive_sft.models.snapshots import load_for_scoring
from massive_sft.models.tokenizer import load_tokenizer
from massive_sft.planning import selection
from massive_sft.planning.lock import data_commits
from massive_sft.planning.plan import CellPlan, Plan, make_plan
from massive_sft.running.outcome import open_snapshot
from massive_sft.running.scoring import prepare_benchmark
from massive_sft.sweep.load import load_sweep

TIES = {"fp32": 2e-4, "bf16": 1.0}  # margins up to which a pick may be another, in nats


def cells_of(plan: Plan, ledger: Ledger, condition: selection.Selection) -> Iterator[tuple[CellPlan, Path | None]]:
    """Yield the cells that meet the condition, with their snapshots; base models have none."""
    yield from ((cell, None) for cell in plan.base if condition(cell))
    for run in plan.runs:
        for cell in filter(condition, run.cells):
            with open_snapshot(ledger, run.trajectory.id, cell.cell.epoch) as found:
                if found is not None:
                    yield cell, found[0]


def asked_of(cell: CellPlan, plan: Plan, ledger: Ledger, tokenizer: Any) -> Iterator[tuple[str, list[Request], Path]]:
    """Yield each benchmark of a cell with its likelihood requests and the folder of their tokens."""
    evaluation = plan.sweep.file.evaluation
    for item in cell.requirements:
        if item.template is None or item.task is None:
            continue
        wrapping = choose_wrapping(evaluation.protocol, item.template, tokenizer)
        for made in prepare_benchmark(
            item, evaluation, wrapping, ledger, data_commits(ledger.sweep(plan.sweep.file.name))
        ).benchmarks:
            for leaf in made.requests.leaves:
                asked = [one for one in read_requests(made.requests, leaf) if not isinstance(one, Generation)]
                if asked:
                    yield leaf.name, asked, made.requests.folder / TOKENS


def picks(asked: Sequence[Request], values: Sequence[float]) -> list[tuple[int, float]]:
    """Return of every question the largest choice's place, and its margin."""
    found = []
    for _, pairs in groupby(zip(asked, values, strict=True), key=lambda pair: pair[0].doc):
        four = [value for _, value in pairs]
        first, second = sorted(four, reverse=True)[:2]
        found.append((four.index(first), first - second))
    return found


def compare(name: str, asked: Sequence[Request], tokens: Path, engines: Sequence[Any], tie: float) -> dict[str, Any]:
    """Score requests by both engines; return the seconds and differences."""
    engines[0].score(asked[:1], tokens)  # the model's pages are read
    seconds, answers = [], []
    for engine in engines:
        began = time.process_time()
        answers.append(engine.score(asked, tokens)[0])
        seconds.append(round(time.process_time() - began, 2))
    values = [[response.logprob for response in found] for found in answers]
    deltas = [abs(a - b) for a, b in zip(*values, strict=True)]
    result = {"benchmark": name, "requests": len(asked), "plain_s": seconds[0], "tree_s": seconds[1]}
    result |= {"max_delta": max(deltas), "mean_delta": sum(deltas) / len(deltas)}
    if isinstance(asked[0], Likelihood) and len({one.doc for one in asked}) < len(asked):
        both = list(zip(*(picks(asked, one) for one in values), strict=True))
        other = [max(ours[1], theirs[1]) for ours, theirs in both if ours[0] != theirs[0]]
        result |= {"equal_picks": f"{len(both) - len(other)} of {len(both)}", "margins_of_others": other}
        assert all(margin <= tie for margin in other), result
    return result


def main() -> None:
    """Print a line for each benchmark of each cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--where", default=None, help="which cells, as the command line writes it")
    parser.add_argument("--benchmark", nargs="*", help="the leaf tasks whose names begin so; all when left out")
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    plan = make_plan(load_sweep(arguments.sweep))
    ledger, protocol = plan.open_ledger(), plan.sweep.file.evaluation.protocol
    for cell, snapshot in cells_of(plan, ledger, selection.parse_where(arguments.where)):
        tokenizer = load_tokenizer(cell.cell.model)
        model = load_for_scoring(cell.cell.model, snapshot, protocol.dtype, protocol.adapters)
        engines = [PlainScorer(model, tokenizer), TreeScorer(model, tokenizer)]
        for name, asked, tokens in asked_of(cell, plan, ledger, tokenizer):
            if not arguments.benchmark or name.startswith(tuple(arguments.benchmark)):
                line = compare(name, asked, tokens, engines, TIES[protocol.dtype])
                told = {"cell": str(cell.cell.coordinates), **line, "fallback": engines[1].fallback}
                print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
