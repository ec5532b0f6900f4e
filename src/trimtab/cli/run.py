"""`trimtab run`: one fine-tuning run, steered or not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli import options, output
from trimtab.core.decision import Progress, RunInfo
from trimtab.core.guard import count_undone
from trimtab.core.protocols import Controller, Task
from trimtab.core.references import reference_multipliers
from trimtab.core.spec import ControlSpec, window_ends

if TYPE_CHECKING:
    from collections.abc import Callable

    from trimtab.tasks.run import RunResult


@dataclass(frozen=True)
class Request:
    """What was asked to be run; plain data, so that another process can be handed it.

    Attributes:
        task: Registered name or ``module:factory``.
        variant: Variant of the task; None for its usual one.
        policy: Name of a policy or controller, policy file, or ``"none"``.
        hyperparameters: Names of what is steered.
        start: Start by name.
        start_scale: Factor between the task's tuned learning rate and the start.
        lr_range: Learning rates between which values stay; None for the usual bounds.
        decisions: Number of decisions.
        reference: Name of the reference schedule.
        seed: Seed of the run.
        store: Store of the record; None to keep none.
        watch_only: Propose and record, but never change anything.
        log_to: Trackers that are told as well: folders, ``mlflow:URI``, ``wandb:PROJECT``.
    """

    task: str
    variant: str | None = None
    policy: str = "none"
    hyperparameters: tuple[str, ...] = ("lr",)
    start: dict[str, float] = field(default_factory=dict)
    start_scale: float | None = None
    lr_range: tuple[float, float] | None = None
    decisions: int = 20
    reference: str = "warmup-linear"
    seed: int = 0
    store: str | None = None
    watch_only: bool = False
    log_to: tuple[str, ...] = ()


def prepared(request: Request, task: Task) -> tuple[ControlSpec, Controller, dict[str, float]]:
    """Return what a request's run is steered by, and the values that are held in it.

    Everything that can be wrong with the request is found here, before any training.

    Raises:
        TrimtabError: The request cannot be run.
    """
    from trimtab.defaults import controller_for

    options.require_seed(request.seed)
    items, held = options.start_values(
        task, request.hyperparameters, request.start, request.start_scale
    )
    policy = None if request.policy.lower() == "none" else request.policy
    spec, controller = controller_for(
        policy, items, decisions=request.decisions, lr_range=request.lr_range
    )
    window_ends(spec, task.total_steps)
    reference_multipliers(request.reference, task.total_steps)
    return spec, controller, held


def execute(
    request: Request,
    task: Task,
    *,
    begun: Callable[[ControlSpec], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> RunResult:
    """Run a request.

    Args:
        request: What was asked for.
        task: The task that it names.
        begun: Told the run's spec when nothing was found wrong, before the training.
        progress: Told after each window.

    Raises:
        TrimtabError: The request cannot be run, or the store cannot be opened.
    """
    from trimtab.defaults import recorder_for
    from trimtab.tasks.run import RunSettings, run_task

    spec, controller, held = prepared(request, task)
    notice = getattr(task, "notice", "")
    info = RunInfo(
        task=task.name,
        spec=spec,
        total_steps=task.total_steps,
        policy=controller.name,
        reference=request.reference,
        seed=request.seed,
        variant=str(request.variant or getattr(task, "variant", "") or ""),
        monitor=task.monitor,
        mode=task.mode,
        start_scale=request.start_scale,
        watch_only=request.watch_only,
        notices={"data": str(notice)} if notice else {},
        log_to=request.log_to or None,
    )
    recorder = recorder_for(request.store, info, awaits_figures=True)
    settings = RunSettings(
        seed=request.seed, reference=request.reference, watch_only=request.watch_only, held=held
    )
    if begun is not None:
        begun(spec)
    return run_task(task, controller, spec, settings, recorder=recorder, progress=progress)


def run(
    context: typer.Context,
    task: options.TaskName,
    variant: options.Variant = None,
    policy: Annotated[
        str, typer.Option(help="A policy's or controller's name, a policy file, or none.")
    ] = options.DEFAULT_POLICY,
    hyperparameters: options.Steered = "lr",
    start: options.Start = None,
    start_scale: options.StartScale = None,
    lr_range: options.LrRange = None,
    decisions: Annotated[int, typer.Option(help="How often the policy decides.")] = 20,
    reference: Annotated[
        str, typer.Option(help="warmup-linear, cosine, one-cycle or constant.")
    ] = "warmup-linear",
    seed: options.Seed = 0,
    store: options.Store = options.DEFAULT_STORE,
    watch_only: Annotated[
        bool, typer.Option("--watch-only", help="Propose and record, but change nothing.")
    ] = False,
    log_to: Annotated[
        list[str] | None,
        typer.Option(
            help="Tell a tracker: a TensorBoard folder, mlflow:URI or wandb:PROJECT; repeatable."
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Fine-tune once, steered by a policy or by its reference schedule alone."""
    options.one_thread()
    found = options.find_task(task, variant)
    request = Request(
        task=task,
        variant=variant,
        policy=policy,
        hyperparameters=tuple(options.names(hyperparameters)),
        start=options.assignments(start or []),
        start_scale=start_scale,
        lr_range=options.rates_between(lr_range),
        decisions=decisions,
        reference=reference,
        seed=seed,
        store=options.store_or_none(store),
        watch_only=watch_only,
        log_to=tuple(log_to or ()),
    )
    result = _executed_in_sight(
        request, found, is_rhythm_given=options.is_given(context, "decisions")
    )
    if as_json:
        output.print_json(result.to_dict())
    else:
        _print_result(result, request.store)


def _executed_in_sight(request: Request, task: Task, *, is_rhythm_given: bool) -> RunResult:
    """Run a request with a display of how it goes; leave with status 130 when interrupted."""
    output.say_notice(task)
    name = f"{task.name} · {request.policy}"

    def begun(spec: ControlSpec) -> None:
        if is_rhythm_given:
            output.say_fewer_decisions(request.decisions, [(request.task, spec, task.total_steps)])

    again = options.store_again(request.store)
    kept = "" if request.store is None else f"; trimtab report latest{again} shows what had run"
    with (
        output.interruptible(lambda: kept),
        output.Display({name: str(task.monitor)}) as display,
    ):
        return execute(request, task, begun=begun, progress=lambda now: display.update(name, now))


def _print_result(result: RunResult, store: str | None) -> None:
    step = output.number(result.best.get("step"))
    rows: list[tuple[Any, ...]] = [
        (name, output.number(result.best.get(name)), output.number(result.test.get(name)))
        for name in dict.fromkeys([*result.best, *result.test])
        if name not in ("step", "examples")
    ]
    output.print_table(("metric", "validation", "test"), rows, f"Best weights, of step {step}")
    undone = count_undone(item.reason for item in result.decisions)
    lost = f", {undone} short window{'s' * (undone > 1)} undone" if undone else ""
    lost += f", {result.rollbacks} rolled back" if result.rollbacks else ""
    given_up = ", given up after too many divergences" if result.diverged else ""
    typer.echo(
        f"{result.spent_steps} steps{lost}{given_up}, {result.spent:.2f} whole runs, "
        f"{result.seconds:.1f} s"
    )
    if result.run is not None:
        typer.echo(f"trimtab report {result.run}{options.store_again(store)}")
