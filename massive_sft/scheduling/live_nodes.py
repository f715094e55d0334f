"""The nodes of the cluster, as of now."""

from __future__ import annotations

import math
from typing import Any

import ray
from ray.core.generated import gcs_pb2

from massive_sft.scheduling.nodes import Node

NODE = "ray.io/node-id"  # label of a node
KIND = "accelerator_type:"  # begins the name of a resource
RAYS_OWN = "_ray_internal"  # begins the namespace of its dashboard's job


def usable_nodes() -> tuple[Node, ...]:
    """Return the nodes on which something may be started: those that are about to go are none."""
    nodes, _ = live_nodes()
    return nodes


def _node(name: str, resources: dict[str, float]) -> Node:
    kind = next((key.removeprefix(KIND) for key in sorted(resources) if key.startswith(KIND)), "")
    return Node(name, resources.get("CPU", 0.0), resources.get("GPU", 0.0), kind, resources.get("memory", math.inf))


def is_alone() -> bool:
    """Return whether no other job is on the cluster that could hold anything of it; Ray's own hold nothing."""
    state: Any = ray._private.state.state
    table: Any = vars(gcs_pb2)["JobTableData"]
    jobs = map(table.FromString, state._connect_and_get_accessor().get_job_table())
    ours = ray.get_runtime_context().get_job_id()
    return not any(
        not job.is_dead and job.job_id.hex() != ours and not job.config.ray_namespace.startswith(RAYS_OWN)
        for job in jobs
    )


def starting_actors(node: str) -> list[bytes]:
    """Return the ids of this job's actors that are to be on a node, and have not begun to serve."""
    state: Any = ray._private.state.state
    table: Any = vars(gcs_pb2)["ActorTableData"]
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    found = state._connect_and_get_accessor().get_actor_table(job, "PENDING_CREATION")
    actors = map(table.FromString, found)
    return [actor.actor_id for actor in actors if actor.label_selector.get(NODE) == node]


def live_nodes() -> tuple[tuple[Node, ...], list[str]]:
    """Return the nodes that could hold workers, and the ids of those that are about to go.

    A node is about to go once its provider has said so (a spot instance's notice, a scale-down): Ray calls it draining.
    ``ray.train.get_preemption_info`` says the same, but to every worker at the price of a barrier and of a process for
    each lane; here the run asks once for all of them.
    """
    state: Any = ray._private.state.state  # what Ray's own watcher asks
    draining = set(state.get_draining_nodes())
    alive = (node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU"))
    usable = (_node(node["NodeID"], node["Resources"]) for node in alive if node["NodeID"] not in draining)
    return tuple(usable), sorted(draining)
