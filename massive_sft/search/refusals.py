"""What a sweep file may say of a search and this version does not do: refused by a plan, with what there is instead."""

from __future__ import annotations

from collections.abc import Iterator

from massive_sft.core.errors import Problem
from massive_sft.sweep.load import Sweep
from massive_sft.sweep.schema import Mean, Search, Weights


def refusals(sweep: Sweep) -> Iterator[Problem]:
    """Yield what of a sweep's searches cannot be done."""
    if sweep.file.search:
        yield from _adapter_groups(sweep)
        yield from _whole_budget(sweep)
    for index, search in enumerate(sweep.file.search):
        for field, rule in _unbuilt(search):
            yield Problem(sweep.place(f"search[{index}].{field}"), rule)


def _adapter_groups(sweep: Sweep) -> Iterator[Problem]:
    """Yield the rules that train adapters at once: a search begins each trial when it has decided it."""
    for index, resource in enumerate(sweep.file.resources):
        if resource.lora_at_once > 1:
            rule = "must be 1 beside a search, which gives out its trials one by one; blocks alone can have groups"
            yield Problem(sweep.place(f"resources[{index}].lora_at_once"), rule, resource.lora_at_once)


def _whole_budget(sweep: Sweep) -> Iterator[Problem]:
    """Yield the budget of a file: a run under one decides nothing, so no search of the file would ever begin."""
    if (hours := sweep.file.budget.gpu_hours) is not None:
        rule = (
            "keeps a run from deciding, so it cannot stand beside a search: limit a search by its own "
            "budget.gpu_hours, and a run by --budget-gpu-hours"
        )
        yield Problem(sweep.place("budget.gpu_hours"), rule, hours)


def _is_one_number(search: Search) -> bool:
    written = search.objective.maximize or search.objective.minimize
    return isinstance(written, Mean) or len(written or ()) == 1


def _unbuilt(search: Search) -> Iterator[tuple[str, str]]:
    if search.over is not None and search.constraints:
        yield "constraints", "are not kept over cells yet: leave them out, `best` and the report show all benchmarks"
    if search.over is not None and search.sampler != "auto":
        yield "sampler", "has no effect over cells, of which a Gaussian process of our own proposes; leave it out"
    if isinstance(search.mixture, Weights) and (search.space or search.rungs or search.constraints):
        yield "mixture", "are searched alone: space, rungs and constraints do not go with weights yet"
    if isinstance(search.mixture, Weights) and search.sampler not in ("auto", "gp"):
        yield "sampler", "has no effect on weights, of which a Gaussian process of our own proposes; leave it out"
    if isinstance(search.mixture, Weights) and search.objective.for_each:
        yield "objective.for_each", "does not go with weights yet: make a search for each model"
    if search.start.qmc is not None and (search.over is not None or isinstance(search.mixture, Weights)):
        yield "start.qmc", "goes with a space of its own, not with cells or weights; leave it out"
    if search.proxy is not None:
        yield "proxy", "is not built yet: leave it out, every candidate that is tried is trained"
    if search.rungs is not None and not _is_one_number(search):
        yield "rungs", "promote by one number: give the objective one benchmark, or a mean of several"
    if search.rungs is not None and search.constraints:
        yield "constraints", "are not kept with rungs yet: leave out one of the two"
    if search.stop is not None and search.over is None:
        yield "stop", "is judged over cells only (over): trials says when this search ends"
    if search.evaluate.shards == "adaptive":
        yield "evaluate", "cannot drop a cell early yet: evaluation.until gives early answers of all cells"
    if search.confirm is not None and search.rungs is not None:
        yield "confirm", "does not go with rungs yet: make the best a block with several seeds"
    if search.start.portfolio and (search.over is not None or isinstance(search.mixture, Weights)):
        yield (
            "start.portfolio",
            "goes with a space of its own, not with cells or weights; leave it out",
        )
