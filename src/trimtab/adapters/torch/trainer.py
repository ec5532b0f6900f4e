"""What the callbacks of trainers built on PyTorch share: the run behind them, and batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trimtab.adapters.options import RunOptions, check_total_steps
from trimtab.adapters.steering import SteeredRun
from trimtab.adapters.torch.actuators import Place
from trimtab.adapters.torch.assembly import steer
from trimtab.adapters.torch.checks import check_model, check_optimizer
from trimtab.adapters.torch.distributed import Processes
from trimtab.adapters.torch.followed_rates import FollowedRates
from trimtab.adapters.torch.steering import TorchDriver
from trimtab.adapters.torch.stepper import Stepper
from trimtab.core.decision import Summary
from trimtab.core.errors import AdapterError, SpecError
from trimtab.rescue.events import Event


@dataclass(frozen=True)
class Course:
    """The steps of a trainer's training that a run goes over.

    Attributes:
        total_steps: Optimiser steps of the run.
        steps_done: Of these, how many were done before.
        begun_at: Steps that the trainer had done when the run began.
        state: What the run goes on from; None for a run that begins.
        extends: Whether that is of a run of another length.
    """

    total_steps: int
    steps_done: int = 0
    begun_at: int = 0
    state: Mapping[str, Any] | None = None
    extends: bool = False

    def begin(self, run: SteeredRun) -> None:
        """Let the run begin, or go on."""
        if self.state is None:
            run.start()
        else:
            run.load_state_dict(self.state, extend=self.extends)


class SteeredTraining:
    """The steered run behind a callback: none before training begins, then one after the other.

    Args:
        options: What the user asked for.
        validation_data: Batches of the user's own to validate on, or None.
        validate: A function of the user's own in their place, or None.
        layers: Modules from the input to the output, where depth is steered.
        begun_by: The call that begins training, for messages.
        resume: ``"same"``, ``"extend"`` or ``"fresh"``: how a checkpoint is gone on from.

    Attributes:
        options: What the user asked for.
        resume: How a checkpoint is gone on from.
        validation_data: Batches of the user's own, or None.
        validate: A function of the user's own, or None.
        processes: Who trains together.
        is_open: Whether a run has begun and not ended.

    Raises:
        AdapterError: Both ``validation_data`` and ``validate`` are given, or there is no such
            way to resume.
    """

    def __init__(
        self,
        options: RunOptions,
        *,
        validation_data: Any,
        validate: Callable[[], float | Mapping[str, float]] | None,
        layers: Sequence[nn.Module] | None,
        begun_by: str,
        resume: str,
    ) -> None:
        if resume not in _RESUMES:
            raise AdapterError(f"resume: {resume!r} is none of {', '.join(_RESUMES)}; choose one")
        self.resume, self.course = resume, Course(0)
        if validation_data is not None and validate is not None:
            raise AdapterError("validation_data and validate are both given; give one of them")
        self.options, self._layers, self._begun_by = options, layers, begun_by
        self.validation_data, self.validate = validation_data, validate
        self.processes = Processes()
        self.is_open = False
        self._after_validation: Callable[[], None] = _nothing
        self._driver: TorchDriver | None = None
        self._rates: FollowedRates | None = None

    @property
    def driver(self) -> TorchDriver:
        """What the latest run is told of its steps by.

        Raises:
            AdapterError: Training has not begun.
        """
        if self._driver is None:
            raise self._not_begun()
        return self._driver

    @property
    def run(self) -> SteeredRun:
        """The latest run.

        Raises:
            AdapterError: Training has not begun.
        """
        return self.driver.run

    @property
    def mode(self) -> str | None:
        """Which way the monitored value gets better; None until a validation has shown it."""
        told = None if self.options.mode == "auto" else self.options.mode
        return told if self._driver is None else self._driver.run.mode

    @property
    def rates(self) -> FollowedRates:
        """What writes the learning rates of the latest run.

        Raises:
            AdapterError: Training has not begun.
        """
        if self._rates is None:
            raise self._not_begun()
        return self._rates

    @property
    def summary(self) -> Summary:
        """The latest run so far; an empty one before the first."""
        session = None if self._driver is None else self._driver.run.session
        return Summary() if session is None else session.summary

    @property
    def events(self) -> list[Event]:
        """What was rescued in the latest run."""
        return [] if self._driver is None else self._driver.events

    def begin(
        self,
        *,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        rates: FollowedRates,
        total_steps: int,
        validate: Callable[[], float | Mapping[str, float]],
        clipping: Place | None,
        scaler: Any,
        smoothing: Place | None = None,
        told: Callable[[str], str | None] | None = None,
    ) -> SteeredRun:
        """Open a run and return it; see `trimtab.adapters.torch.assembly.steer`."""
        steps = check_total_steps(total_steps)
        check_optimizer(optimizer)
        check_model(model)
        self._rates = rates
        self._driver = steer(
            self.options,
            stepper=Stepper(optimizer, model, scaler=scaler),
            model=model,
            rates=rates,
            total_steps=steps,
            validate=validate,
            processes=self.processes,
            clipping=clipping,
            smoothing=smoothing,
            layers=self._layers,
            told=told,
        )
        self.is_open = True
        self._driver.run.after_validation = self._after_validation
        return self._driver.run

    def course_of(
        self, total_steps: int, steps_done: int, saved: Callable[[], Mapping[str, Any]] | None
    ) -> Course:
        """Return, and remember, which of the trainer's steps the coming run goes over.

        Args:
            total_steps: Of the trainer.
            steps_done: By the trainer.
            saved: Returns the state in the checkpoint that it goes on from, or raises; None where
                there is no checkpoint.

        Raises:
            AdapterError: The checkpoint holds no state, or nothing is left to do.
            SpecError: The state is of another number of steps, and ``resume`` is ``"same"``.
        """
        course, check_left = Course(total_steps), steps_done >= total_steps
        if steps_done and (saved is None or self.resume == "fresh"):
            course = Course(total_steps - steps_done, begun_at=steps_done)
        elif steps_done and saved is not None:
            state = saved()
            begun, had = int(state.get("begun_at", 0)), int(state["session"]["total_steps"])
            length = total_steps - begun
            if had != length and self.resume == "same":
                raise SpecError(_OTHER_LENGTH.format(had=had, now=length))
            check_left &= had != length
            course = Course(length, steps_done - begun, begun, state, extends=had != length)
        if steps_done and check_left:
            raise AdapterError(
                f"resume={self.resume!r}: {steps_done} of {total_steps} steps are done; announce "
                "more steps or epochs"
            )
        self.course = course
        return course

    def follow(
        self,
        optimizer: torch.optim.Optimizer,
        schedulers: Sequence[Any],
        period: int = 1,
        known: bool = True,
    ) -> FollowedRates:
        """Return what writes the learning rates over the `course`.

        Args:
            optimizer: Whose groups are written.
            schedulers: Those that the trainer steps on it.
            period: Optimiser steps between two steps of the scheduler.
            known: Whether what they will do may be found out ahead.

        Raises:
            AdapterError: They cannot be followed.
        """
        self.processes, course = Processes(), self.course
        rates = FollowedRates(
            optimizer,
            schedulers,
            reference=self.options.reference,
            total_steps=course.total_steps,
            steps_done=course.steps_done,
            period=period,
            known=known,
        )
        if course.extends and course.state is not None:
            rates.extend(course.state["rates"], course.steps_done)
        return rates

    def after_validation(self, call: Callable[[], None] | None) -> None:
        """Have a function called after each validation, of later runs too; None for none."""
        self._after_validation = call or _nothing
        if self._driver is not None:
            self._driver.run.after_validation = self._after_validation

    def state_dict(self) -> dict[str, Any]:
        """Return what the run goes on from in another process.

        Raises:
            AdapterError: It has not begun.
        """
        return self.run.state_dict() | {"begun_at": self.course.begun_at}

    def leave(self) -> bool:
        """Put the trainer's own rates back if a run is open, and return whether one was."""
        was_open, self.is_open = self.is_open, False
        if was_open:
            self.rates.put_back()
        return was_open

    def _not_begun(self) -> AdapterError:
        return AdapterError(f"TrimtabCallback: training has not begun; call {self._begun_by}")


