"""Saving a PyTorch loop from its accidents, without steering it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trimtab.adapters.snapshots import is_out_of_memory
from trimtab.adapters.torch.checks import check_model, check_optimizer
from trimtab.adapters.torch.distributed import Processes
from trimtab.adapters.torch.guarded_training import Batch
from trimtab.adapters.torch.memory import MicroBatches
from trimtab.adapters.torch.saved_batch import file_of, write_batch
from trimtab.adapters.torch.sharding import holds_shards
from trimtab.adapters.torch.state import random_state
from trimtab.adapters.torch.step_guard import StepGuard
from trimtab.adapters.torch.stepper import Stepper
from trimtab.core.errors import AdapterError
from trimtab.rescue.events import Event, Fault, Treatment

_MOST_LOADER_ERRORS = 20  # in a row
_MOST_SAVED = 10  # batches


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
            ``"disk"``; four copies of weights, buffers and optimiser state.
        save_batch: Whether a batch that an event blames is kept, with the random state before it,
            in a file of the working folder, or a folder to put it in; at most ten. `backward` has
            to be given the batches. ``trimtab replay`` runs such a file again. Off by default, for
            data may be private.

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
        save_batch: bool | str | Path = False,
    ) -> None:
        check_optimizer(optimizer)
        check_model(model)
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise AdapterError(
                "scheduler: a ReduceLROnPlateau steps with a metric; step it in the loop, and "
                "leave scheduler= out"
            )
        if Processes().count > 1 or holds_shards(model):
            raise AdapterError(
                "Rescue: each of several processes would judge for itself, and their weights would "
                "part; it guards one process with whole weights"
            )
        self.optimizer, self.model = optimizer, model
        self._scheduler, self._acts = scheduler, act
        self._stepper = Stepper(optimizer, model, clip=clip, scaler=scaler)
        self._guard = StepGuard(
            self._stepper, model, act=act, on_giving_up=on_giving_up, snapshots=snapshots
        )
        self._engine = self._guard.engine
        self._memory = MicroBatches(model, self._note_split)
        self._losses: list[torch.Tensor] = []
        self._folder = Path.cwd() if save_batch is True else Path(save_batch or "")
        self._drawn: dict[str, Any] = {}
        self._saved = 0
        if save_batch:
            self._guard.keep = self._keep_batch
        self._expected: list[float] | None = None
        self._begun = self._closed = False

    # What a loop calls.

    def __enter__(self) -> Rescue:
        """Take the first snapshot."""
        self._begin()
        return self

    def __exit__(self, *error: object) -> None:
        """Look at the state a last time, unless an error leaves the block; let go of snapshots."""
        if self._begun and not self._closed and not any(error):
            self._guard.look(last=True)
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
                self._guard.tell(Fault.LOADER_RAISED, str(error), Treatment.SKIP)
                continue
            failed = 0
            if self._guard.stopped:
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
        name = id.tolist() if isinstance(id, torch.Tensor) else id
        self._guard.note_batch(Batch(loss_of, batch, name))
        if self._guard.keep is not None:
            self._drawn = random_state()
        loss = self._whole(loss_of, batch) if self._memory.parts == 1 else None
        if loss is None:
            loss = self._memory.run(batch, lambda part, share: self._part(loss_of, part, share))
        self._losses.append(loss)
        return loss

    def _whole(self, loss_of: Callable[[Any], torch.Tensor], batch: Any) -> torch.Tensor | None:
        """Do a batch as a whole; None, with everything as it was before, if memory ran out."""
        weights = self._stepper.weights
        if any(weight.grad is not None for weight in weights):
            return None  # accumulated gradients have to be set aside
        drawn = random.getstate(), torch.get_rng_state()
        try:
            return self._part(loss_of, batch, 1.0)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        random.setstate(drawn[0])
        torch.set_rng_state(drawn[1])
        self._guard.undo_forward()
        for weight in weights:
            weight.grad = None
        return None

    def _part(
        self, loss_of: Callable[[Any], torch.Tensor], part: Any, share: float
    ) -> torch.Tensor:
        loss = loss_of(part)
        weighted = loss if share == 1.0 else loss * share
        scaler = self._stepper.scaler
        (weighted if scaler is None else scaler.scale(weighted)).backward()
        return weighted.detach()

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
        if self._expected is not None:
            self._guard.check_rates(self._expected)
        self._guard.update(loss)
        self.optimizer.zero_grad()
        if self._scheduler is not None:
            self._scheduler.step()
            self._expected = [float(group["lr"]) for group in self.optimizer.param_groups]

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
            self._guard.close()

    # Inside.

    def _begin(self) -> None:
        if self._closed:
            raise AdapterError("the rescue is closed; make a new one for another loop")
        if not self._begun:
            self._begun = True
            self._guard.begin()
            if self._scheduler is not None:
                self._expected = [float(group["lr"]) for group in self.optimizer.param_groups]

    def _keep_batch(self, event: Event) -> None:
        """Keep the batch of an event in a file; where that fails the event says so."""
        batch = self._guard.training.batch
        if batch is None or self._saved >= _MOST_SAVED:
            return
        self._saved += 1
        event.saved = str(self._folder / file_of(event))
        try:
            write_batch(self._folder, event, batch, self._drawn)
        except (AdapterError, OSError) as error:
            event.saved = ""
            event.not_done = f"{event.not_done}the batch could not be kept: {error}"

    def _note_split(self, message: str) -> None:
        self._guard.tell(Fault.OUT_OF_MEMORY, message, Treatment.SPLIT)
