"""Checkpoints of Ray's trials that decisions were taken from, and how long they are needed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ray.train._internal.checkpoint_manager import _insert_into_sorted_list
from ray.train._internal.session import _TrainingResult
from ray.tune.experiment import Trial


def is_there(checkpoint: Any) -> bool:
    """Return whether there is such a checkpoint, and Ray has not deleted it."""
    if checkpoint is None:
        return False
    return bool(checkpoint.filesystem.get_file_info([checkpoint.path])[0].type.name != "NotFound")


def number_after(trial: Trial, checkpoint: Any) -> None:
    """Let a trial that starts again number its checkpoints after this one of its own.

    Ray counts those whose save it saw to its end; the next one would be written over this one.
    """
    number = Path(checkpoint.path).name.rpartition("_")[2]
    if number.isdecimal():
        storage = trial.storage
        storage.current_checkpoint_index = max(storage.current_checkpoint_index, int(number))


class TakenCheckpoints:
    """Checkpoints that were saved for a decision, as long as a trial may begin from them.

    Ray deletes old checkpoints of a trial by ``num_to_keep`` while another trial, which took them
    over, still waits for a worker.
    """

    def __init__(self) -> None:
        self._held: list[tuple[Trial, Any]] = []

    def register(self, trial: Trial, checkpoint: Any, metrics: Any) -> None:
        """Let Ray know a trial's checkpoint whose save it does not see to its end."""
        manager = trial.run_metadata.checkpoint_manager
        known = [result for _, result in self._held] + manager._checkpoint_results
        if all(result.checkpoint.path != checkpoint.path for result in known):
            manager.register_checkpoint(_TrainingResult(checkpoint, metrics))

    def hold(self, trial: Trial, checkpoint: Any, metrics: Any) -> None:
        """Keep a trial's checkpoint from being deleted, until `release`."""
        if any(result.checkpoint.path == checkpoint.path for _, result in self._held):
            return
        results = trial.run_metadata.checkpoint_manager._checkpoint_results
        known = [one for one in results if one.checkpoint.path == checkpoint.path]
        for result in known:
            results.remove(result)
        self._held.append((trial, known[0] if known else _TrainingResult(checkpoint, metrics)))

    def release(self, trials: Iterable[Trial]) -> None:
        """Give back to Ray what none of the trials begins from any more; it deletes it in time."""
        begun = {trial.checkpoint.path for trial in trials if trial.checkpoint is not None}
        held, self._held = self._held, []
        for trial, result in held:
            if result.checkpoint.path in begun:
                self._held.append((trial, result))
                continue
            manager = trial.run_metadata.checkpoint_manager
            results, score = manager._checkpoint_results, manager._get_checkpoint_score
            if manager.checkpoint_config.checkpoint_score_attribute in result.metrics:
                _insert_into_sorted_list(results, result, key=score)
            else:  # by age
                results.insert(0, result)
