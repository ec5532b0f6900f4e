"""The best state of a run, kept on the device, in main memory or on disk, in every framework."""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError

from trimtab.core.errors import unknown_name
from trimtab.core.notices import tell

_NAMES = frozenset({"MemoryError", "OutOfMemoryError", "ResourceExhaustedError"})
_SAYINGS = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of PyTorch, TensorFlow, JAX or Python says that memory ran out."""
    names = {cls.__name__ for cls in type(error).__mro__}
    said = str(error)
    if names & _NAMES or said.startswith("RESOURCE_EXHAUSTED"):
        return True
    return isinstance(error, RuntimeError) and any(words in said for words in _SAYINGS)


PLACES: tuple[str, ...] = ("memory", "cpu", "disk", "none")

_logger = logging.getLogger("trimtab")


class SnapshotSource(Protocol):
    """What of a model and its optimiser is kept, and how a framework copies and files it."""

    def expected_bytes(self) -> int:
        """Return how large a snapshot will be, before there is one."""
        ...

    def collect(self) -> tuple[dict[str, Any], Any]:
        """Return the live arrays by name, and plain values beside them."""
        ...

    def put_back(self, arrays: dict[str, Any], plain: Any) -> None:
        """Put back what was collected, from copies of the arrays."""
        ...

    def size(self, array: Any) -> int:
        """Return an array's bytes."""
        ...

    def copy(self, live: dict[str, Any], before: dict[str, Any], place: str) -> dict[str, Any]:
        """Return copies of arrays, in the memory of those that were kept before if they fit."""
        ...

    def save(self, live: dict[str, Any], path: Path) -> None:
        """Write arrays as a safetensors file."""
        ...

    def load(self, path: Path) -> dict[str, Any]:
        """Read what `save` wrote."""
        ...

    def pack(self, arrays: dict[str, Any], plain: Any) -> Any:
        """Return a kept state as arrays in main memory and plain values, for a state file."""
        ...

    def unpack(self, state: Any) -> tuple[dict[str, Any], Any]:
        """Return the arrays and plain values of what `pack` returned."""
        ...


def _nothing() -> None:
    return None


class Snapshots:
    """One kept state at a time.

    Args:
        place: ``"memory"`` (the device), ``"cpu"``, ``"disk"`` (safetensors in a temporary folder)
            or ``"none"``.
        source: What is kept.
        needed: False if nobody will ever go back; then nothing is kept.
        folder: Where ``"disk"`` makes its temporary folder; None for the system's.

    Attributes:
        place: Where copies go; a full disk or device turns it into ``"cpu"``.
        bytes: Size of one snapshot: expected before the first one, measured afterwards.

    Raises:
        UnknownNameError: There is no such place.
    """

    def __init__(
        self, place: str, source: SnapshotSource, *, needed: bool = True, folder: str | None = None
    ) -> None:
        if place not in PLACES:
            raise unknown_name("place for snapshots", str(place), PLACES)
        self.place = place if needed else "none"
        self.bytes = 0 if self.place == "none" else source.expected_bytes()
        self._source, self._folder = source, folder
        self._arrays: dict[str, Any] | None = None  # in memory
        self._plain: Any = None
        self._on_disk: Path | None = None
        self._directory: Path | None = None
        self._remove: Callable[[], Any] = _nothing

    @property
    def kept(self) -> bool:
        """Whether there is a state to go back to."""
        return self._arrays is not None or self._on_disk is not None

    @property
    def held(self) -> dict[str, Any]:
        """The kept arrays by name; none if nothing is kept."""
        return self._load()

    def announce(self, count: int = 1) -> None:
        """Say in the log how large a snapshot will be, where it goes, and how many are kept."""
        if self.place == "none":
            _logger.info("no snapshots: a run that diverges cannot go back to its best weights")
            return
        where = {"memory": "the device", "cpu": "main memory", "disk": "a temporary folder"}
        _logger.info(
            "a snapshot takes about %.1f MB in %s; %s kept at a time",
            self.bytes / 1e6,
            where[self.place],
            "one is" if count == 1 else f"{count} are",
        )

    def keep(self, collected: tuple[dict[str, Any], Any] | None = None) -> None:
        """Keep the state as it is now in place of the one kept before.

        Args:
            collected: What the source's `collect` returned just now; None to ask it.
        """
        if self.place != "none":
            self._take(*(collected or self._source.collect()))

    def extend(self, prefix: str) -> None:
        """Keep arrays as well that were not there when the state was kept, and are as then.

        Args:
            prefix: What their names begin with.
        """
        if not self.kept:
            return
        kept, (live, _) = self._load(), self._source.collect()
        new = {n: one for n, one in live.items() if n.startswith(prefix) and n not in kept}
        if new:
            copied = self._source.copy(new, {}, "cpu" if self.place == "disk" else self.place)
            self._take(kept | copied, self._plain)

    def restore(self) -> None:
        """Put the kept state back; without one, nothing happens."""
        if self.kept:
            self._source.put_back(self._load(), self._plain)

    def close(self) -> None:
        """Let go of the kept state and remove what is on disk."""
        self._arrays = self._plain = self._on_disk = None
        self._remove()
        self._directory = None

    def state_dict(self) -> Any:
        """Return the kept state as arrays in main memory and plain values, or None."""
        return self._source.pack(self._load(), self._plain) if self.kept else None

    def load_state_dict(self, state: Any) -> None:
        """Take over what `state_dict` returned.

        Raises:
            AdapterError: It is of another model or optimiser.
        """
        if state is not None and self.place != "none":
            self._take(*self._source.unpack(state))

    def _take(self, live: dict[str, Any], plain: Any) -> None:
        self.bytes = sum(map(self._source.size, live.values()))
        if self.place == "disk":
            try:
                self._write(live)
            except (OSError, SafetensorError) as error:
                self.place, self._on_disk = "cpu", None
                tell(
                    f"snapshots: {self.bytes / 1e6:.1f} MB could not be written to the temporary "
                    f"folder ({error}); they stay in main memory instead, so free the disk or set "
                    "TMPDIR"
                )
        if self.place != "disk":
            self._arrays = self._copied(live)
        self._plain = plain

    def _copied(self, live: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._source.copy(live, self._arrays or {}, self.place)
        except Exception as error:
            if self.place != "memory" or not is_out_of_memory(error):
                raise
            self.place = "cpu"
            tell("snapshots: the device has no room for them; they go to main memory instead")
            return self._source.copy(live, self._arrays or {}, self.place)

    def _write(self, live: dict[str, Any]) -> None:
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="trimtab-", dir=self._folder))
            # Also when nobody closes: at the latest when the process ends.
            self._remove = weakref.finalize(self, shutil.rmtree, self._directory, True)
        path = self._directory / "best.safetensors"
        partial = path.with_suffix(".partial")
        try:
            self._source.save(live, partial)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        self._on_disk = path

    def _load(self) -> dict[str, Any]:
        if self._on_disk is not None:
            return self._source.load(self._on_disk)
        return self._arrays or {}
