"""LoRA trainings of one base that take their steps in one pass over the batches of all.

Each is a training of its own, as it would be alone: with its adapter, its optimizer, its checkpoints, snapshots and
losses. They differ in what an adapter is and how it is updated (rank, alpha, learning rate, schedule), and have the
samples of each step in common. So one model computes the same rows once for each training, side by side, and a layer
that is adapted adds to each one's rows the product of its own adapter. Trainings take turns (``core.turns``) and wait
for each other before each step; one that is behind, as after a resume, catches up first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from massive_sft.core.errors import Unsupported
from massive_sft.core.turn_taking import Turn, take_turns
from massive_sft.cost.memory import chunk_targets
from massive_sft.models import pretrained
from massive_sft.models.kept_base import KeptBase
from massive_sft.models.location import place_of
from massive_sft.sweep.schema import Model, Setting
from massive_sft.sweep.spec import Layout
from massive_sft.training.batches import Batch
from massive_sft.training.engine import free_memory
from massive_sft.training.events import StepDone
from massive_sft.training.lora import drops_out
from massive_sft.training.loss import SummedLoss
from massive_sft.training.packing import MicroBatch
from massive_sft.training.plain_engine import PlainEngine
from massive_sft.training.recomputing import recompute_activations
from massive_sft.training.step import Decision, StepRunner


@dataclass(frozen=True)
class Pass:
    """What a training waits for: the gradients of its step.

    Attributes:
        step: counted from 0.
        batches, target_total: as of ``Engine.accumulate``.
    """

    step: int
    batches: Sequence[MicroBatch]
    target_total: int


PassTurn = Turn[Pass, torch.Tensor, None]


@dataclass
class AdapterGroup:
    """Trainings that share a base and their passes.

    Attributes:
        layout: of all of them.
        bases: gives the base; without it, it is read from its files.
    """

    layout: Layout
    bases: KeptBase | None = None
    _base: Any = None
    _adapted: dict[int, nn.Module] = field(default_factory=dict)
    _joint: SummedLoss | None = None
    _present: list[int] = field(default_factory=list)  # whose rows there are in the pass

    def train(self, trainings: Sequence[Callable[[GroupMember], None]]) -> list[Exception | None]:
        """Run trainings to their ends, each as a member; return what each raised, if it did."""

        def joined(number: int, training: Callable[[GroupMember], None]) -> Callable[[PassTurn], None]:
            return lambda turn: training(GroupMember(self, number, turn))

        try:
            with pretrained.quiet():
                turns = take_turns([joined(*each) for each in enumerate(trainings)], self._serve)
        finally:
            self._base = self._joint = None
            self._adapted.clear()
            free_memory()
        return [turn.error for turn in turns]

    def copy_of_base(self, model: Model, *wanted: Any) -> Any:
        """Return the base with modules of its own and the weights of all; arguments as of ``pretrained.load_model``.

        Raises Unsupported where it drops out.
        """
        if self._base is None:
            load = pretrained.load_model if self.bases is None else self.bases.load
            base: Any = load(model, *wanted)
            if drops_out(base):
                rule = "it drops out, and adapters together would drop out others than each alone"
                raise Unsupported(f"{place_of(model)}: {rule}; leave out resources.lora_at_once")
            self._base = base.requires_grad_(False)
        return copy.deepcopy(self._base, {id(weight): weight for weight in self._base.parameters()})

    def add(self, number: int, model: nn.Module) -> None:
        """Take a member's adapter into the passes."""
        self._adapted[number] = model

    def _serve(self, asked: Mapping[int, Pass]) -> dict[int, torch.Tensor | Exception]:
        """Make the pass of those who are furthest behind and have the same micro-batches to go through."""
        first = min(asked, key=lambda number: asked[number].step)
        wanted = asked[first]
        together = [number for number, other in asked.items() if _are_same(wanted, other)]
        try:
            return dict(zip(together, self._accumulate(together, wanted), strict=True))
        except Exception as error:  # noqa: BLE001 - each of them handles it as if it were alone
            return dict.fromkeys(together, error)

    def _accumulate(self, numbers: list[int], wanted: Pass) -> torch.Tensor:
        """Add the gradients of a pass to the adapters of these members; return the summed loss of each, float64."""
        if self._joint is None:
            self._joint = self._make_joint()
        device = next(self._joint.parameters()).device
        self._present[:] = numbers
        totals = torch.zeros(len(numbers), dtype=torch.float64, device=device)
        for batch in wanted.batches:
            losses = torch.stack(self._joint.of_parts(repeated(batch.to(device), len(numbers)), len(numbers)))
            (losses.sum() * (1 / wanted.target_total)).backward()
            totals += losses.detach().double()
        return totals

    def _make_joint(self) -> SummedLoss:
        """Return the model of the passes: the base with a layer of all members' adapters in place of each adapted."""
        model = copy.deepcopy(self._base, {id(weight): weight for weight in self._base.parameters()})
        adapted = {number: _adapted_layers(member) for number, member in self._adapted.items()}
        for name in next(iter(adapted.values())):
            parent, _, own = name.rpartition(".")
            layers = {number: found[name] for number, found in adapted.items()}
            setattr(model.get_submodule(parent), own, JointLayer(model.get_submodule(name), layers, self._present))
        recompute_activations(model, self.layout)
        head = self._base.get_output_embeddings().weight
        # Chunks would have the rows of one member each, but adapters of an output layer take those of all.
        is_whole = isinstance(model.get_output_embeddings(), JointLayer)
        joint = SummedLoss(model, None if is_whole else chunk_targets(head.shape[0], self.layout))
        return joint.to(head.device).train()


