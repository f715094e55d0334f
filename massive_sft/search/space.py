"""The space of a search: its axes, and what is trained at a choice of one value on each.

A *choice* has a number for each axis, as samplers see it: the value itself on a range, else the place of one in the
axis' list. What is told to a sampler is what was tried, so values of ranges are rounded before anything else is made
of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from massive_sft.core.fingerprint import fingerprint
from massive_sft.sweep.content import Contents
from massive_sft.sweep.identity import setting_content
from massive_sft.sweep.load import Sweep
from massive_sft.sweep.point import Point
from massive_sft.sweep.schema import Range, Search, Weights
from massive_sft.sweep.setting import make_variant, takes_whole_numbers
from massive_sft.sweep.spec import Mixture

DIGITS = 3  # of a value on a range: more say nothing of a learning rate, and make cells that nothing shares
Choice = Mapping[str, float | int]


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        name: ``model``, ``mixture`` or a dotted field of the setting.
        kind: ``log`` and ``linear`` are ranges; of ``ordered`` values the next is nearer than the one after, of
            ``names`` none is.
        values: of ``ordered`` and ``names``; factors where ``times`` is a field.
        contents: what is hashed of each of ``values``, so that names never are.
    """

    name: str
    kind: Literal["log", "linear", "ordered", "names"]
    ends: tuple[float, float] = (0.0, 0.0)
    values: tuple[Any, ...] = ()
    contents: tuple[Any, ...] = ()
    times: str | None = None

    @property
    def is_range(self) -> bool:
        return self.kind in ("log", "linear")

    def at(self, share: float) -> float | int:
        """Return the choice at a share of the axis, 0 to 1."""
        if not self.is_range:
            return min(int(share * len(self.values)), len(self.values) - 1)
        low, high = self.ends
        return self.rounded(low * (high / low) ** share if self.kind == "log" else low + share * (high - low))

    def share(self, choice: float | int) -> float:
        """Return where a choice is on the axis, 0 to 1."""
        if not self.is_range:
            return choice / max(1, len(self.values) - 1)
        low, high = self.ends
        return math.log(choice / low) / math.log(high / low) if self.kind == "log" else (choice - low) / (high - low)

    def rounded(self, value: float | int) -> float | int:
        """Return the choice that a sampler's value stands for."""
        if not self.is_range:
            return int(value)
        if takes_whole_numbers(self.name):
            return int(min(max(round(value), self.ends[0]), self.ends[1]))
        return min(max(float(f"{value:.{DIGITS}g}"), self.ends[0]), self.ends[1])

    @property
    def content(self) -> dict[str, Any]:
        """What the axis is, for the search's id."""
        own: dict[str, Any] = {"ends": list(self.ends)} if self.is_range else {"values": list(self.contents)}
        return {"name": self.name, "kind": self.kind, **own, **({"times": self.times} if self.times else {})}


@dataclass(frozen=True)
class Space:
    """What a search may try.

    Attributes:
        search: as the file has it.
        axes: sorted by name.
        groups: models that are searched each for itself (``objective.for_each``), or the only one; empty where the
            model is an axis.
        mixture: the only one; None where it is an axis.
        snapshots: epochs of a trial; the last one's scores count.
    """

    sweep: Sweep
    search: Search
    axes: tuple[Axis, ...]
    groups: tuple[str, ...]
    mixture: Mixture | None
    snapshots: tuple[int, ...]

    @property
    def size(self) -> int | None:
        """How many choices there are, in one group; None where an axis is a range."""
        return None if any(axis.is_range for axis in self.axes) else math.prod(len(axis.values) for axis in self.axes)

    def choices(self) -> Iterator[Choice]:
        """Yield all choices of a finite space."""
        for number in range(self.size or 0):
            yield self._numbered(number)

    def corners(self, share: float = 0.0) -> list[tuple[Choice, str | None]]:
        """Return choices that stand for the space: all axes at a share of their length, in each group."""
        return [({axis.name: axis.at(share) for axis in self.axes}, group) for group in self.groups or (None,)]

    def _numbered(self, number: int) -> Choice:
        choice: dict[str, float | int] = {}
        for axis in self.axes:
            number, choice[axis.name] = divmod(number, len(axis.values))
        return choice

    def named(self, choice: Choice) -> dict[str, Any]:
        """Return a choice's values by axis, as the sweep file would have them: names, numbers."""
        found = {
            axis.name: choice[axis.name] if axis.is_range else axis.values[int(choice[axis.name])] for axis in self.axes
        }
        return {name: value.name if isinstance(value, Mixture) else value for name, value in found.items()} | {
            axis.name: self._multiple(axis, found) for axis in self.axes if axis.times
        }

    def _multiple(self, axis: Axis, found: Mapping[str, Any]) -> float | int:
        base = found.get(str(axis.times))
        if base is None:
            setting = self.sweep.settings[str(self.search.setting)].model_dump()
            for step in str(axis.times).split("."):
                setting = setting[step]
            base = setting
        value = base * found[axis.name]
        return int(value) if float(value).is_integer() else float(value)

    def content_of_setting(self) -> dict[str, Any]:
        """Return what hashes the setting at a corner of the space."""
        return setting_content(self.point(*self.corners()[0]).variant.setting)

    def point(self, choice: Choice, group: str | None, seed: int | None = None) -> Point:
        """Return what is trained at a choice.

        Args:
            group: the model, where that is no axis.
            seed: of the training; None for the setting's own.
        """
        values = self.named(choice)
        model = values.pop("model", group)
        values.pop("mixture", None)
        mixtures = (axis.values[int(choice["mixture"])] for axis in self.axes if axis.name == "mixture")
        mixture = next(mixtures, self.mixture)
        assert mixture is not None
        if seed is not None:
            values["seed"] = seed
        name = str(self.search.setting)
        return Point(
            self.search.name,
            str(model),
            mixture,
            make_variant(name, self.sweep.settings[name], values),
            self.search.schedule,
            self.search.horizon,
            self.snapshots,
        )

    def content(self, contents: Contents) -> dict[str, Any]:
        """Return what the space is, for the search's id."""
        return {
            "axes": [axis.content for axis in self.axes],
            "models": [_model_content(self.sweep, name, contents) for name in self.groups],
            "mixture": None if self.mixture is None else mixture_content(self.mixture, contents),
        }


