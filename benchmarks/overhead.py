"""What steering costs a training loop, beside the same loop without it.

Two twins of a model are trained on the same batches in one process, step by step in turn: one by
``optimizer.step()`` and ``zero_grad()``, one by ``TorchController.step``. Inside the steered step
the optimiser, validation and snapshots are timed apart; what is left is steering: statistics,
values, observations, the policy and the guard, decisions included. The difference between the
twins' whole steps (``paired``, the median over steps) is a check on it, and noisier. Times are the
thread's processor times, with one thread: on an idle machine these are the times on the wall, and
on a busy one they still tell what the code costs.

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
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import thread_time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn

from trimtab.adapters.torch import TorchController
from trimtab.core.errors import TrimtabError
from trimtab.core.registry import make_task, names

LIMIT_MICROSECONDS = 50.0
LIMIT_SHARE = 0.01
LIMIT_SNAPSHOTS = 0.05
LONG_STEP_MS = 5.0
_WARM_UP = 10


@dataclass
class Loop:
    """One of two twins: a model, its optimiser, the next batch's loss, and validation."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    next_loss: Callable[[], torch.Tensor]
    validate: Callable[[], float]
    total_steps: int


class Stopwatch:
    """Adds up the seconds spent inside the functions that it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, timed."""

        def timed(*arguments: Any, **settings: Any) -> Any:
            begun = thread_time()
            try:
                return function(*arguments, **settings)
            finally:
                self.seconds += thread_time() - begun

        return timed


def instrument_seconds(repeats: int = 2000) -> float:
    """Return what the clock itself adds to the steering of one step, measured on empty calls."""
    watch = Stopwatch()
    step, clear = watch.around(lambda: None), watch.around(lambda: None)
    rest = []
    for _ in range(repeats):
        apart = watch.seconds
        entered = thread_time()
        step()
        clear()
        ended = thread_time()
        rest.append(ended - entered - (watch.seconds - apart))
    return float(np.mean(rest))


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
    if not hasattr(run, "setup"):
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


def measure(name: str, make: Callable[[], Loop], policy: Any) -> dict[str, Any]:
    """Return the row of one task."""
    plain, steered = make(), make()
    optimizing, keeping, validating = Stopwatch(), Stopwatch(), Stopwatch()
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
    steered.optimizer.step = optimizing.around(steered.optimizer.step)  # type: ignore[method-assign]
    steered.optimizer.zero_grad = optimizing.around(steered.optimizer.zero_grad)  # type: ignore[method-assign]
    left, right, rest = [], [], []
    with controller:
        for step in range(steered.total_steps):
            begun = thread_time()
            plain.next_loss().backward()
            plain.optimizer.step()
            plain.optimizer.zero_grad()
            left.append(thread_time() - begun)
            if step == _WARM_UP:
                optimizing.seconds = keeping.seconds = validating.seconds = 0.0
                rest.clear()
            begun = thread_time()
            loss = steered.next_loss()
            loss.backward()
            apart = optimizing.seconds + keeping.seconds + validating.seconds
            entered = thread_time()
            controller.step(loss)
            ended = thread_time()
            apart = optimizing.seconds + keeping.seconds + validating.seconds - apart
            rest.append(ended - entered - apart)
            right.append(ended - begun)
        keeping_seconds, validating_seconds = keeping.seconds, validating.seconds
    whole = float(np.sum(left[_WARM_UP:]))
    steps = len(left) - _WARM_UP
    ms, micro = 1e3 * whole / steps, 1e6 * (float(np.mean(rest)) - instrument_seconds())
    difference = np.asarray(right[_WARM_UP:]) - np.asarray(left[_WARM_UP:])
    snapshot_share = keeping_seconds / whole
    share = micro / (1e3 * ms)
    good = share <= LIMIT_SHARE if ms >= LONG_STEP_MS else micro <= LIMIT_MICROSECONDS
    return {
        "name": name,
        "steps": steered.total_steps,
        "ms_per_step": ms,
        "steering_us_per_step": micro,
        "share": share,
        "paired_us_per_step": 1e6 * float(np.median(difference)),
        "snapshot_share": snapshot_share,
        "validation_share": validating_seconds / whole,
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
        print("task                      ms/step   steering   share     paired  snapshots")
    for row in measure_all(
        [name for name in options.tasks.split(",") if name], options.policy, options.steps
    ):
        rows.append(row)
        if not options.json:
            print(
                f"{row['name']:24}{row['ms_per_step']:9.2f}{row['steering_us_per_step']:8.1f} us"
                f"{row['share']:8.2%}{row['paired_us_per_step']:8.1f} us"
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
