"""One run of one task with one fault, under one arm, as a row of JSON."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

import trimtab
from benchmarks.rescue import tasks
from benchmarks.rescue.faults import FAULTS, Fault
from benchmarks.rescue.tasks import STEPS, Batch
from trimtab.rescue.events import Event

__all__ = ["ARMS", "CLEAN", "MOMENTS", "NOISY", "Unit", "is_possible", "run_unit", "why_skipped"]

MOMENTS = {"warm-up": 4, "middle": 83, "end": 153}
CLEAN, NOISY = "clean", "noisy"
WINDOW = 8
_LOADING = ("loader raises", "loader raises 5 times")
_VALIDATING = ("validation nan", "validation raises")


@dataclass(frozen=True)
class Unit:
    """One run.

    Attributes:
        task: One of the three.
        fault: What befalls it; or ``"clean"``, or ``"noisy"``.
        moment: When; empty without a fault.
        arm: What protects it.
        seed: Of the run.
    """

    task: str
    fault: str
    moment: str
    arm: str
    seed: int


class _World:
    """A run and the fault that befalls it: what a loop of any arm goes through."""

    def __init__(self, unit: Unit) -> None:
        self.run = tasks.start(unit.task, unit.seed, noisy=unit.fault == NOISY)
        self.fault = FAULTS.get(unit.fault, Fault(""))
        self.at = MOMENTS.get(unit.moment, STEPS)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.run.optimizer, lambda step: tasks.rates(step) * self.fault.rate(step - self.at)
        )
        scaled = self.fault.scaled
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8) if scaled else None
        self.batches_lost = 0

    @property
    def age(self) -> int:
        return self.run.step - self.at

    def batch_at(self, step: int, batch: Batch) -> Batch:
        """Return what is loaded at a step; the state is damaged before it is used."""
        self.fault.state(step - self.at, self.run)
        return self.fault.batch(step - self.at, batch)

    def loss_of(self, batch: Batch) -> torch.Tensor:
        """Return the loss of a batch, where it fits into memory."""
        if len(batch[0]) > self.fault.most_examples(self.age):
            raise torch.OutOfMemoryError("CUDA out of memory (put in)")
        return self.fault.loss(self.age, self.run.loss_of(batch))

    def spoil_gradients(self) -> None:
        self.fault.gradients(self.age, self.run)

    def validate(self) -> float:
        return self.fault.validation(self.age, self.run.measured(self.run.validation))

    def batches(self) -> Iterator[tuple[int, Batch]]:
        return tasks.loader(self.run, self.batch_at)

    def backward(self, loss: torch.Tensor) -> None:
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Do what follows a backward pass in a loop of one's own."""
        optimizer = self.run.optimizer
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()

    def rest(self) -> None:
        self.run.optimizer.zero_grad()
        self.scheduler.step()


def _plain(world: _World, before_update: Callable[[], None] = lambda: None) -> list[Event]:
    for _, batch in world.batches():
        loss = world.loss_of(batch)
        world.backward(loss)
        world.spoil_gradients()
        before_update()
        world.update()
        world.rest()
    return []


def _best_checkpoint(world: _World) -> list[Event]:
    best, kept = math.inf, None
    for step, batch in world.batches():
        world.backward(world.loss_of(batch))
        world.spoil_gradients()
        world.update()
        world.rest()
        if (step + 1) % WINDOW == 0:
            measured = world.validate()
            if measured < best:
                best = measured
                kept = {k: v.clone() for k, v in world.run.model.state_dict().items()}
    if kept is not None:
        world.run.model.load_state_dict(kept)
    return []


def _clipped(world: _World) -> list[Event]:
    def clip() -> None:
        if world.scaler is not None:
            world.scaler.unscale_(world.run.optimizer)
        nn.utils.clip_grad_norm_(world.run.model.parameters(), 1.0)

    return _plain(world, clip)


def _own(world: _World) -> list[Event]:
    with torch.autograd.detect_anomaly(check_nan=True):
        return _plain(world)


