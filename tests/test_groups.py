"""Groups of tasks: what their scores are of, and what names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import evaluation_world as world
import yaml
from evaluation_world import own_datasets_cache, write_group

from massive_sft.evaluation import build, wrapping
from massive_sft.evaluation import requests as sets
from massive_sft.evaluation.evaluate import evaluate
from massive_sft.evaluation.protocol import ScoreCache
from massive_sft.evaluation.scorer import PlainScorer
from massive_sft.ledger.storage import Folder
from massive_sft.sweep import schema

__all__ = ["own_datasets_cache"]


def regroup(path: Path, name: str, **changes: Any) -> Path:
    """Write a group file like another one beside it: a group of this name, its metric changed."""
    config = yaml.safe_load(path.read_text())
    config["group"] = name
    if not changes:
        del config["aggregate_metric_list"]
    for metric in config.get("aggregate_metric_list", ()):
        metric |= changes
    written = path.with_name(f"{name}.yaml")
    written.write_text(yaml.safe_dump(config))
    return written


def prepare(path: Path) -> build.PreparedBenchmarks:
    return build.prepare(
        (schema.Task(path=str(path), shots=(0,)),), schema.Fewshot(), wrapping.NONE, path.parent / "requests"
    )


def set_of(path: Path) -> sets.RequestSet:
    (benchmark,) = prepare(path).benchmarks
    return benchmark.requests


def evaluated(path: Path) -> dict[str, Any]:
    """Return a benchmark's table of one model on one storage root."""
    place, cache = Folder(path.parent / "cell"), ScoreCache(Folder(path.parent / "cache"))
    make = lambda: PlainScorer(world.llama(), world.tokenizer())  # noqa: E731
    (table,) = evaluate(prepare(path), schema.Protocol(), "w", make, place, cache).scores.values()
    return table


def scores(path: Path) -> dict[str, float]:
    """Return the accuracies of a benchmark's groups."""
    return {name: entries["acc,none"]["value"] for name, entries in evaluated(path)["groups"].items()}


def test_group_whose_weights_or_name_changed_is_scored_and_not_taken_from_the_cache(tmp_path: Path) -> None:
    weighted = write_group(tmp_path, weight_by_size=True)
    first = scores(weighted)["both"]
    mean = scores(regroup(weighted, "both", weight_by_size=False))["both"]
    assert mean != first
    weighted.unlink()
    assert scores(regroup(tmp_path / "both.yaml", "average", weight_by_size=False)) == {"average": mean}


def test_request_set_is_named_by_its_groups_where_they_combine_anything(tmp_path: Path) -> None:
    path = write_group(tmp_path, weight_by_size=True)
    kinds = [
        set_of(path),
        set_of(regroup(path, "mean", weight_by_size=False)),
        set_of(regroup(path, "filtered", weight_by_size=True, filter_list="none")),
        set_of(regroup(path, "renamed", weight_by_size=True)),
        set_of(regroup(path, "list")),
    ]
    assert len({one.id for one in kinds}) == len(kinds)
    assert all(one.leaves == kinds[0].leaves for one in kinds)
    assert sets.read_set(kinds[0].folder).identity() == kinds[0].identity()
    assert "groups" not in kinds[-1].identity(), "of a group that combines nothing its tasks are all there is"
    assert set_of(regroup(path, "other_list")).id == kinds[-1].id


def test_group_has_no_value_where_one_of_its_tasks_has_none(tmp_path: Path) -> None:
    path = write_group(tmp_path, weight_by_size=False)
    code = "import math\ndef share(values):\n    return math.nan if len(values) == 5 else sum(values) / len(values)\n"
    (tmp_path / "own.py").write_text(code)
    for name in ("part_a", "part_b"):
        part = tmp_path / f"{name}.yaml"
        config = yaml.safe_load(part.read_text())
        del config["metric_list"]
        metric = "metric_list: [{metric: acc, aggregation: !function own.share, higher_is_better: true}]\n"
        part.write_text(yaml.safe_dump(config) + metric)
    table = evaluated(path)
    assert table["tasks"]["part_a"]["acc,none"]["value"] is not None
    assert table["tasks"]["part_b"]["acc,none"]["value"] is None
    entry = table["groups"]["both"]["acc,none"]
    assert [entry[key] for key in ("value", "stderr", "interval", "method")] == [None] * 4
    assert entry["n"] == 17