def make_space(sweep: Sweep, search: Search, contents: Contents) -> Space:
    """Return the space of a search that has one of its own."""
    axes = []
    for name, written in sorted(search.space.items()):
        if name == "model":
            listed = sweep.models_of(tuple(map(str, written)))
            models = {_model_content(sweep, one, contents): one for one in listed}
            axes.append(_names(name, models))
        elif name == "mixture":
            mixtures = {mixture_content(one, contents): one for one in sweep.mixtures_of(tuple(map(str, written)))}
            axes.append(_names(name, mixtures))
        else:
            axes.append(_axis(name, written))
    names = {axis.name for axis in axes}
    groups = () if "model" in names else tuple(_in_order(sweep, search.model or (), contents))
    mixture = None
    if "mixture" not in names and not isinstance(search.mixture, Weights):
        mixture = sweep.mixtures_of(search.mixture or ())[0]
    snapshots = search.rungs.at if search.rungs else search.snapshots or (search.horizon,)
    return Space(sweep, search, tuple(axes), groups, mixture, tuple(sorted(snapshots)))


def _in_order(sweep: Sweep, names: Sequence[str], contents: Contents) -> list[str]:
    """Return models in the order of what they are, which renaming leaves."""
    return sorted(sweep.models_of(names), key=lambda name: _model_content(sweep, name, contents))


def _names(name: str, by_content: Mapping[str, Any]) -> Axis:
    contents = tuple(sorted(by_content))
    return Axis(name, "names", values=tuple(by_content[key] for key in contents), contents=contents)


def _axis(name: str, written: Any) -> Axis:
    if not isinstance(written, Range):
        is_ordered = all(isinstance(value, int | float) for value in written)
        return Axis(name, "ordered" if is_ordered else "names", values=tuple(written), contents=tuple(written))
    if written.log is not None:
        return Axis(name, "log", ends=written.log)
    if written.linear is not None:
        return Axis(name, "linear", ends=written.linear)
    if written.powers_of_2 is not None:
        low, high = (end.bit_length() - 1 for end in written.powers_of_2)
        powers = tuple(2**exponent for exponent in range(low, high + 1))
        return Axis(name, "ordered", values=powers, contents=powers)
    factors = tuple(written.by or ())
    return Axis(name, "ordered", values=factors, contents=factors, times=written.times)


def _model_content(sweep: Sweep, name: str, contents: Contents) -> str:
    return fingerprint(contents.model(sweep.file.models[name], f"models.{name}"))


def mixture_content(mixture: Mixture, contents: Contents) -> str:
    """Return the id of a mixture: its parts' rows and counts, in any order."""
    parts = [
        fingerprint(contents.dataset(part.dataset, f"datasets.{part.name}") | {"count": part.count})
        for part in mixture.parts
    ]
    return fingerprint({"parts": sorted(parts), "sample_seed": mixture.sample_seed})
