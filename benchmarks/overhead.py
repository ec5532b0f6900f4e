"""What steering costs a training loop, beside the same loop without it.

Two twins of a model are trained on the same batches in one process, step by step in turn: one by
``optimizer.step()`` and ``zero_grad()``, one by ``TorchController.step``. Inside the steered step
the optimiser, validation and snapshots are timed apart; what is left is steering: statistics,
values, observations, the policy and the guard, decisions included. The difference between the
twins' whole steps (``paired``, the median over steps) is a check on it, and noisier.

Three kinds of steps cost differently: ordinary ones, a window's last but one (a copy of the
gradients), and its last (gradient statistics, decision). Each kind's median is taken, and the mean
over all steps is made of the three. Ordinary steps are timed on the wall; the last two of a
window, too few for a median to hide what else the machine does, by the thread's processor time,
and so is the plain step. On a busy machine ordinary steps come out too dear, for other processes
empty the caches: take figures from an idle one.

    python -m benchmarks.overhead
    python -m benchmarks.overhead --json --tasks small-mlp,wide-mlp

A decision costs the same however many steps lie between two of them, so the share falls with the
run's length: most of it is the decision itself (observation, policy, guard), and on large models
the gradient statistics of its window's last two steps.

One row a task: name, ms a step, steering in microseconds a step, share of the training time, and
the share of snapshots, of validation, in columns of their own. Aimed at: at most 50 microseconds a
step, or 1 % where a step takes 5 ms or more; snapshots at most 5 %.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter, thread_time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn

from trimtab.adapters.torch import TorchController
from trimtab.core.errors import TrimtabError
from trimtab.core.registry import make_task, names
from trimtab.core.spec import window_ends

LIMIT_MICROSECONDS = 50.0
LIMIT_SHARE = 0.01
LIMIT_SNAPSHOTS = 0.05
LONG_STEP_MS = 5.0


@dataclass
class Loop:
    """One of two twins: a model, its optimiser, the next batch's loss, and validation."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    next_loss: Callable[[], torch.Tensor]
    validate: Callable[[], float]
    total_steps: int


class Clock:
    """Gives seconds on the wall, or, while ``careful``, of this thread on the processor."""

    def __init__(self) -> None:
        self.careful = False

    def __call__(self) -> float:
        """Return the time."""
        return thread_time() if self.careful else perf_counter()


class Stopwatch:
    """Notes the seconds spent inside the functions that it wraps.

    Attributes:
        seconds: Of all calls together.
        calls: Of each call.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.seconds = 0.0
        self.calls: list[float] = []

    def usual(self) -> float:
        """Return the seconds of all calls, had each taken the median time."""
        return float(np.median(self.calls)) * len(self.calls) if self.calls else 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, timed."""

        def timed(*arguments: Any, **settings: Any) -> Any:
            begun = self._clock()
            try:
                return function(*arguments, **settings)
            finally:
                self.calls.append(self._clock() - begun)
                self.seconds += self.calls[-1]

        return timed


def instrument_seconds(repeats: int = 2000) -> float:
    """Return what the clock itself adds to the steering of one step, measured on empty calls."""
    clock = Clock()
    watch = Stopwatch(clock)
    step, clear = watch.around(lambda: None), watch.around(lambda: None)
    rest = []
    for _ in range(repeats):
        apart = watch.seconds
        entered = clock()
        step()
        clear()
        ended = clock()
        rest.append(ended - entered - (watch.seconds - apart))
    return float(np.median(rest))


def perceptron(widths: Sequence[int], batch: int, total_steps: int) -> Loop:
    """Return a network that learns a linear rule; the same each time."""
    torch.manual_seed(0)
    inputs = torch.randn(1024, widths[0])
    labels = (inputs @ torch.randn(widths[0], widths[-1])).argmax(1)
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    generator = torch.Generator().manual_seed(1)

    def next_loss() -> torch.Tensor:
        chosen = torch.randint(0, 896, (batch,), generator=generator)
        return nn.functional.cross_entropy(model(inputs[chosen]), labels[chosen])

    def validate() -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(model(inputs[896:]), labels[896:]))

    return Loop(model, torch.optim.AdamW(model.parameters()), next_loss, validate, total_steps)


def registered(name: str, total_steps: int) -> Loop:
    """Return a loop around a registered PyTorch task, of at most ``total_steps`` steps.

    Raises:
        TrimtabError: The task's data or packages are not there, or it is no PyTorch task.
    """
    task = make_task(name)
    run: Any = task.start(seed=0)
    if not isinstance(getattr(run, "optimizer", None), torch.optim.Optimizer):
        raise TrimtabError(f"{name} is no PyTorch task")
    setup = run.setup
    for group in run.optimizer.param_groups:
        group["lr"] = setup.defaults["lr"] * group.get("lr_ratio", 1.0)
    run.model.train()

    def next_loss() -> torch.Tensor:
        return setup.loss(run.model, next(setup.batches), setup.defaults)

    def validate() -> float:
        return float(run.evaluate("validation")[setup.monitor])

    steps = min(total_steps, task.total_steps)
    return Loop(run.model, run.optimizer, next_loss, validate, steps)


LOOPS: dict[str, Callable[[], Loop]] = {
    "small-mlp": lambda: perceptron([16, 64, 64, 4], 32, 2000),
    "middle-mlp": lambda: perceptron([256, 512, 512, 10], 128, 1000),
    "wide-mlp": lambda: perceptron([512, 1024, 1024, 10], 64, 1000),
}