@dataclass(frozen=True)
class GroupMember:
    """A training that is one of a group."""

    group: AdapterGroup
    number: int
    turn: PassTurn

    def load(self, model: Model, dtype: str, attention: str, gpu: bool, packed: bool) -> Any:
        """Return a copy of the base, as ``loading.Bases``."""
        return self.group.copy_of_base(model, dtype, attention, gpu, packed)

    def make_engine(self, module: SummedLoss, setting: Setting, layout: Layout) -> MemberEngine:
        """Return what trains the member's adapter."""
        engine = MemberEngine(module, setting, layout, self)
        self.group.add(self.number, module.model)
        return engine


class MemberEngine(PlainEngine):
    """An ``engine.Engine`` of one adapter, whose passes are made with those of others.

    Attributes:
        coming: the step that comes, counted from 0.
    """

    def __init__(self, module: SummedLoss, setting: Setting, layout: Layout, member: GroupMember):
        super().__init__(module, setting, layout)
        self._member = member
        self._most = layout.lora_at_once
        self.coming = 0

    def accumulate(self, batches: Sequence[MicroBatch], target_total: int) -> torch.Tensor:
        """See ``Engine.accumulate``."""
        return self._member.turn.ask(Pass(self.coming, batches, target_total))

    def free_bytes(self) -> int:
        """See ``Engine.free_bytes``: a member's share, for each has rows in the passes."""
        return super().free_bytes() // self._most


class MemberSteps(StepRunner):
    """Takes the steps of a member, and tells its engine which one comes."""

    def run(self, batch: Batch, decide: Callable[[], Decision]) -> tuple[StepDone, Decision]:
        """See ``StepRunner.run``."""
        assert isinstance(self._engine, MemberEngine)
        self._engine.coming = batch.step
        return super().run(batch, decide)


class JointLayer(nn.Module):
    """A base's linear layer with the adapters of several members, each for its own rows.

    Args:
        base: the layer.
        layers: peft's layer of each member, by number.
        present: the members whose rows there are, in this order; it changes from pass to pass.
    """

    def __init__(self, base: nn.Module, layers: Mapping[int, Any], present: list[int]):
        super().__init__()
        self.base = base
        self._present = present
        self._down = {number: layer.lora_A["default"].weight for number, layer in layers.items()}
        self._up = {number: layer.lora_B["default"].weight for number, layer in layers.items()}
        self._scale = {number: layer.scaling["default"] for number, layer in layers.items()}

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the layer of ``rows``, shape (members × rows, ..., in), as (members × rows, ..., out)."""
        result: torch.Tensor = self.base(rows)
        numbers = self._present
        rank = max(len(self._down[number]) for number in numbers)
        # An adapter of a smaller rank is one of the largest with zeros.
        downs, ups = ([weights[number] for number in numbers] for weights in (self._down, self._up))
        down = torch.stack([functional.pad(weight, (0, 0, 0, rank - len(weight))) for weight in downs])
        up = torch.stack([functional.pad(weight, (0, rank - weight.shape[1])) for weight in ups])
        # In float32, as alone: bf16 has no 4/3.
        scale = torch.tensor([self._scale[number] for number in numbers], device=down.device)[:, None, None]
        low = torch.bmm(rows.reshape(len(numbers), -1, rows.shape[-1]), down.mT)
        low = (low.float() * scale).to(low.dtype)
        joint = torch.baddbmm(result.reshape(len(numbers), -1, result.shape[-1]), low, up.mT)
        return joint.view(result.shape)


def _adapted_layers(member: Any) -> dict[str, Any]:
    """Return peft's layers of a model with an adapter, by their names in the base."""
    return {name: layer for name, layer in member.get_base_model().named_modules() if hasattr(layer, "lora_A")}


def repeated(batch: MicroBatch, times: int) -> MicroBatch:
    """Return a micro-batch so many times, one below the other."""
    size = batch.input_ids.numel()
    offsets = torch.arange(times, device=batch.keep.device)[:, None] * size
    return replace(
        batch,
        input_ids=batch.input_ids.repeat(times, 1),
        position_ids=None if batch.position_ids is None else batch.position_ids.repeat(times, 1),
        keep=(batch.keep[None] + offsets).reshape(-1),
        targets=batch.targets.repeat(times),
        tokens=batch.tokens * times,
    )


def _are_same(one: Pass, other: Pass) -> bool:
    """Return whether two members want the same pass: they may have cut the samples of a step otherwise."""
    return (one.step, one.target_total, len(one.batches)) == (
        other.step,
        other.target_total,
        len(other.batches),
    ) and all(
        torch.equal(mine.input_ids, its.input_ids) and torch.equal(mine.keep, its.keep)
        for mine, its in zip(one.batches, other.batches, strict=True)
    )
