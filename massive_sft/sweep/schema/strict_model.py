"""What all entries of the sweep file have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """An entry of the sweep file: frozen, unknown keys refused."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        defer_build=True,  # validators take 16 MB, and most processes of a cluster get entries that are checked
    )

    @property
    def unused_fields(self) -> frozenset[str]:
        """Fields that have no effect beside the values of the others; they are left out of a cell's identity."""
        return frozenset()


def exactly_one(entry: BaseModel, *names: str) -> None:
    """Raise ValueError unless one of the named fields, and no other of them, has a value."""
    if sum(getattr(entry, name) is not None for name in names) != 1:
        raise ValueError(f"must have exactly one of: {', '.join(names)}")