def usual_mean(seconds: Sequence[float], ends: Sequence[int]) -> tuple[float, float, float]:
    """Return mean seconds a step made of each kind's median, and those of the first and last kind.

    Args:
        seconds: Of each step.
        ends: The step after each window's last one, rising.
    """
    last = np.asarray(ends, int) - 1
    before = np.setdiff1d(last - 1, np.append(last, -1))
    ordinary = np.setdiff1d(np.arange(len(seconds)), np.concatenate([last, before]))
    values = np.asarray(seconds)
    medians = [float(np.median(values[k])) if len(k) else 0.0 for k in (ordinary, before, last)]
    counts = (len(ordinary), len(before), len(last))
    mean = sum(m * n for m, n in zip(medians, counts, strict=True)) / len(values)
    return mean, medians[0], medians[2]


def measure(name: str, make: Callable[[], Loop], policy: Any) -> dict[str, Any]:
    """Return the row of one task."""
    plain, steered = make(), make()
    clock = Clock()
    optimizing, keeping, validating = Stopwatch(clock), Stopwatch(clock), Stopwatch(clock)
    controller = TorchController(
        steered.optimizer,
        total_steps=steered.total_steps,
        validate=steered.validate,
        model=steered.model,
        policy=policy,
    )
    steering: Any = controller._steering
    steering.snapshots.keep = keeping.around(steering.snapshots.keep)
    steering.snapshots.restore = keeping.around(steering.snapshots.restore)
    steering._validation.later = validating.around(steering._validation.later)
    optimizer: Any = steered.optimizer
    optimizer.step = optimizing.around(optimizer.step)
    optimizer.zero_grad = optimizing.around(optimizer.zero_grad)
    left, right, rest, alone = [], [], [], []
    ends = window_ends(controller.spec, steered.total_steps)
    careful = {*(ends - 1).tolist(), *(ends - 2).tolist()}
    with controller:
        for step in range(steered.total_steps):
            begun, busy = perf_counter(), thread_time()
            plain.next_loss().backward()  # type: ignore[no-untyped-call]
            plain.optimizer.step()
            plain.optimizer.zero_grad()
            alone.append(thread_time() - busy)
            left.append(perf_counter() - begun)
            begun = perf_counter()
            loss = steered.next_loss()
            loss.backward()  # type: ignore[no-untyped-call]
            apart = optimizing.seconds + keeping.seconds + validating.seconds
            clock.careful = step in careful
            entered = clock()
            controller.step(loss)
            ended = clock()
            clock.careful = False
            apart = optimizing.seconds + keeping.seconds + validating.seconds - apart
            rest.append(ended - entered - apart)
            right.append(math.nan if step in careful else ended - begun)
        kept, validated = keeping.usual(), validating.usual()
    added = instrument_seconds()
    mean, ordinary, last = (value - added for value in usual_mean(rest, ends.tolist()))
    a_step = float(np.median(alone))
    share = mean / a_step
    is_long = 1e3 * a_step >= LONG_STEP_MS
    good = share <= LIMIT_SHARE if is_long else 1e6 * mean <= LIMIT_MICROSECONDS
    snapshot_share = kept / (a_step * len(left))
    return {
        "name": name,
        "steps": steered.total_steps,
        "ms_per_step": 1e3 * a_step,
        "steering_us_per_step": 1e6 * mean,
        "share": share,
        "ordinary_step_us": 1e6 * ordinary,
        "decision_ms": 1e3 * last,
        "paired_us_per_step": 1e6 * float(np.nanmedian(np.asarray(right) - np.asarray(left))),
        "snapshot_share": snapshot_share,
        "validation_share": validated / (a_step * len(left)),
        "within_limits": bool(good and snapshot_share <= LIMIT_SNAPSHOTS),
    }


def measure_all(chosen: Sequence[str], policy: Any, steps: int) -> Iterator[dict[str, Any]]:
    """Yield the row of each task; without a choice, of all that can be measured here."""
    tasks = [name for name in names("task") if not name.startswith("simulated/")]
    for name in chosen or [*LOOPS, *tasks]:
        make = LOOPS.get(name, functools.partial(registered, name, steps))
        print(f"measuring {name}", file=sys.stderr)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                row = measure(name, make, policy)
        except TrimtabError as error:
            if chosen:
                raise
            print(f"left out {name}: {error}", file=sys.stderr)
        else:
            yield row


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return 0; 1 if a row is beyond its limits and ``--strict`` is given."""
    parser = argparse.ArgumentParser("benchmarks.overhead", description="What steering costs.")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--tasks", default="", help="names, separated by commas (default: all)")
    parser.add_argument("--policy", default="trimtab-1", help="name, path, or 'random'")
    parser.add_argument("--steps", type=int, default=200, help="at most so many of a task's steps")
    parser.add_argument("--strict", action="store_true", help="fail where a limit is exceeded")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    if not options.json:
        print(
            "task                      ms/step   steering   share   ordinary  decision  snapshots"
        )
    for row in measure_all(
        [name for name in options.tasks.split(",") if name], options.policy, options.steps
    ):
        rows.append(row)
        if not options.json:
            print(
                f"{row['name']:24}{row['ms_per_step']:9.2f}{row['steering_us_per_step']:8.1f} us"
                f"{row['share']:8.2%}{row['ordinary_step_us']:8.1f} us{row['decision_ms']:7.2f} ms"
                f"{row['snapshot_share']:11.2%}"
                f"{'' if row['within_limits'] else '  beyond its limit'}",
                flush=True,
            )
    if options.json:
        about = {
            "machine": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "policy": options.policy,
        }
        print(json.dumps({"rows": rows, "about": about}, indent=2))
    return int(options.strict and not all(row["within_limits"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
