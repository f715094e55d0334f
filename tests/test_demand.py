"""What a plan asks of a cluster: shapes by its rules and the nodes there are, and what no node can hold."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_sweep import small_sweep

from massive_sft.core.errors import InvalidInput
from massive_sft.ledger.bucket_root import BucketRoot
from massive_sft.planning.plan import make_plan
from massive_sft.scheduling.capacity import unused_gpus
from massive_sft.scheduling.demand import Demand, NoRoom, make_demand
from massive_sft.scheduling.expected import Expected
from massive_sft.scheduling.nodes import Node, Shape
from massive_sft.sweep.load import load_sweep

CPUS = (Node("a", 2.0),)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("world")


def demand(world: Path, nodes: tuple[Node, ...], *resources: dict[str, Any], trains: bool = True) -> Demand:
    plan = make_plan(load_sweep(small_sweep(world, resources=list(resources))))
    ready = [(cell, None) for cell in plan.base]
    return make_demand(plan, plan.todo if trains else [], ready, nodes)


def shapes(made: Demand) -> set[Shape]:
    return set(made.shapes.values())


def refused(world: Path, nodes: tuple[Node, ...], *resources: dict[str, Any]) -> str:
    with pytest.raises(InvalidInput) as error:
        demand(world, nodes, *resources)
    return str(error.value)


def test_cpus_are_shared_by_lanes_and_scorers_until_nothing_is_left_to_train(world: Path) -> None:
    made = demand(world, CPUS)
    assert (shapes(made), made.rules.scorer) == ({Shape(1, 1.0, 0.0)}, Shape(1, 1.0, 0.0))
    assert shapes(demand(world, CPUS, {"workers": 2})) == {Shape(2, 0.5, 0.0)}
    alone = (Node("a", 1.0),)
    assert shapes(demand(world, alone)) == {Shape(1, 0.5, 0.0)}
    assert demand(world, alone).rules.scorer == Shape(1, 0.5, 0.0)
    assert demand(world, alone, trains=False).rules.scorer == Shape(1, 1.0, 0.0)


def test_more_lanes_share_their_half_where_scoring_is_a_small_part_of_the_work(world: Path) -> None:
    """As long as memory is known to have room for them."""
    block = {"name": "A", "model": "all", "mixture": "one", "setting": "lora", "schedule": "constant"}
    long = small_sweep(world, blocks=[block | {"horizon": 5000, "snapshots": [5000]}])

    def cpus(nodes: tuple[Node, ...]) -> float:
        plan = make_plan(load_sweep(long))
        (shape,) = shapes(make_demand(plan, plan.todo, [], nodes))
        return shape.cpus

    assert (cpus(CPUS), cpus((Node("a", 4.0),)), cpus((Node("a", 1.0),))) == (0.5, 0.5, 0.5)
    assert cpus((Node("a", 2.0, memory_bytes=1e9),)) == 1.0


def test_workers_of_a_gang_fit_into_the_nodes_that_there_are(world: Path) -> None:
    nodes = (Node("a", 3.0), Node("b", 3.0))
    assert shapes(demand(world, nodes, {"workers": 3})) == {Shape(3, 0.5, 0.0)}, "halves of 1.5 CPUs hold one of one"


def test_gpu_worker_and_scorer_get_their_part_of_a_node_s_cpus(world: Path) -> None:
    made = demand(world, (Node("a", 33.0, 4.0),), {"gpus": 2})
    assert (shapes(made), made.rules.scorer) == ({Shape(2, 8.0, 1.0)}, Shape(1, 8.0, 1.0))
    assert shapes(demand(world, (Node("a", 4.0, 8.0),), {"gpus": 2})) == {Shape(2, 0.5, 1.0)}


def test_scoring_has_resources_of_its_own(world: Path) -> None:
    nodes = (Node("a", 9.0, 8.0, "A100"), Node("b", 17.0, 8.0, "H100"))
    evaluate = {"when": {"phase": "evaluate"}, "gpus_per_replica": 2, "replicas": 3, "gpu": "H100"}
    rules = demand(world, nodes, {"gpus": 1, "gpu": "A100-80GB"}, evaluate).rules
    assert (rules.scorer, rules.most) == (Shape(1, 4.0, 2.0, "H100"), 3)


def test_base_models_alone_are_scored_on_gpus_where_the_rules_have_them(world: Path) -> None:
    """A process that was given no GPU computes on the CPU, whatever its node has."""
    nodes = (Node("a", 9.0, 8.0),)
    assert demand(world, nodes, {"gpus": 1}, trains=False).rules.scorer.gpus == 1
    assert demand(world, nodes, trains=False).rules.scorer.gpus == 0


def test_kind_of_a_rule_is_found_by_ray_s_name_and_asked_of_the_node(world: Path) -> None:
    nodes = (Node("a", 9.0, 8.0, "A100"), Node("b", 9.0, 8.0, "H100"))
    full, lora = {"when": {"setting": "full"}, "gpus": 8, "gpu": "h100"}, {"gpus": 1}
    assert shapes(demand(world, nodes, full, lora)) == {Shape(8, 1.0, 1.0, "H100"), Shape(1, 1.0, 1.0)}
    assert shapes(demand(world, (Node("a", 9.0, 8.0),), full, lora)) == {Shape(8, 1.0, 1.0), Shape(1, 1.0, 1.0)}


def test_what_no_node_can_hold_is_refused_with_what_there_is(world: Path) -> None:
    assert "more workers than the 2 CPUs that the cluster has: 1 node with 2 CPU, got 3" in refused(
        world, CPUS, {"workers": 3}
    )
    assert "more GPUs than the 0 that the cluster has: 1 node with 2 CPU, got 4" in refused(world, CPUS, {"gpus": 4})
    assert "the 0 that the cluster has: no node, got 4" in refused(world, (), {"gpus": 4})
    two = (Node("a", 9.0, 4.0, "A100"), Node("b", 9.0, 4.0, "H100"))
    assert "no node of the cluster has: there are A100, H100, got 'H200'" in refused(
        world, two, {"gpus": 1, "gpu": "H200"}
    )
    reason = refused(world, two, {"gpus": 8})
    assert "no nodes of one kind have room for, even empty" in reason
    assert "1 node with 4 A100, 9 CPU; 1 node with 4 H100, 9 CPU" in reason
    four = (*two, Node("c", 9.0, 4.0, "A100"))
    assert "has: 2 nodes with 4 A100, 9 CPU; 1 node with 4 H100, 9 CPU, got 16" in refused(world, four, {"gpus": 16})


def test_gang_of_a_ledger_in_an_object_store_must_fit_one_node(world: Path) -> None:
    plan = make_plan(load_sweep(small_sweep(world, resources=[{"gpus": 8, "zero": 3}])))
    far = replace(plan, storage=BucketRoot("bucket", "study"))
    two = (Node("a", 9.0, 4.0), Node("b", 9.0, 4.0))
    assert shapes(make_demand(plan, plan.todo, [], two)) == {Shape(8, 2.0, 1.0)}
    with pytest.raises(NoRoom, match=r"must fit on one node, for .* in an object store: 2 nodes with 4 GPU"):
        make_demand(far, far.todo, [], two)
    assert shapes(make_demand(far, far.todo, [], (*two, Node("c", 17.0, 8.0)))) == {Shape(8, 2.0, 1.0)}


def test_rule_that_lacks_nodes_is_named_and_what_it_asks_for_is_known(world: Path) -> None:
    rules = ({"when": {"setting": "lora"}, "workers": 1}, {"when": {"setting": "full"}, "workers": 3})
    with pytest.raises(NoRoom) as error:
        demand(world, CPUS, *rules)
    (problem,) = error.value.problems
    assert problem.place.endswith("sweep.yaml: resources[1]")
    assert [shape.workers for shape in error.value.shapes] == [3]
    again = pickle.loads(pickle.dumps(error.value))
    assert (str(again), again.shapes) == (str(error.value), error.value.shapes)


def test_offloaded_optimizer_is_host_memory_that_a_node_must_have(world: Path) -> None:
    rule = {"gpus": 2, "offload": "optimizer", "zero": 2}
    (shape, *_) = sorted(shapes(demand(world, (Node("a", 9.0, 4.0),), rule)), reverse=True)
    assert shape.memory_bytes > 0
    assert "host memory each" in refused(world, (Node("a", 9.0, 4.0, "x", shape.memory_bytes / 2),), rule)


def test_longest_chains_are_known_before_anything_ran(world: Path) -> None:
    made = demand(world, CPUS)
    assert all(made.chain_s[run] > made.training_s[run] > 0 for run in made.shapes)
    assert set(made.size_bytes) == set(made.scoring_s)


def unused(world: Path, nodes: tuple[Node, ...], *resources: dict[str, Any]) -> list[str]:
    plan = make_plan(load_sweep(small_sweep(world, resources=list(resources))))
    return [str(problem).partition(": ")[2] for problem in unused_gpus(plan, nodes)]


def test_gpus_that_no_rule_uses_and_kinds_that_no_rule_names_are_told(world: Path) -> None:
    two = (Node("a", 9.0, 4.0, "A100"), Node("b", 9.0, 4.0, "H100"))
    assert unused(world, CPUS) == []
    assert unused(world, two[:1], {"gpus": 1}) == unused(world, two, {"gpus": 1, "gpu": "H100"}) == []
    (told,) = unused(world, two[:1])
    assert "gives no training a GPU" in told
    assert "got '4 GPUs'" in told
    (told,) = unused(world, two, {"gpus": 1})
    assert "names no kind of GPU" in told
    assert "got 'A100, H100'" in told


def test_training_is_waited_for_until_each_of_its_cells_is_recorded_however_often_one_is(world: Path) -> None:
    """A trial that was killed hands over anew what scorers have done by then."""
    block = {"name": "A", "model": "all", "mixture": "one", "setting": "lora", "schedule": "constant"}
    (run,) = make_plan(load_sweep(small_sweep(world, blocks=[block | {"horizon": 3, "snapshots": [1, 2, 3]}]))).runs
    first, second, third = (cell.cell.id for cell in run.cells)
    expected = Expected()
    expected.add(run)
    assert [expected.recorded(cell) for cell in (first, second, first, second, "of another run")] == [None] * 5
    assert expected.recorded(third) is run
    assert expected.recorded(third) is run  # what it lacked before may be there now
