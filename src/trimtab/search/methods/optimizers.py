"""Rivals that bring an optimiser of their own, or GreedyLR's rule for the learning rate."""

from __future__ import annotations

import contextlib
import inspect
import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from trimtab.core.protocols import Task
from trimtab.core.references import reference_multipliers
from trimtab.search.methods.base import Assignment, Method, Outcome
from trimtab.search.methods.starts import Start
from trimtab.search.methods.trial import Trial

if TYPE_CHECKING:
    import torch

_WARMUP_SHARE = 0.05

# As in the scheduler's own example of fine-tuning, at an evaluation every twentieth of the run;
# its smallest rate is there a five-hundredth of the start. The class's default, 1e-3, would lift
# most fine-tuning runs far above where they start.
_PATIENCE, _FACTOR, _MIN_SHARE = 2, 0.9, 1 / 500

Make = Callable[[list[dict[str, Any]]], "torch.optim.Optimizer"]


def _keeps_its_own(task: Task) -> str | None:
    """Say why a task cannot train with another optimiser, if it cannot."""
    if "optimizer" not in inspect.signature(task.start).parameters:
        return "the task's start() takes no optimizer=, so it keeps its own"
    return None


def _train(
    assignment: Assignment, make: Make, rate: float, schedule: str, **others: float
) -> Trial:
    """Train once with another optimiser along a schedule of its learning rate."""
    task, starts = assignment.task, assignment.starts
    trial = Trial(task, seed=assignment.seed, windows=assignment.windows, optimizer=make)
    offered = {item.name for item in task.hyperparameters}
    values = {name: value for name, value in others.items() if name in offered}
    multipliers = reference_multipliers(schedule, task.total_steps)
    while not trial.finished:
        trial.follow({**values, starts.rate: rate}, multipliers, rate=starts.rate)
    return trial


def _nowhere(assignment: Assignment) -> Start:
    """Return the start of a method to which the task's learning rate means nothing."""
    return Start({assignment.starts.rate: 1.0}, math.nan)


def _rate_free(
    maker: Callable[[], Any], schedule: str, **settings: Any
) -> Callable[[Assignment], Outcome]:
    """Return what trains once with an optimiser that finds its own rate, at a multiplier of 1.

    Args:
        maker: Gives the optimiser's class.
        schedule: What the multiplier follows.
        settings: Keywords of the class. Where the task steers ``beta1`` it is set in each step, so
            that ``betas`` come that way too.
    """

    def run(assignment: Assignment) -> Outcome:
        kind = maker()

        def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
            with contextlib.redirect_stdout(io.StringIO()):  # some tell of their settings there
                optimizer: torch.optim.Optimizer = kind(groups, lr=1.0, **settings)
            return optimizer

        others = {"beta1": settings["betas"][0]} if "betas" in settings else {}
        trial = _train(assignment, make, 1.0, schedule, **others)
        return Outcome((trial.result(_nowhere(assignment)),), 0)

    return run


def _prodigy() -> Any:
    from prodigyopt import Prodigy

    return Prodigy


def _prodigy_plus() -> Any:
    from prodigyplus.prodigy_plus_schedulefree import ProdigyPlusScheduleFree

    return ProdigyPlusScheduleFree


def _d_adapted() -> Any:
    from pytorch_optimizer import DAdaptAdam

    return DAdaptAdam


def _adam_g() -> Any:
    from pytorch_optimizer import AdamG

    return AdamG


def _mechanized() -> Any:
    import torch
    from mechanic_pytorch import mechanize

    return mechanize(torch.optim.AdamW)


def _schedule_free(assignment: Assignment) -> Outcome:
    """Train with schedule-free AdamW from the start's learning rate, with its own warm-up."""
    from schedulefree import AdamWScheduleFree

    rate = float(assignment.start.values[assignment.starts.rate])
    warmup = max(1, round(_WARMUP_SHARE * assignment.task.total_steps))

    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = AdamWScheduleFree(groups, lr=rate, warmup_steps=warmup)
        return optimizer

    others = {
        name: value
        for name, value in assignment.start.values.items()
        if name != assignment.starts.rate
    }
    trial = _train(assignment, make, rate, "constant", **others)
    return Outcome((trial.result(assignment.start),), 0)


def _dog(assignment: Assignment) -> Outcome:
    """Train with DoG and its iterate averaging, which the authors call crucial."""
    from dog import DoG, PolynomialDecayAverager

    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return averaged(DoG(groups), PolynomialDecayAverager)

    # Weight decay is left at DoG's own default of none.
    trial = _train(assignment, make, 1.0, "constant", weight_decay=0.0)
    return Outcome((trial.result(_nowhere(assignment)),), 0)


