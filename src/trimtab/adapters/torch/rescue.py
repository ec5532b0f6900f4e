"""Saving a PyTorch loop from its accidents, without steering it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from trimtab.adapters.torch.checks import check_model, check_optimizer
from trimtab.adapters.torch.guarded_training import Batch, GuardedTorchTraining, norms_of
from trimtab.adapters.torch.memory import MicroBatches
from trimtab.adapters.torch.steering import Stepper
from trimtab.core.errors import AdapterError, RescueError
from trimtab.core.notices import tell
from trimtab.rescue.engine import RescueEngine
from trimtab.rescue.events import Event, Fault, Treatment

ON_GIVING_UP = ("stop", "raise", "go-on")
_ALOUD = 3  # events of one kind; later ones go to the log
_MOST_LOADER_ERRORS = 20  # in a row


class Rescue:
    """Watches each step of a PyTorch loop, and repairs what goes wrong.

    .. code-block:: python

        with trimtab.Rescue(optimizer, model=model, scheduler=scheduler) as rescue:
            for x, y in rescue.batches(loader):
                loss = rescue.backward(lambda b: loss_fn(model(b[0]), b[1]), (x, y))
                rescue.step(loss)

    `step` stands in the place of ``optimizer.step()``, ``zero_grad()`` and ``scheduler.step()``.
    Until something breaks, weights, random state and learning rates are bit for bit those of the
    loop without it. No validation and no number of steps is needed. A loop that calls
    ``loss.backward()`` itself is rescued too, but then model and data cannot be told apart by
    running good batches again.

    Args:
        optimizer: The loop's optimiser.
        model: Its model.
        scheduler: A scheduler that `step` steps once per optimiser step; None where the loop does
            so itself, or where there is none. A learning rate that something else wrote over the
            scheduler's is overruled.
        scaler: The loop's ``torch.amp.GradScaler``; unscaled, stepped and updated here.
        clip: Norm at which gradients are clipped; None for no clipping.
        act: False for a dry run: the same faults are told, and nothing is done.
        on_giving_up: When nothing helps: ``"stop"`` leaves out all updates from then on, with the
            last good weights; ``"raise"`` raises `RescueError`; ``"go-on"`` trains on, unwatched.
        snapshots: Where recent states are kept: ``"memory"`` (beside the model), ``"cpu"`` or
            ``"disk"``; three copies of weights, buffers and optimiser state.

    Attributes:
        model: The model.
        optimizer: The optimiser.

    Raises:
        AdapterError: Something handed over cannot be watched as it is.
        UnknownNameError: There is no such place for snapshots.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        model: nn.Module,
        scheduler: Any = None,
        scaler: Any = None,
        clip: float | None = None,
        act: bool = True,
        on_giving_up: str = "stop",
        snapshots: str = "memory",
    ) -> None:
        check_optimizer(optimizer)
        check_model(model)
        if on_giving_up not in ON_GIVING_UP:
            raise AdapterError(f"on_giving_up={on_giving_up!r}: one of {', '.join(ON_GIVING_UP)}")
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise AdapterError(
                "scheduler: a ReduceLROnPlateau steps with a metric; step it in the loop, and "
                "leave scheduler= out"
            )
        self.optimizer, self.model = optimizer, model
        self._scheduler, self._on_giving_up, self._acts = scheduler, on_giving_up, act
        self._stepper = Stepper(optimizer, model, clip=clip, scaler=scaler)
        self._training = GuardedTorchTraining(model, optimizer, snapshots)
        self._engine = RescueEngine(self._training, act=act, told=self._tell)
        self._memory = MicroBatches(model, self._note_split)
        self._losses: list[torch.Tensor] = []
        self._expected: list[float] | None = None
        self._last_batch: torch.Tensor | None = None
        self._begun = self._closed = self._off = False
        self._scale = 0.0 if scaler is None else float(scaler.get_scale())

    # What a loop calls.

    def __enter__(self) -> Rescue:
        """Take the first snapshot."""
        self._begin()
        return self

    def __exit__(self, *error: object) -> None:
        """Let go of the snapshots, and say if the rescue gave up."""
        self.close()

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Yield a loader's batches; one that cannot be loaded is told of and left out.

        Raises:
            Exception: What the loader raised, where it did so twenty times in a row.
        """
        source, failed = iter(loader), 0
        while True:
            try:
                batch = next(source)
            except StopIteration:
                return
            except Exception as error:
                failed += 1
                if failed >= _MOST_LOADER_ERRORS or not self._acts:
                    raise
                self._engine.tell(Fault.LOADER_RAISED, str(error), "", Treatment.SKIP)
                continue
            failed = 0
            if self._engine.gave_up is not None and self._on_giving_up == "stop":
                return
            yield batch

    def backward(
        self, loss_of: Callable[[Any], torch.Tensor], batch: Any, id: Any = None
    ) -> torch.Tensor:
        """Do a batch's forward and backward pass, in smaller parts where memory runs out.

        Args:
            loss_of: Returns the mean loss of a batch, or of a part of it.
            batch: Tensors, or mappings and sequences of them, with examples in front.
            id: What the batch is called in events, such as the indices of its rows.

        Raises:
            RuntimeError: Memory ran out with one example a part.
        """
        self._begin()
        scaler = self._stepper.scaler

        def done(part: Any, share: float) -> torch.Tensor:
            loss = loss_of(part)
            weighted = loss if share == 1.0 else loss * share
            (weighted if scaler is None else scaler.scale(weighted)).backward()
            return weighted.detach()

        name = id.tolist() if isinstance(id, torch.Tensor) else id
        self._training.batch = Batch(loss_of, batch, name)
        loss = self._memory.run(batch, done)
        self._losses.append(loss)
        return loss

    def step(self, loss: torch.Tensor | float | None = None) -> None:
        """Do one optimiser step, clear the gradients, and step the scheduler.

        Args:
            loss: Mean loss of the step, not scaled; None for that of `backward` since the last
                step.

        Raises:
            AdapterError: There is no loss.
            RescueError: The rescue gives up, and ``on_giving_up="raise"``.
        """
        if loss is None:
            if not self._losses:
                raise AdapterError("step: pass the loss, or call backward() of this first")
            loss = torch.stack(self._losses).mean()
        self._losses.clear()
        self._begin()
        if self._off:
            self._stepper.update()
        else:
            self._guarded_update(loss)
        self.optimizer.zero_grad()
        if self._scheduler is not None:
            self._scheduler.step()
            self._expected = [float(group["lr"]) for group in self.optimizer.param_groups]
        self._training.batch = None

    @property
    def events(self) -> list[Event]:
        """What went wrong so far, in order; each has a `sentence`."""
        return self._engine.events

    @property
    def gave_up(self) -> Event | None:
        """The event after which nothing is repaired any more, or None."""
        return self._engine.gave_up

    def close(self) -> None:
        """Let go of the snapshots, and say if the rescue gave up; later calls do nothing."""
        if not self._closed:
            self._closed = True
            self._training.close()
            if self.gave_up is not None:
                tell(f"the rescue gave up: {self.gave_up.sentence()}")

    # Inside.

    def _begin(self) -> None:
        if self._closed:
            raise AdapterError("the rescue is closed; make a new one for another loop")
        if not self._begun:
            self._begun = True
            self._engine.begin()
            if self._scheduler is not None:
                self._expected = [float(group["lr"]) for group in self.optimizer.param_groups]

    def _guarded_update(self, loss: torch.Tensor | float) -> None:
        stepper, engine, training = self._stepper, self._engine, self._training
        if engine.gave_up is not None:  # and on_giving_up is "stop"
            stepper.skip()
            engine.after_update(done=False)
            return
        stepper.unscale()
        value, norm = self._read(loss)
        training.gradient_sums[0] += norm
        training.gradient_sums[1] += norm * norm
        self._note_batch()
        self._check_rates()
        done = engine.before_update(value, norm, scaled=stepper.scaler is not None)
        if done:
            self._update()
            training.remember(value)
        else:
            stepper.skip()
        self._mend_scale()
        engine.after_update(done)
        training.note_forward()
        self._give_up()

    def _read(self, loss: torch.Tensor | float) -> tuple[float, float]:
        """Return the loss and the norm of all gradients."""
        gradients = [w.grad for w in self._stepper.weights if w.grad is not None]
        norm = norms_of(gradients).norm()
        if isinstance(loss, torch.Tensor) and loss.device == norm.device:
            value, norm_value = torch.stack([loss.detach().reshape(()).float(), norm]).tolist()
            return value, norm_value
        return float(loss), float(norm)

    def _update(self) -> None:
        """Do the update, with the learning rates cut where that was decided."""
        groups = self.optimizer.param_groups
        rate = max(float(group["lr"]) for group in groups)
        factor = self._engine.factor(rate)
        self._training.rate_sum += rate * factor
        if factor == 1.0:
            self._stepper.update()
            return
        rates = [_multiplied(group, factor) for group in groups]
        self._stepper.update()
        for group, rate in zip(groups, rates, strict=True):
            _write(group, rate)

    def _note_batch(self) -> None:
        """Tell the engine whether the batch is the one before again, by a few entries."""
        batch = self._training.batch
        if batch is None:
            return
        from trimtab.adapters.torch.trainer import _tensors

        first = next(iter(_tensors(batch.data)), None)
        if first is None or first.device.type != "cpu":
            return
        entries = first.detach().reshape(-1)[:64].clone()
        before, self._last_batch = self._last_batch, entries
        self._engine.note_batch(before is not None and torch.equal(before, entries))

    def _check_rates(self) -> None:
        """Overrule a learning rate that is not the scheduler's."""
        if self._expected is None:
            return
        groups = self.optimizer.param_groups
        found = [float(group["lr"]) for group in groups]
        if found != self._expected and len(found) == len(self._expected):
            evidence = f"{found} where the scheduler says {self._expected}"
            self._engine.tell(Fault.RATE_OVERWRITTEN, evidence, "", Treatment.OVERRULE)
            if self._acts:
                for group, rate in zip(groups, self._expected, strict=True):
                    _write(group, rate)

    def _mend_scale(self) -> None:
        """Put a gradient scaler's scale back where overflows drove it below 1."""
        scaler = self._stepper.scaler
        if scaler is None:
            return
        scale = float(scaler.get_scale())
        if scale >= 1.0:
            self._scale = max(scale, 1.0)
        elif self._acts and self._scale > 0:
            scaler.update(self._scale)

    def _give_up(self) -> None:
        if self._engine.gave_up is None or not self._acts:
            return
        if self._on_giving_up == "raise":
            raise RescueError(self._engine.gave_up.sentence())
        self._off = self._on_giving_up == "go-on"

    def _note_split(self, message: str) -> None:
        self._engine.tell(Fault.OUT_OF_MEMORY, message, "", Treatment.SPLIT)

    def _tell(self, event: Event) -> None:
        same = sum(one.fault is event.fault for one in self._engine.events)
        if same <= _ALOUD:
            tell(event.sentence())
        else:
            logging.getLogger("trimtab").warning(event.sentence())


def _multiplied(group: dict[str, Any], factor: float) -> Any:
    """Multiply a group's learning rate and return what it was."""
    rate = group["lr"]
    if isinstance(rate, torch.Tensor):
        before = rate.clone()
        rate.mul_(factor)
        return before
    group["lr"] = rate * factor
    return rate


def _write(group: dict[str, Any], rate: Any) -> None:
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(rate) if isinstance(rate, float) else group["lr"].copy_(rate)
    else:
        group["lr"] = rate
