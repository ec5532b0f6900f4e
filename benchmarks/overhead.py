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
    python -m benchmarks.overhead --tasks keras/digits,trainer:text/newsgroups --variant tiny
    python -m benchmarks.overhead --variant default,small --steps 5000 --page benchmarks/OVERHEAD.md

A decision costs the same however many steps lie between two of them, so the share falls with the
run's length: most of it is the decision itself (observation, policy, guard), and on large models
the gradient statistics of its window's last two steps.

Keras tasks are measured inside ``fit``, and the text tasks inside Transformers' ``Trainer`` besides
(`benchmarks.overhead_trainers` says how). What the clock costs is measured on the plain twin, whose
optimiser is timed alike, in the same moment and with caches as cold, and taken off.

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
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn

from benchmarks import overhead_trainers
from benchmarks.commands import called
from benchmarks.overhead_clock import Clock, Stopwatch, row, usual_mean
from trimtab.adapters.torch import TorchController
from trimtab.core.errors import TrimtabError
from trimtab.core.registry import make_task, names
from trimtab.core.spec import window_ends

TRAINER = "trainer:"
"""In front of a task's name: inside Transformers' ``Trainer``, not in a loop."""


@dataclass
class Loop:
    """One of two twins: a model, its optimiser, the next batch's loss, and validation."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    next_loss: Callable[[], torch.Tensor]
    validate: Callable[[], float]
    total_steps: int


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


def registered(name: str, total_steps: int, variant: str = "default") -> Loop:
    """Return a loop around a registered PyTorch task, of at most ``total_steps`` steps.

    Raises:
        TrimtabError: The task's data or packages are not there, or it is no PyTorch task.
    """
    task = make_task(name, variant=variant)
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
    run: Any = controller._run
    run.snapshots.keep = keeping.around(run.snapshots.keep)
    run.snapshots.restore = keeping.around(run.snapshots.restore)
    run._validation.later = validating.around(run._validation.later)
    optimizer: Any = steered.optimizer
    optimizer.step = optimizing.around(optimizer.step)
    optimizer.zero_grad = optimizing.around(optimizer.zero_grad)
    left, right, rest, empty, alone = [], [], [], [], []
    ends = window_ends(controller.spec, steered.total_steps)
    careful = {*(ends - 1).tolist(), *(ends - 2).tolist()}
    apart = Stopwatch(clock)  # the plain twin's optimiser, timed as the steered one's is
    plain_step = apart.around(plain.optimizer.step)
    plain_clear = apart.around(plain.optimizer.zero_grad)
    with controller:
        for step in range(steered.total_steps):
            clock.careful = step in careful
            begun, busy = perf_counter(), thread_time()
            plain.next_loss().backward()  # type: ignore[no-untyped-call]
            seen, entered = apart.seconds, clock()
            plain_step()
            plain_clear()
            empty.append(clock() - entered - (apart.seconds - seen))
            alone.append(thread_time() - busy)
            left.append(perf_counter() - begun)
            begun = perf_counter()
            loss = steered.next_loss()
            loss.backward()  # type: ignore[no-untyped-call]
            seen = optimizing.seconds + keeping.seconds + validating.seconds
            entered = clock()
            controller.step(loss)
            ended = clock()
            clock.careful = False
            seen = optimizing.seconds + keeping.seconds + validating.seconds - seen
            rest.append(ended - entered - seen)
            right.append(math.nan if step in careful else perf_counter() - begun)
    both = (usual_mean(seconds, ends.tolist()) for seconds in (rest, empty))
    mean, ordinary, last = (ours - clocks for ours, clocks in zip(*both, strict=True))
    return row(
        name,
        "torch",
        (mean, ordinary, last),
        steps=steered.total_steps,
        a_step=float(np.median(alone)),
        paired=float(np.nanmedian(np.asarray(right) - np.asarray(left))),
        keeping=keeping,
        validating=validating,
    )


def measure_task(name: str, policy: Any, *, steps: int, variant: str) -> dict[str, Any]:
    """Return the row of a registered task, of ``trainer:TASK``, or of one of `LOOPS`.

    Raises:
        TrimtabError: The task's data or packages are not there, or it has no such variant.
    """
    if name in LOOPS:
        return measure(name, LOOPS[name], policy)
    if name.startswith("keras/"):
        return overhead_trainers.in_keras(name, variant, policy)
    if name.startswith(TRAINER):
        task = name.removeprefix(TRAINER)
        return overhead_trainers.in_transformers(task, variant, policy) | {"name": name}
    return measure(name, functools.partial(registered, name, steps, variant), policy)


def measure_all(
    chosen: Sequence[str], policy: Any, *, steps: int, variants: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield the row of each task and size; without a choice, of all that can be measured here."""
    tasks = [name for name in names("task") if not name.startswith("simulated/")]
    in_trainer = [TRAINER + name for name in tasks if name.startswith("text/")]
    wanted = chosen or [*LOOPS, *tasks, *in_trainer]
    for name, variant in ((n, v) for v in variants for n in wanted):
        if name in LOOPS and variant != variants[0]:
            continue  # they have one size
        print(f"measuring {name} {variant}", file=sys.stderr)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                line = measure_task(name, policy, steps=steps, variant=variant)
        except (TrimtabError, ImportError) as error:
            if chosen:
                raise
            print(f"left out {name}: {error}", file=sys.stderr)
        else:
            yield line | {"variant": "" if name in LOOPS else variant}


