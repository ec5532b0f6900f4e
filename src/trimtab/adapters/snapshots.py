"""Where the best state is kept, in every framework: on the device, in main memory or on disk."""

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

PLACES: tuple[str, ...] = ("memory", "cpu", "disk", "none")

_logger = logging.getLogger("trimtab")


class Snapshots(Protocol):
    """Keeps the best state of a model and its optimiser, one at a time."""

    @property
    def kept(self) -> bool:
        """Whether there is a state to go back to."""
        ...

    @property
    def bytes(self) -> int:
        """Size of one snapshot, as far as it is known."""
        ...

    def announce(self) -> None:
        """Say in the log how large a snapshot is, and where it goes."""
        ...

    def keep(self) -> None:
        """Keep the state as it is now in place of the one kept before."""
        ...

    def restore(self) -> None:
        """Put the kept state back; without one, nothing happens."""
        ...

    def close(self) -> None:
        """Let go of the kept state and remove what is on disk."""
        ...

    def state_dict(self) -> Any:
        """Return the kept state as arrays in main memory and plain values, or None."""
        ...

    def load_state_dict(self, state: Any) -> None:
        """Take over what `state_dict` returned."""
        ...


def _nothing() -> None:
    return None


class KeptArrays:
    """The arrays of one state, in memory or in a file of a temporary folder.

    Args:
        place: ``"memory"`` (the device), ``"cpu"``, ``"disk"`` (safetensors) or ``"none"``.
        needed: False if nobody will ever go back; then nothing is kept.
        copy: Returns copies for memory of arrays by name, given those kept before and this object,
            whose place it may change.
        save: Writes arrays by name to a path.
        load: Reads them.
        folder: Where ``"disk"`` makes its temporary folder; None for the system's.

    Attributes:
        place: Where copies go; a full disk turns ``"disk"`` into ``"cpu"``.
        bytes: Size of one snapshot, as far as it is known.

    Raises:
        UnknownNameError: There is no such place.
    """

    def __init__(
        self,
        place: str,
        *,
        needed: bool,
        copy: Callable[[dict[str, Any], dict[str, Any], KeptArrays], dict[str, Any]],
        save: Callable[[dict[str, Any], Path], None],
        load: Callable[[Path], dict[str, Any]],
        folder: str | None = None,
    ) -> None:
        if place not in PLACES:
            raise unknown_name("place for snapshots", str(place), PLACES)
        self.place = place if needed else "none"
        self.bytes = 0
        self._copy, self._save, self._read = copy, save, load
        self._folder = folder
        self._directory: Path | None = None
        self._remove: Callable[[], Any] = _nothing
        self._on_disk: Path | None = None
        self._in_memory: dict[str, Any] | None = None

    @property
    def there(self) -> bool:
        """Whether a state is kept."""
        return self._in_memory is not None or self._on_disk is not None

    def announce(self) -> None:
        """Say in the log how large a snapshot is, and where it goes."""
        if self.place == "none":
            _logger.info("no snapshots: a run that diverges cannot go back to its best weights")
            return
        where = {"memory": "the device", "cpu": "main memory", "disk": "a temporary folder"}
        _logger.info(
            "a snapshot takes about %.1f MB in %s; one is kept at a time",
            self.bytes / 1e6,
            where[self.place],
        )

    def keep(self, live: dict[str, Any]) -> None:
        """Keep copies of these arrays in place of those kept before."""
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
            else:
                return
        self._in_memory = self._copy(live, self._in_memory or {}, self)

    def load(self) -> dict[str, Any]:
        """Return the kept arrays; empty if there are none."""
        if self._on_disk is not None:
            return dict(self._read(self._on_disk))
        return self._in_memory or {}

    def close(self) -> None:
        """Let go of the arrays and remove what is on disk."""
        self._in_memory = self._on_disk = None
        self._remove()
        self._directory = None

    def _write(self, live: dict[str, Any]) -> None:
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="trimtab-", dir=self._folder))
            # Also when nobody closes: at the latest when the process ends.
            self._remove = weakref.finalize(self, shutil.rmtree, self._directory, True)
        path = self._directory / "best.safetensors"
        partial = path.with_suffix(".partial")
        try:
            self._save(live, partial)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        self._on_disk = path