def _arc(world: _World) -> list[Any]:
    import arc  # type: ignore[import-not-found, unused-ignore]

    run, noted = world.run, []
    controller = arc.Controller(
        run.model,
        run.optimizer,
        scheduler=world.scheduler,
        verbose=False,
        scaler=world.scaler,
    )
    for step, batch in world.batches():
        run.optimizer.zero_grad()
        loss = world.loss_of(batch)
        world.backward(loss)
        world.spoil_gradients()
        action = controller.step(loss)
        if action.failure_type or action.rolled_back or action.status.value != "healthy":
            noted.append((step, str(action.failure_type or action.status.value)))
        if not action.should_skip:
            world.update()
        world.scheduler.step()
    return noted


def _rescue(world: _World) -> list[Event]:
    run = world.run
    with trimtab.Rescue(
        run.optimizer, model=run.model, scheduler=world.scheduler, scaler=world.scaler
    ) as rescue:
        for _, batch in rescue.batches(world.batches()):
            loss = rescue.backward(world.loss_of, batch)
            world.spoil_gradients()
            rescue.step(loss)
    return rescue.events


def _steered(world: _World, policy: str) -> list[Event]:
    run = world.run
    with trimtab.TorchController(
        run.optimizer,
        total_steps=STEPS,
        validate=world.validate,
        model=run.model,
        policy=policy,
        reference=world.scheduler,
        scaler=world.scaler,
    ) as controller:
        for _, batch in world.batches():
            loss = controller.backward(world.loss_of, batch)
            world.spoil_gradients()
            controller.step(loss)
    return controller.events


ARMS: dict[str, Callable[[_World], list[Any]]] = {
    "plain": _plain,
    "best": _best_checkpoint,
    "clip": _clipped,
    "own": _own,
    "arc": _arc,
    "rescue": _rescue,
    "guard": lambda world: _steered(world, "guard"),
    "policy": lambda world: _steered(world, "trimtab-1"),
}


def why_skipped(arm: str) -> str:
    """Return why an arm cannot be run here; empty if it can."""
    if arm == "arc" and importlib.util.find_spec("arc") is None:
        return "arc-training is not installed"
    return ""


def is_possible(unit: Unit) -> bool:
    """Return whether an arm meets a fault at all: a loader's or a validation's it may not have."""
    if unit.fault in _LOADING:
        return unit.arm not in ("guard", "policy")
    return unit.fault not in _VALIDATING or unit.arm in ("best", "guard", "policy")


def run_unit(unit: Unit) -> dict[str, Any]:
    """Make one run and return it as a row of JSON."""
    torch.set_num_threads(1)
    world = _World(unit)
    torch.manual_seed(77 + unit.seed)
    events: list[Any] = []
    error, begun = "", time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            events = ARMS[unit.arm](world)
        except Exception as caught:  # noqa: BLE001 - that a run dies is a result
            error = f"{type(caught).__name__}: {caught}"[:160]
    run = world.run
    tensors = [t for t in run.model.state_dict().values() if t.is_floating_point()]
    finite = all(bool(torch.isfinite(t).all()) for t in tensors)
    final = run.measured(run.test)
    told = [_told(event) for event in events]
    after = [one for one in told if one["step"] >= world.at]
    right = [one for one in after if one["name"] in world.fault.names]
    return asdict(unit) | {
        "survived": not error and finite and math.isfinite(final),
        "error": error,
        "final": final if math.isfinite(final) else None,
        "noticed": after[0]["step"] - world.at if after else None,
        "named": right[0]["step"] - world.at if right else None,
        "as": after[0]["name"] if after else "",
        "events": len(told),
        "before": len(told) - len(after),
        "lost": sum(one["lost"] for one in after),
        "sentences": [one["sentence"] for one in told[:3]],
        "weights": hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()[:16],
        "seconds": round(time.process_time() - begun, 3),
    }


def _told(event: Any) -> dict[str, Any]:
    """Return step, name, lost updates and sentence of an event of ours or of a rival's."""
    if isinstance(event, Event):
        lost = event.updates_lost + (event.treatment.value == "skip")
        name, sentence = str(event.fault), event.sentence()[:300]
        return {"step": event.step, "name": name, "lost": lost, "sentence": sentence}
    step, name = event
    return {"step": step, "name": name, "lost": 0, "sentence": f"step {step}: {name}"}