_HEAD = f"{'task':35}  ms/step   steering   share   ordinary  decision  snapshots"


def _printed(line: dict[str, Any]) -> str:
    ordinary = line["ordinary_step_us"]
    usual = "          -" if ordinary is None else f"{ordinary:8.1f} us"
    name = f"{line['name']} {line['variant']}"
    return (
        f"{name:35}{line['ms_per_step']:9.2f}{line['steering_us_per_step']:8.1f} us"
        f"{line['share']:8.2%}{usual}{line['decision_ms']:7.2f} ms{line['snapshot_share']:11.2%}"
        f"{'' if line['within_limits'] else '  beyond its limit'}"
    )


def page(rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any], command: str) -> str:
    """Return the rows as a Markdown page."""
    lines = [
        "# What steering costs",
        "",
        "Steering is what is added to a training step, decisions included, without validation and",
        "snapshots. Aimed at: at most 50 microseconds a step, or 1 % where a step takes 5 ms or",
        "more; snapshots at most 5 %.",
        "",
        "| task | size | steps | ms a step | steering, us a step | share | snapshots | within |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for line in rows:
        lines.append(
            f"| `{line['name']}` | {line['variant']} | {line['steps']} | {line['ms_per_step']:.2f} "
            f"| {line['steering_us_per_step']:.0f} | {line['share']:.2%} "
            f"| {line['snapshot_share']:.2%} | {'yes' if line['within_limits'] else '**no**'} |"
        )
    told = ", ".join(f"{name} {value}" for name, value in about.items())
    lines += ["", f"{time.strftime('%d %B %Y')}: `{command}`; {told}."]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return 0; 1 if a row is beyond its limits and ``--strict`` is given."""
    parser = argparse.ArgumentParser("benchmarks.overhead", description="What steering costs.")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--tasks", default="", help="names, separated by commas (default: all)")
    parser.add_argument(
        "--variant", default="default", help="sizes of the registered tasks, separated by commas"
    )
    parser.add_argument("--policy", default="trimtab-1", help="name, path, or 'random'")
    parser.add_argument("--steps", type=int, default=200, help="at most so many of a task's steps")
    parser.add_argument("--page", type=Path, help="write the rows to this Markdown file as well")
    parser.add_argument("--strict", action="store_true", help="fail where a limit is exceeded")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    if not options.json:
        print(_HEAD)
    chosen = [name for name in options.tasks.split(",") if name]
    variants = options.variant.split(",")
    for line in measure_all(chosen, options.policy, steps=options.steps, variants=variants):
        rows.append(line)
        if not options.json:
            print(_printed(line), flush=True)
    about = {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "policy": options.policy,
    }
    if options.page:
        text = page(rows, about, called("benchmarks.overhead", arguments))
        options.page.write_text(text, encoding="utf-8")
    if options.json:
        print(json.dumps({"rows": rows, "about": about}, indent=2))
    return int(options.strict and not all(line["within_limits"] for line in rows))


if __name__ == "__main__":
    raise SystemExit(main())