def averaged(optimizer: torch.optim.Optimizer, averager: Any) -> torch.optim.Optimizer:
    """Return an optimiser that shows averaged weights between ``eval()`` and ``train()``.

    Args:
        optimizer: Takes the steps; it is changed in place.
        averager: Class that averages the weights of a module, with ``step``, ``averaged_model``,
            ``state_dict`` and ``load_state_dict``.
    """
    import torch

    parameters = [item for group in optimizer.param_groups for item in group["params"]]
    average = averager(torch.nn.ParameterList(parameters))
    step, state_dict = optimizer.step, optimizer.state_dict
    load_state_dict = optimizer.load_state_dict
    own: list[torch.Tensor] = []

    def take_step(*arguments: Any, **keywords: Any) -> Any:
        result = step(*arguments, **keywords)
        average.step()
        return result

    @torch.no_grad()
    def show_average() -> None:
        if average.t == 1 or own:  # nothing was averaged yet
            return
        own.extend(item.detach().clone() for item in parameters)
        for item, mean in zip(parameters, average.averaged_model, strict=True):
            item.copy_(mean)

    @torch.no_grad()
    def show_own() -> None:
        for item, kept in zip(parameters, own, strict=False):
            item.copy_(kept)
        own.clear()

    def state() -> dict[str, Any]:
        return {**state_dict(), "average": average.state_dict()}

    def load(given: dict[str, Any]) -> None:
        average.load_state_dict(given["average"])
        load_state_dict({name: value for name, value in given.items() if name != "average"})

    changes: dict[str, Any] = {
        "step": take_step,
        "eval": show_average,
        "train": show_own,
        "state_dict": state,
        "load_state_dict": load,
    }
    for name, function in changes.items():
        setattr(optimizer, name, function)
    return optimizer


def _greedy(assignment: Assignment) -> Outcome:
    """Train under Transformers' own GreedyLR, told of each validation."""
    import torch
    from transformers import GreedyLR

    starts, start = assignment.starts, assignment.start
    rate = float(start.values[starts.rate])
    # The scheduler only reads and writes the learning rate of the optimiser that it is given.
    holder = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    scheduler = GreedyLR(
        holder,
        mode="min",
        patience=_PATIENCE,
        factor=_FACTOR,
        min_lr=_MIN_SHARE * rate,
        max_lr=max(1.0, rate),
        eps=0.0,  # its 1e-8 is a change in absolute terms, and would freeze small rates
    )
    trial = Trial(assignment.task, seed=assignment.seed, windows=assignment.windows)
    values = dict(start.values)
    flat = np.ones(assignment.task.total_steps)
    while not trial.finished:
        values[starts.rate] = float(holder.param_groups[0]["lr"])
        trial.follow(values, flat, rate=starts.rate)
        if not trial.lost:
            scheduler.step(trial.loss)
    return Outcome((trial.result(start),), 0)


def _own(name: str, what: str, package: str, run: Callable[[Assignment], Outcome]) -> Method:
    return Method(
        name,
        what,
        run,
        uses_start=False,
        requires=("torch", package),
        refuses=_keeps_its_own,
    )


PRODIGY = _own(
    "prodigy",
    "the optimiser Prodigy, which estimates its learning rate, under a cosine",
    "prodigyopt",
    _rate_free(_prodigy, "cosine"),
)
PRODIGY_LINEAR = _own(
    "prodigy-linear",
    "Prodigy with bias correction and d0 = 1e-4, under the reference",
    "prodigyopt",
    _rate_free(_prodigy, "warmup-linear", use_bias_correction=True, safeguard_warmup=True, d0=1e-4),
)
# The two groups are of one network, so the estimate is one, as in Prodigy itself.
PRODIGY_PLUS = _own(
    "prodigy-plus-schedule-free",
    "Prodigy with schedule-free averaging",
    "prodigyplus",
    _rate_free(_prodigy_plus, "constant", split_groups=False),
)
D_ADAPTATION = _own(
    "d-adaptation",
    "Adam with D-Adaptation, under the reference",
    "pytorch_optimizer",
    _rate_free(_d_adapted, "warmup-linear", weight_decouple=True),
)
ADAM_G = _own(
    "adamg",
    "the optimiser AdamG: Adam with the golden step size, under a cosine",
    "pytorch_optimizer",
    _rate_free(_adam_g, "cosine", weight_decouple=True, betas=(0.95, 0.999, 0.95)),
)
MECHANIC = _own(
    "mechanic",
    "AdamW scaled by Mechanic, under the reference",
    "mechanic_pytorch",
    _rate_free(_mechanized, "warmup-linear"),
)
SCHEDULE_FREE = Method(
    "schedule-free",
    "schedule-free AdamW, which averages instead of decaying",
    _schedule_free,
    requires=("torch", "schedulefree"),
    refuses=_keeps_its_own,
)
DOG = _own("dog", "the optimiser DoG: distance over gradients, averaged", "dog", _dog)
GREEDY = Method(
    "greedy",
    "GreedyLR: up while validation improves, down while it does not",
    _greedy,
    requires=("torch", "transformers"),
)