def unscaled(loss: torch.Tensor, scaler: Any) -> torch.Tensor:
    """Return a loss without the scaler's factor, which stays on its device: asking for it waits."""
    factor: torch.Tensor = scaler.scale(torch.ones_like(loss))
    return loss / factor


def _nothing() -> None:
    return None


_RESUMES = ("same", "extend", "fresh")
_OTHER_LENGTH = (
    "the saved state has total_steps {had}, this run {now}; resume with the settings of the first "
    "run, or give TrimtabCallback(resume='extend') to go on with its values over the steps of "
    "now, or resume='fresh' to begin a run of its own over the steps that are left"
)


def drop_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Take the gradients away, so that the trainer's next step of the optimiser does nothing."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = None


def examples_in(batch: Any) -> int:
    """Return how many examples a batch holds: the length of the first tensor in it, or 1."""
    tensor = next(_tensors(batch), None)
    return 1 if tensor is None or tensor.dim() == 0 else len(tensor)


def _tensors(batch: Any) -> Iterator[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from _tensors(value)


def on_device(batch: Any, device: torch.device) -> Any:
    """Return a batch with its tensors on a device; mappings become dicts."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: on_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(on_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(on_device(value, device) for value in batch)
    return batch


@torch.no_grad()
def mean_over_batches(
    model: nn.Module,
    batches: Iterable[Any],
    measure: Callable[[Any, int], Mapping[str, Any]],
    device: torch.device,
) -> dict[str, float]:
    """Return each measured value's mean over all examples, with the model in evaluation mode.

    Args:
        model: Whose mode is set; whoever calls puts it back.
        batches: An iterable that can be walked again each time.
        measure: Takes a batch and its index, returns the batch's mean of each value.
        device: Where batches go.

    Raises:
        AdapterError: There is no batch.
    """
    model.eval()
    totals: dict[str, float] = {}
    examples = 0
    for index, batch in enumerate(batches):
        moved = on_device(batch, device)
        n_here = examples_in(moved)
        examples += n_here
        for name, value in measure(moved, index).items():
            totals[name] = totals.get(name, 0.0) + float(value) * n_here
    if not examples:
        raise AdapterError("validation_data: it holds no batch; give at least one")
    return {name: total / examples for name, total in totals.items()}
