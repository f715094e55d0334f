"""The parts that a report's page is put together from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from massive_sft.report.chart import Key, Panel
from massive_sft.report.html_table import Table


@dataclass(frozen=True)
class FigureBlock:
    """Small charts with one legend, in groups that unfold one by one; the first is open."""

    groups: Mapping[str, Sequence[Panel]]
    keys: Sequence[Key] = ()
    kind: str = "figures"

    @property
    def legend(self) -> Sequence[tuple[Markup, str]]:
        """Each mark with what it stands for: with all its names, where there are more names than marks."""
        names: dict[Markup, list[str]] = {}
        for key in self.keys:
            names.setdefault(key.svg, []).append(key.label)
        return [(mark, " or ".join(labels)) for mark, labels in names.items()]


@dataclass(frozen=True)
class FactBlock:
    """Terms and what there is to say of each."""

    rows: Sequence[tuple[str, str]]
    kind: str = "facts"


@dataclass(frozen=True)
class TableBlock:
    """A table."""

    table: Table
    kind: str = "table"


@dataclass(frozen=True)
class Section:
    """A part of the page; ``notes`` are paragraphs that say how to read it.

    ``alarming`` sections are set apart.
    """

    key: str
    title: str
    notes: Sequence[str]
    blocks: Sequence[FigureBlock | FactBlock | TableBlock]
    alarming: bool = False
