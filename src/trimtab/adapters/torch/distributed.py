"""Data-parallel runs: the first process decides, the others apply what it says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import distributed

from trimtab.adapters.validation import Validated, Validates
from trimtab.core.control import action_shape
from trimtab.core.errors import MetricError, TrimtabError
from trimtab.core.protocols import Controller
from trimtab.core.spec import ControlSpec


class Processes:
    """The processes that train one model together, as `torch.distributed` knows them now.

    Without an initialised process group it is one process, and nothing is ever sent.

    Attributes:
        count: How many train together.
        rank: Index of this one; 0 decides.
    """

    def __init__(self) -> None:
        grouped = distributed.is_available() and distributed.is_initialized()
        self.count = distributed.get_world_size() if grouped else 1
        self.rank = distributed.get_rank() if grouped else 0

    @property
    def is_main_process(self) -> bool:
        """Whether this process is the one that decides."""
        return self.rank == 0

    def mean(self, value: torch.Tensor | float) -> torch.Tensor | float:
        """Return the mean over all processes, equal in each to the last bit; one float is sent.

        A value that is not finite in one process is not finite in all.
        """
        if self.count == 1:
            return value
        total = torch.as_tensor(value).detach().reshape(()).double()
        if not total.is_cuda:  # gloo takes those too, and moving one would wait for the device
            total = total.to(self._device())
        distributed.all_reduce(total)
        return total / self.count

    def broadcast(self, values: Sequence[float]) -> list[float]:
        """Return what the first process says; all bring a list of the same length, in float64."""
        if self.count == 1:
            return [float(value) for value in values]
        sent = torch.tensor([float(value) for value in values], dtype=torch.float64)
        sent = sent.to(self._device())
        distributed.broadcast(sent, src=0)
        return [float(value) for value in sent.tolist()]

    def _device(self) -> torch.device:
        if "nccl" in str(distributed.get_backend()):
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")


class RankZeroValidation:
    """A validation that runs in the first process only; the others are told what it gave.

    Stands in the place of a `Validation`. The others hear of the loss
    and of failures, not of further values, which only the first one records. Where no process
    has the whole model they validate as well, for the first one needs their part of the weights.

    Args:
        validation: This process's own.
        processes: Who trains together.
        together: Whether all validate.

    Attributes:
        last_loss: The last finite loss.
        mode: Which way the monitored value gets better.
    """

    def __init__(
        self, validation: Validates, processes: Processes, *, together: bool = False
    ) -> None:
        self._validation, self._processes = validation, processes
        self._together = together

    @property
    def last_loss(self) -> float:
        """The last finite loss, in this process's knowledge."""
        return self._validation.last_loss

    @last_loss.setter
    def last_loss(self, value: float) -> None:
        self._validation.last_loss = value

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to validate on in another process."""
        return self._validation.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._validation.load_state_dict(state)

    @property
    def mode(self) -> str | None:
        """Which way the monitored value gets better, in this process's knowledge."""
        return self._validation.mode

    @mode.setter
    def mode(self, value: str | None) -> None:
        self._validation.mode = value

    def first(self) -> Validated:
        """Validate before any step.

        Raises:
            MetricError: The first process could not; in each process, so that none waits.
        """
        if self._processes.is_main_process:
            try:
                seen = self._validation.first()
            except BaseException:
                self._share(Validated(math.nan, problem="it failed"))
                raise
            return self._share(seen)
        if self._together:
            with suppress(MetricError):  # the first process's word counts
                self._validation.first()
        seen = self._share(Validated(math.nan))
        if seen.problem:
            raise MetricError("validate() failed in the first process; its message says why")
        return seen

    def later(self) -> Validated:
        """Validate in mid-run; see `Validation.later`."""
        validates = self._together or self._processes.is_main_process
        seen = self._validation.later() if validates else Validated(math.nan)
        return self._share(seen)

    def _share(self, seen: Validated) -> Validated:
        monitored = math.nan if seen.monitored is None else seen.monitored
        known, rank = seen.monitored is not None, math.nan if seen.rank is None else seen.rank
        ranked = seen.rank is not None
        loss, value, has_value, rank, has_rank, failed = self._processes.broadcast(
            [seen.loss, monitored, known, rank, ranked, bool(seen.problem)]
        )
        if self._processes.is_main_process:
            return seen
        if math.isfinite(loss):
            self.last_loss = loss
        return Validated(
            loss,
            monitored=value if has_value else None,
            rank=rank if has_rank else None,
            problem="validate() failed in the first process" if failed else "",
        )


class RankZeroController:
    """A controller that is asked in the first process only; the others are told its action.

    Attributes:
        name: The controller's.
        guarded: The controller's.
    """

    def __init__(self, controller: Controller, spec: ControlSpec, processes: Processes) -> None:
        self.name, self.guarded = controller.name, controller.guarded
        self._controller, self._processes = controller, processes
        self._shape = action_shape(spec)
        self._is_whole = spec.actions != "continuous"
        self._novel = False

    def reset(self, *, seed: int) -> None:
        """Forget the last run."""
        self._controller.reset(seed=seed)

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the first process's action.

        Raises:
            TrimtabError: The controller failed in the first process.
        """
        silence = [0.0] * (int(np.prod(self._shape)) + 2)  # failed, novel, then the action
        if not self._processes.is_main_process:
            failed, novel, *told = self._processes.broadcast(silence)
            if failed:
                raise TrimtabError("the controller failed in the first process")
            self._novel = bool(novel)
            kind = np.int64 if self._is_whole else np.float32
            return np.asarray(told, kind).reshape(self._shape)
        try:
            action = np.asarray(self._controller.act(observation))
            asked = getattr(self._controller, "is_novel", None)
            self._novel = asked is not None and bool(asked(observation))
            if action.shape != self._shape:
                raise TrimtabError(f"action of shape {action.shape}, expected {self._shape}")
        except BaseException:
            self._processes.broadcast([1.0, *silence[1:]])
            raise
        self._processes.broadcast([0.0, float(self._novel), *action.astype(np.float64).ravel()])
        return action

    def is_novel(self, observation: np.ndarray) -> bool:
        """Return whether the first process had never seen anything like its last observation."""
        del observation
        return self._novel

    def state_dict(self) -> dict[str, Any]:
        """Return the controller's state."""
        return self._controller.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._controller.load_state_dict(state)
