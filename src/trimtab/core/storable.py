"""Runs whose state can be kept in a file, to go on in another process as if never left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from trimtab.core.protocols import Snapshot, TrainingRun

__all__ = ["StorableRun", "is_storable"]


@runtime_checkable
class StorableRun(Protocol):
    """A `trimtab.core.protocols.TrainingRun` that also offers this.

    Plain means: mappings with text keys, lists, tuples, numbers, texts, None and NumPy arrays.
    """

    def to_plain(self, snapshot: Snapshot) -> Any:
        """Return a snapshot as plain data."""
        ...

    def from_plain(self, plain: Any) -> Snapshot:
        """Return the snapshot that `to_plain` gave, in this process or another."""
        ...

    def position(self) -> Any:
        """Return as plain data what a snapshot leaves out: order of data, random streams."""
        ...

    def set_position(self, position: Mapping[str, Any]) -> None:
        """Go on from a position."""
        ...


def is_storable(run: TrainingRun) -> bool:
    """Whether a run's state can be kept in a file."""
    return isinstance(run, StorableRun)
