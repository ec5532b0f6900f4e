"""What a study keeps of a run while it goes on: its claim, its record, its state."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trimtab.core.decision import Progress, RunInfo, Summary
from trimtab.core.errors import StoreError
from trimtab.records.store.rows import Claim, SnapshotRecord
from trimtab.records.store.snapshots import (
    read_snapshot,
    remove_snapshot,
    snapshot_folder,
    write_snapshot,
)
from trimtab.records.store.store import StoreRecorder
from trimtab.records.store.studies import LEASE_SECONDS, Studies
from trimtab.records.store.transactions import retry_budget
from trimtab.search.study.runs import RunPath


class ClaimLostError(StoreError):
    """Another process does the unit now."""


class Heartbeat:
    """Renews a claim's lease from a thread, as long as the block lasts.

    Args:
        studies: The store.
        claim: What is renewed.
    """

    def __init__(self, studies: Studies, claim: Claim) -> None:
        self._studies, self._claim = studies, claim
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._over.wait(LEASE_SECONDS / 4):
            try:
                if not self._studies.renew(self._claim):
                    return  # whoever does the unit finds out when it next writes
            except StoreError:
                continue  # tried again at the next beat, as long as the lease holds


class StudyRecorder(StoreRecorder):
    """Records a run of a study, as long as the unit's claim is held; nothing goes elsewhere.

    A study goes on from what is in the store, so what the store does not take at the end is an
    error here, and not a file beside it.

    Args:
        studies: The store.
        claim: Of the unit.
        info: What is known of the run.
        run: Number of a run that goes on.

    Raises:
        StoreError: The store cannot be written.
    """

    def __init__(
        self, studies: Studies, claim: Claim, info: RunInfo, *, run: int | None = None
    ) -> None:
        from sqlalchemy import select

        from trimtab.records.store.models import units

        self._claim, self._is_lost = claim, False
        self._owner = select(units.c.owner).where(units.c.id == claim.unit)
        super().__init__(studies.url, info, run=run)

    @property
    def is_complete(self) -> bool:
        """Whether every decision so far stands in the store."""
        if self._pending:
            self._try(0.2)
        return not self._pending

    def finish(self, summary: Summary, status: str) -> None:
        """Write the run's end; tried again for as long as the store takes to come back.

        Raises:
            ClaimLostError: Another process does the unit now.
            StoreError: The store did not take it.
        """
        self._is_last_try = status in ("failed", "interrupted")
        super().finish(summary, status)

    def require_claim(self) -> None:
        """Check that the unit is still this process's to do.

        Raises:
            ClaimLostError: It is not.
        """
        if self._is_lost:
            raise ClaimLostError(f"study {self._claim.study!r}: another process does this unit now")

    _is_last_try = False

    def _write(self, connection: Any, *, doubtful: bool) -> None:
        if connection.execute(self._owner).scalar() != self._claim.owner:
            self._is_lost = True
            self._pending.clear()
            return
        super()._write(connection, doubtful=doubtful)

    def _close(self) -> None:
        with retry_budget(self.url).begin() as wait:
            while not self._try(1.0):
                if self._is_last_try:
                    break
                failure = f"run {self.run} cannot end: {self._failure}"
                if not wait.again(failure):
                    self._disconnect()
                    raise StoreError(f"{failure}, and resume the study")
        self._last_chance()
        self.require_claim()

    def _last_chance(self) -> None:
        import atexit

        self._let_go()
        atexit.unregister(self._last_chance)


class KeptRun:
    """Keeps a run's state in files of the study; a `trimtab.tasks.run.RunKeeper`.

    Args:
        studies: The store.
        claim: Of the unit.
        recorder: Of the run.
        path: Where the run's course is noted.
        state: To go on from, as `payload` wrote it; None to begin.
        seconds: How often at most the state is kept to go on from.
        forks: Decisions after which it is kept to fork from.
        is_storable: Whether it can be kept at all.
    """

    def __init__(
        self,
        studies: Studies,
        claim: Claim,
        recorder: StudyRecorder,
        path: RunPath,
        *,
        state: Mapping[str, Any] | None,
        seconds: float,
        forks: tuple[int, ...],
        is_storable: bool,
    ) -> None:
        self._studies, self._claim, self._recorder, self.path = studies, claim, recorder, path
        self._state = state
        self._skip = state is not None  # a run that goes on is shown where it was left once more
        self._every, self._forks, self._is_storable = seconds, forks, is_storable
        self._kept_at = time.monotonic()
        folder = snapshot_folder(studies.url, claim.study)
        self._folder = folder / f"run-{recorder.run:06d}"

    def resumed(self) -> Mapping[str, Any] | None:
        """Return the state to go on from."""
        return None if self._state is None else self._state["run"]

    def after(self, now: Progress, state: Callable[[], dict[str, Any]]) -> str | None:
        """Note the path, keep the state where it is due, and stop a run that cannot win."""
        self._recorder.require_claim()
        if self._skip:  # noted and kept already; whether it was stopped then is not known
            self._skip = False
        else:
            self.path.add(now)
            if now.decision is not None and self._is_storable:
                self._keep(now.decision.index, now.step, state)
            if now.step >= now.total_steps or now.decision is None:
                return None
        return "stopped" if self.path.cannot_win else None

    def keep_best(self, best: Any, decision: int, step: int) -> None:
        """Keep the best weights of a run that is over."""
        self._save({"best": best}, decision, step, "final")

    def _keep(self, decision: int, step: int, state: Callable[[], dict[str, Any]]) -> None:
        is_fork = decision in self._forks
        if not is_fork and time.monotonic() - self._kept_at < self._every:
            return
        if not self._recorder.is_complete:  # a decision that is not in the store must come again
            return
        content = {"run": state(), "path": self.path.points}
        self._save(content, decision, step, "fork" if is_fork else "latest")
        self._kept_at = time.monotonic()

    def _save(self, content: Any, decision: int, step: int, purpose: str) -> None:
        name = f"{purpose}-{decision:04d}.safetensors"
        kept = write_snapshot(self._folder / name, content)
        replaced = self._studies.add_snapshot(
            self._claim, self._recorder.run, kept, decision=decision, step=step, purpose=purpose
        )
        if replaced is None:
            raise ClaimLostError(f"study {self._claim.study!r}: another process does this unit now")
        for one in replaced:
            remove_snapshot(Path(one.path), self._claim.study)


def newest_state(snapshots: list[SnapshotRecord]) -> tuple[Mapping[str, Any] | None, list[str]]:
    """Return the newest state that a run can go on from, and what was refused on the way to it."""
    refused = []
    for one in reversed([one for one in snapshots if one.purpose != "final"]):
        try:
            found: Mapping[str, Any] = read_snapshot(Path(one.path), one.sha256)
        except StoreError as error:
            refused.append(str(error))
            continue
        return found, refused
    return None, refused
