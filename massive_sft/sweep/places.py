"""Where a value is written: in the sweep file, or in an overlay that was merged over it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Overlay:
    """A file that is merged over a sweep file; ``places`` are those of its values, such as ``settings.full.lr``."""

    path: Path
    places: frozenset[str]

    @classmethod
    def of(cls, path: Path, raw: Mapping[str, Any]) -> Overlay:
        """Return the overlay whose content is ``raw``."""
        return cls(path, frozenset(_places_of_values(raw)))

    def writes(self, place: str) -> bool:
        """Whether the file has the value at a place, what holds it, or a part of it."""
        place = _bare(place.partition(": ")[0])
        return any(_is_at_or_in(place, written) or _is_at_or_in(written, place) for written in self.places)


def place_in(path: Path, overlays: Iterable[Overlay], place: str) -> str:
    """Return a place with the file that has it: the last overlay that writes it, else the sweep file at ``path``."""
    file = next((overlay.path for overlay in reversed(tuple(overlays)) if place and overlay.writes(place)), path)
    return f"{file}: {place}" if place else str(file)


def _places_of_values(raw: Mapping[str, Any], holder: str = "") -> Iterator[str]:
    for key, value in raw.items():
        place = _bare(f"{holder}.{key}" if holder else str(key))
        if isinstance(value, Mapping) and value:
            yield from _places_of_values(value, place)
        else:
            yield place


def _bare(place: str) -> str:
    return place.replace('"', "")  # around names with a dot


def _is_at_or_in(place: str, holder: str) -> bool:
    return place == holder or place.startswith((f"{holder}.", f"{holder}["))
