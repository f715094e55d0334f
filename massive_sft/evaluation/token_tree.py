"""Sequences of tokens as one row that holds what they share once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from massive_sft.evaluation.beginnings import common
from massive_sft.models.lse_attention import KeysValues
from massive_sft.models.tree_row import Node, TreeRow

Tokens = tuple[int, ...]


def plan_rows(sequences: Sequence[Tokens], budget: int, reads: Sequence[int], most_reads: int) -> list[list[int]]:
    """Group sequences, in their order as tuples, into rows whose trees are small behind what all of them begin with.

    A pure function of the sequences: their order does not count.

    Args:
        budget: tokens of a tree, without those that all of the row's sequences begin with.
        reads: at how many positions of each something is predicted.
        most_reads: of a row.
    """
    rows: list[list[int]] = []
    size = head = read = 0  # of the last row: tokens, those that its sequences begin with, positions read
    for index in sorted(range(len(sequences)), key=lambda i: (sequences[i], i)):
        length = len(sequences[index])
        shared = common(sequences[rows[-1][-1]], sequences[index]) if rows else 0
        grown, behind = size + length - shared, min(head, shared)
        if rows and grown - behind <= budget and read + reads[index] <= most_reads:
            rows[-1].append(index)
            size, head = grown, behind
            read += reads[index]
        else:
            rows.append([index])
            size = head = length
            read = reads[index]
    return rows


def tree_row(
    sequences: Sequence[Tokens], before: Sequence[KeysValues] = (), start: int = 0
) -> tuple[TreeRow, list[list[int]]]:
    """Lay sequences out as a trie, depth first.

    Args:
        sequences: in their order as tuples.
        before: keys and values of what all of them go on from.
        start: tokens of that.

    Returns:
        The row, and for each sequence the positions of its tokens in it.
    """
    tokens: list[int] = []
    parents: list[int] = []
    depths: list[int] = []
    paths: list[list[int]] = []
    last: Tokens = ()
    for sequence in sequences:
        shared = common(last, sequence)
        path = paths[-1][:shared] if paths else []
        for depth in range(shared, len(sequence)):
            parents.append(path[-1] if path else -1)
            path.append(len(tokens))
            tokens.append(sequence[depth])
            depths.append(start + depth)
        paths.append(path)
        last = sequence
    ends = list(range(1, len(tokens) + 1))
    children = [0] * len(tokens)
    for place in range(len(tokens) - 1, -1, -1):
        if parents[place] >= 0:
            ends[parents[place]] = max(ends[parents[place]], ends[place])
            children[parents[place]] += 1
    made = [torch.tensor(values, dtype=torch.int64) for values in (tokens, depths, ends)]
    return TreeRow(_nodes(parents, children, ends), made[0], made[1], made[2], before), paths


def _nodes(parents: Sequence[int], children: Sequence[int], ends: Sequence[int]) -> tuple[Node, ...]:
    """Return the roots of the trie whose nodes are runs of tokens without a branch."""
    starts = [
        place for place, parent in enumerate(parents) if parent < 0 or parent != place - 1 or children[parent] > 1
    ]
    below: dict[int, list[Node]] = {}  # by the last token of the parent; -1: the roots
    for start, end in zip(reversed(starts), reversed([*starts[1:], len(parents)]), strict=True):
        node = Node(start, end, ends[start], tuple(reversed(below.pop(end - 1, []))))
        below.setdefault(parents[start], []).append(node)
    return tuple(reversed(below.get(-1, [])))
