"""`trimtab learn` and `trimtab evaluate`: making a policy, and finding out what it is worth."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from trimtab.cli import options, output
from trimtab.core.errors import SpecError, unknown_name


def prepare_jax() -> None:
    """Set what JAX reads at its import: one device a core, and a cache of compiled programs.

    Values that the user has set already are left alone.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ.setdefault(
        "XLA_FLAGS",
        f"--xla_force_host_platform_device_count={cores or 1} "
        "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    )
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(home / "trimtab" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def learn(
    config: Annotated[Path, typer.Option(help="TOML file with every setting.")],
    out: Annotated[Path, options.folder_option("Folder for checkpoints, curves and the policy.")],
    minutes: Annotated[float | None, typer.Option(help="Stop after this many minutes.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue what is in --out.")] = False,
    initial: Annotated[
        str | None,
        typer.Option(help="What to begin from: an earlier --out folder, a policy's name or file."),
    ] = None,
    remember: Annotated[
        list[str] | None,
        typer.Option(
            help="--out folder of an imitation whose runs to begin with; may be repeated; not "
            "looked at by --resume."
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Meta-train a policy on simulated fine-tuning runs."""
    if minutes is not None and not minutes > 0:
        raise SpecError(f"--minutes: {minutes:g} is not above 0; leave it out for no limit")
    prepare_jax()
    from trimtab.agents.training.checkpoints import require_checkpoint
    from trimtab.agents.training.learn import Progress
    from trimtab.agents.training.learn import learn as train
    from trimtab.agents.training.settings import read_settings
    from trimtab.defaults import policy_path

    settings = read_settings(config)
    begin = None
    if initial is not None:
        is_folder = bool(initial) and Path(initial).is_dir()
        begin = Path(initial) if is_folder else policy_path(initial)
    for place in remember or ():
        require_checkpoint(Path(place))
    _check_folder(out)
    last: dict[str, Any] = {}
    with (
        output.interruptible(lambda: _how_to_go_on(out)),
        output.progress_bar(f"learning {settings.name}") as bar,
    ):
        task = bar.add_task("", total=settings.iterations, note="compiling")

        def show(progress: Progress) -> None:
            figures = progress.figures
            last.update(figures, iteration=progress.iteration, runs=progress.runs)
            last.update(seconds=progress.seconds, inner_steps=progress.steps)
            note = f"return {figures['return']:+.3f} nats, {progress.runs:,} runs"
            bar.update(task, completed=progress.iteration, note=note)
            if not bar.console.is_terminal and progress.iteration % 20 == 0:
                print(f"{progress.iteration}/{progress.of} {note}", file=sys.stderr)

        path = train(
            settings,
            out,
            resume=resume,
            initial=begin,
            remember=remember or (),
            minutes=minutes,
            on_progress=show,
        )
    if as_json:
        output.print_json({"policy": str(path), **last})
    else:
        print(f"wrote {path}")


def _how_to_go_on(out: Path) -> str:
    """Return what is said when a training is interrupted."""
    from trimtab.agents.training.checkpoints import checkpoint_file

    if checkpoint_file(out):
        return f"; the same command with --resume goes on from the last checkpoint in {out}"
    return "; there is no checkpoint yet: run the same command again"


def _check_folder(out: Path) -> None:
    """Make the folder now, so that nothing is computed that could not be kept."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(
            f"--out {out} cannot be written ({error.strerror or error}); choose another folder"
        ) from error


def _check_evaluation(
    rings: list[str], tasks: int, seed: int, steered: tuple[str, ...], out: Path
) -> None:
    from trimtab.agents.evaluation.evaluate import EVALUATIONS, check_steered

    for name in rings:
        if name not in EVALUATIONS:
            raise unknown_name("ring", name, EVALUATIONS)
        check_steered(name, steered)
    if tasks < 1:
        raise SpecError(f"--tasks: {tasks} is below 1; evaluate at least one task")
    options.require_seed(seed, tasks)
    _check_folder(out)


def evaluate(
    policy: Annotated[str, typer.Argument(help="A policy's name, or a policy file.")],
    ring: Annotated[
        list[str] | None, typer.Option(help="a, b, c, kinds or wide; may be repeated.")
    ] = None,
    tasks: Annotated[int, typer.Option(help="Tasks in each ring.")] = 256,
    seed: options.Seed = 0,
    hyperparameters: Annotated[
        str, typer.Option(help="What is steered, by commas, lr first; 'all': all of the ring's.")
    ] = "lr",
    jobs: Annotated[int, typer.Option(help="Cores to use; 0: all.")] = 0,
    out: Annotated[Path, options.folder_option("Folder for the rows.")] = Path("evaluation"),
    as_json: options.AsJson = False,
) -> None:
    """Find out what a policy is worth on simulated tasks that it never trained on.

    Task i of a ring is drawn from seed --seed + i; reports take seeds from 1000000 on.
    """
    if jobs < 0:
        raise SpecError(f"--jobs: {jobs} is below 0; give the cores to use, 0 for all")
    if jobs:
        os.environ.setdefault(
            "XLA_FLAGS",
            f"--xla_force_host_platform_device_count={jobs} "
            "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
        )
    prepare_jax()
    from trimtab.agents.evaluation.evaluate import EvaluationSettings, evaluate_policy
    from trimtab.controllers.learned import read_policy
    from trimtab.defaults import policy_path

    named = tuple(part.strip() for part in hyperparameters.split(","))
    steered = () if named == ("all",) else named
    loaded = read_policy(policy_path(policy))
    _check_evaluation(ring or ["a"], tasks, seed, steered, out)
    found: dict[str, Any] = {}
    how = f"; what was done is kept in {out}: run the same command again to go on from there"
    with output.interruptible(lambda: how), output.progress_bar("evaluating") as bar:
        for name in ring or ["a"]:
            task = bar.add_task("", total=tasks, note=f"ring {name}")

            def show(done: int, total: int, task: Any = task) -> None:
                bar.update(task, completed=done, total=total)

            settings = EvaluationSettings(name, tasks, seed, steered)
            found[name] = evaluate_policy(loaded, settings, out, on_progress=show)
    for name, figures in found.items():
        _say_untold(name, figures)
    if as_json:
        output.print_json({"rings": found})
        return
    for name, figures in found.items():
        _print_ring(name, figures)


def _say_untold(name: str, figures: dict[str, Any]) -> None:
    """Say of how many tasks some figures are not, if of any."""
    if "untold" in figures:
        number = round(figures["untold"]["value"] * figures["tasks"])
        output.say(
            f"ring {name}: n*, regret and harm are told without {number} of {figures['tasks']} "
            "tasks: no run of their pool has a finite test loss"
        )


def _print_ring(name: str, figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"ring {name}: {figures.get('tasks', 0)} tasks")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for key, value in figures.items():
        if key == "tasks":
            continue
        parts = {"": value} if "value" in value else {f" x{f}": v for f, v in value.items()}
        for label, item in parts.items():
            if item["value"] != item["value"]:  # nan: it cannot be told
                table.add_row(key + label, "–", "–")
                continue
            interval = f"{item['low']:.3f} .. {item['high']:.3f}"
            table.add_row(key + label, f"{item['value']:.3f}", interval)
    Console().print(table)
