"""The nodes of the cluster, as of now."""

from __future__ import annotations

import math
from typing import Any

import ray

from massive_sft.scheduling.nodes import Node

NODE = "ray.io/node-id"  # label of a node
KIND = "accelerator_type:"  # begins the name of a resource


def usable_nodes() -> tuple[Node, ...]:
    """Return the nodes on which something may be started: those that are about to go are none."""
    fit, _ = live_nodes()
    return tuple(_node(node["NodeID"], node["Resources"]) for node in ray.nodes() if node["NodeID"] in fit)


def _node(name: str, resources: dict[str, float]) -> Node:
    kind = next((key.removeprefix(KIND) for key in sorted(resources) if key.startswith(KIND)), "")
    return Node(name, resources.get("CPU", 0.0), resources.get("GPU", 0.0), kind, resources.get("memory", math.inf))


def live_nodes() -> tuple[list[str], list[str]]:
    """Return the ids of the nodes that could hold workers, and of those that are about to go.

    A node is about to go once its provider has said so (a spot instance's notice, a scale-down): Ray calls it draining.
    ``ray.train.get_preemption_info`` says the same, but to every worker at the price of a barrier and of a process for
    each lane; here the run asks once for all of them.
    """
    state: Any = ray._private.state.state  # what Ray's own watcher asks
    draining = set(state.get_draining_nodes())
    alive = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    return [node for node in alive if node not in draining], sorted(draining)
