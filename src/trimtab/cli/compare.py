"""`trimtab compare` and `trimtab methods`: every way to choose, at equal compute."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli import options, output
from trimtab.core.errors import MissingDependencyError, SpecError, StoreError
from trimtab.core.registry import names as registered

if TYPE_CHECKING:
    from collections.abc import Callable

    from trimtab.search.comparison.compare import Comparison, Update
    from trimtab.search.comparison.plan import Plan, TaskPlan

_USUAL_METHODS = "trimtab,reference,lr-finder,race,random:8"
_USUAL_SEEDS = 5


def methods(as_json: options.AsJson = False) -> None:
    """List the ways to choose hyperparameters, with their budgets in whole runs."""
    from trimtab.search.methods.base import find_method

    rows: list[dict[str, Any]] = []
    for name in registered("method"):
        method = find_method(name)
        rows.append(
            {
                "name": method.name,
                "what": method.what,
                "least": method.least,
                "most": method.most,
                "budget": method.budget,
                "uses_start": method.uses_start,
                "needs": list(method.requires),
                "missing": method.missing(),
            }
        )
    if as_json:
        output.print_json(rows)
        return
    output.print_table(
        ("method", "what it is", "whole runs", "needs"),
        [
            (
                row["name"],
                row["what"],
                _runs(row["least"], row["most"]),
                ", ".join(
                    f"{name} (not installed)" if name in row["missing"] else name
                    for name in row["needs"]
                )
                or "–",
            )
            for row in rows
        ],
    )


def _runs(least: int, most: int | None) -> str:
    if most is None:
        return f"{least} or more"
    return str(least) if least == most else f"{least} to {most}"


def compare(
    context: typer.Context,
    task: Annotated[
        list[str] | None,
        typer.Argument(help="Tasks' names (trimtab tasks), module:factory or file.py:factory."),
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="A suite of tasks and methods instead: fast or real.")
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="Size of the tasks: tiny, small or default.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(help=f"Methods, each with its budget in whole runs; else {_USUAL_METHODS}."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="How many seeds, counted on from --seed; else 5.")
    ] = None,
    seed: options.Seed = 0,
    start_scale: Annotated[
        str | None,
        typer.Option(
            help="Start at this factor times the task's tuned learning rate; several by commas, "
            "such as 0.01,1,100."
        ),
    ] = None,
    starts: Annotated[str | None, typer.Option(hidden=True)] = None,
    hyperparameters: Annotated[
        str | None,
        typer.Option(help="What is steered and searched, separated by commas; else lr."),
    ] = None,
    policy: options.Policy = options.DEFAULT_POLICY,
    decisions: Annotated[int, typer.Option(help="How often every run is validated.")] = 20,
    pool: Annotated[
        int | None,
        typer.Option(help="Random runs a task, for regret and n*; 64 simulated, 16 real ones."),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Processes side by side, one thread each.")] = 2,
    out: Annotated[
        Path, options.folder_option("Folder of the results; an unfinished one goes on.")
    ] = Path("comparison"),
    as_json: options.AsJson = False,
) -> None:
    """Compare methods at equal compute: one table, one Parquet file, one report.

    Without --start-scale each seed draws a start of its own; reports take seeds from 1000000 on.
    """
    from trimtab.defaults import policy_path
    from trimtab.search.comparison.compare import compare as run
    from trimtab.search.comparison.cost import cost_answer
    from trimtab.search.comparison.figures import comparison_figures
    from trimtab.search.comparison.journal import fingerprint
    from trimtab.search.comparison.plan import decision_schedule_of, policy_of

    _require_table()
    scales = options.renamed("--starts", starts, "--start-scale", start_scale)
    options.make_folder_importable(task or ())
    path = policy_path(policy).resolve()
    windows, file = decision_schedule_of(path, decisions), policy_of(path)
    if suite is not None:
        from trimtab.search.comparison.plan import suite_plans

        _refuse_beside_suite(
            {
                "TASK": task,
                "--variant": variant,
                "--methods": methods,
                "--seeds": seeds,
                "--start-scale": scales,
                "--hyperparameters": hyperparameters,
                "--pool": pool,
            }
        )
        plans = suite_plans(suite, windows=windows, policy=file, first_seed=seed)
    else:
        plans = [_plan(task, methods, seeds, seed, scales, hyperparameters, variant, pool)]
        plans = [_with(plan, windows, file) for plan in plans]
    identity = fingerprint(name for plan in plans for name in plan.tasks)

    def begun(task_plans: Sequence[TaskPlan]) -> None:
        if options.is_given(context, "decisions"):
            runs = [(one.name, one.plan.windows.spec(), one.task.total_steps) for one in task_plans]
            output.say_fewer_decisions(decisions, runs)

    how = f"; results so far are in {out}: run the same command again to go on from there"
    with output.interruptible(lambda: how):
        with _progress() as tell:
            found = run(plans, out, identity, jobs=jobs, begun=begun, progress=tell)
        figures = comparison_figures(found)
    figures["cost"] = cost_answer(figures, _training_seconds(file[0]))
    report = _write_results(out, found, figures, identity, policy=file[0], jobs=jobs)
    _print_results(out, found, figures, report, as_json=as_json)


def _write_results(
    out: Path,
    found: Comparison,
    figures: dict[str, Any],
    identity: Any,
    *,
    policy: str,
    jobs: int,
) -> Path | None:
    """Write the table, the report and what they were made with; return the report's file."""
    from trimtab.search.comparison.table import write_parquet

    try:
        write_parquet(out / "comparison.parquet", found, identity)
        report = _write_report(out / "comparison.html", found, figures, identity)
        _write_about(out / "about.json", found, policy, jobs)
    except OSError as error:
        raise StoreError(
            f"--out {out}: the table or the report cannot be written ({error.strerror or error}); "
            "every result is kept: make room and run the same command again"
        ) from error
    return report


def _print_results(
    out: Path,
    found: Comparison,
    figures: dict[str, Any],
    report: Path | None,
    *,
    as_json: bool,
) -> None:
    for name, figure in figures["tasks"].items():
        if figure["pool"] and figure["median"] != figure["median"]:  # nan
            output.say(f"{name}: no n*, no regret: no run of its pool has a finite test loss")
    for one in found.skipped:
        output.say(f"left out: {one.method} on {one.task}: {one.reason}")
    if as_json:
        from trimtab.search.comparison.table import result_rows

        left_out = [one._asdict() for one in found.skipped]
        output.print_json({"rows": result_rows(found), "figures": figures, "left_out": left_out})
        return
    _print_figures(figures)
    if figures["cost"]:
        typer.echo(f"{figures['cost']['sentence']}\n")
    typer.echo(f"wrote {(out / 'comparison.parquet').resolve()}")
    if report is not None:
        typer.echo(f"wrote {report.resolve()}")


def _require_table() -> None:
    """Refuse, before anything runs, what would be missing at the end."""
    from importlib.util import find_spec

    if find_spec("pyarrow") is None:
        raise MissingDependencyError(
            "compare needs pyarrow for its table; run: pip install 'trimtab[compare]'"
        )


def _training_seconds(path: str) -> float | None:
    """Return how long a policy was trained, if its file says so."""
    from trimtab.controllers.learned import read_policy_header

    minutes = read_policy_header(path)["about"].get("minutes")
    try:
        return None if minutes is None else 60 * float(minutes)
    except ValueError:
        return None


def _write_about(path: Path, found: Comparison, policy: str, jobs: int) -> None:
    """Write what a table of results needs beside the Parquet file, which holds no time."""
    from trimtab.controllers.learned import read_policy_header
    from trimtab.records.store.encoding import to_json
    from trimtab.records.store.provenance import command_line, machine

    about = {
        "command": command_line(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "jobs": jobs,
        "policy": read_policy_header(policy)["name"],
        "training_seconds": _training_seconds(policy),
        "left_out": [one._asdict() for one in found.skipped],
    }
    path.write_text(to_json(about) + "\n", encoding="utf-8")


def _refuse_beside_suite(options: dict[str, Any]) -> None:
    given = [name for name, value in options.items() if value is not None and value != []]
    if given:
        raise SpecError(f"--suite: it fixes what {given[0]} says as well; give one of the two")


def _plan(
    tasks: Sequence[str] | None,
    methods: str | None,
    seeds: int | None,
    seed: int,
    scales: str | None,
    hyperparameters: str | None,
    variant: str | None,
    pool: int | None,
) -> Plan:
    from trimtab.search.comparison.plan import Plan
    from trimtab.search.methods.base import parse_methods

    if not tasks:
        raise SpecError("compare: no task is named; name one (trimtab tasks), or give --suite fast")
    if len(set(tasks)) < len(tasks):
        raise SpecError(f"compare: {', '.join(tasks)} names a task twice; name each once")
    seeds = _USUAL_SEEDS if seeds is None else seeds
    if seeds < 1 or not 0 <= seed <= options.HIGHEST_SEED + 1 - seeds:
        raise SpecError(
            f"--seeds {seeds} --seed {seed}: give at least 1 seed, from 0 to below "
            f"{options.HIGHEST_SEED + 1}"
        )
    if pool is not None and pool < 0:
        raise SpecError(f"--pool: {pool} is below 0; 0 leaves out regret and n*")
    return Plan(
        tasks=tuple(tasks),
        methods=parse_methods(_USUAL_METHODS if methods is None else methods),
        seeds=tuple(range(seed, seed + seeds)),
        variant=variant,
        starts=None if scales is None else _factors(scales),
        hyperparameters=tuple(options.names("lr" if hyperparameters is None else hyperparameters)),
        pool=pool,
    )


def _with(plan: Plan, windows: Any, policy: tuple[str, str]) -> Plan:
    from dataclasses import replace

    return replace(plan, windows=windows, policy=policy)


def _factors(text: str) -> tuple[float, ...]:
    factors = []
    for part in options.names(text):
        try:
            factor = float(part)
        except ValueError:
            factor = math.nan
        if not (math.isfinite(factor) and factor > 0):
            raise SpecError(f"--start-scale: {part!r} is not a positive number; write 0.01,1,100")
        factors.append(factor)
    if not factors or len(set(factors)) < len(factors):
        raise SpecError(f"--start-scale: {text!r} names no factor, or one twice; write 0.01,1,100")
    return tuple(sorted(factors))


@contextmanager
def _progress() -> Iterator[Callable[[Update], None]]:
    """Show how far a comparison is, and how long it may take still."""
    if sys.stderr.isatty():
        with output.progress_bar() as bar:
            shown = bar.add_task("", total=None, note="preparing …")
            yield lambda update: bar.update(
                shown, completed=update.done, total=update.total, note=update.label
            )
        return
    begun = time.monotonic()
    first: list[int] = []

    def tell(update: Update) -> None:
        first.append(update.done)
        new = update.done - first[0]
        seconds = math.nan
        if new:
            seconds = (time.monotonic() - begun) / new * (update.total - update.done)
        left = output.clock(seconds)
        output.say(f"{update.done}/{update.total} {update.label} | {left} left")

    yield tell


def _write_report(
    path: Path, found: Comparison, figures: dict[str, Any], identity: Any
) -> Path | None:
    """Write the report, unless what it is drawn with is not installed."""
    from trimtab.records.reports.comparison import write_comparison_report
    from trimtab.search.comparison.table import result_rows

    skipped = [(first, second, third) for first, second, third in found.skipped]
    try:
        write_comparison_report(path, result_rows(found), figures, identity, skipped)
    except MissingDependencyError as error:
        output.say(f"no report: {error}")
        return None
    return path


def _print_figures(figures: dict[str, Any]) -> None:
    order = sorted(
        figures["methods"],
        key=lambda label: (figures["regret"].get(label) or {"value": float("inf")})["value"],
    )
    output.print_table(
        ("method", "whole runs", "regret", "n*", "P(trimtab is better)", "seconds"),
        [
            (
                label,
                output.number(figures["spent"][label]),
                _with_interval(figures["regret"].get(label)),
                _with_interval(figures["n_star"].get(label)),
                _with_interval(figures["probability_of_improvement"].get(label)),
                output.number(figures["seconds"][label]),
            )
            for label in order
        ],
        f"{len(figures['tasks'])} task{'s' * (len(figures['tasks']) != 1)}, 95 % intervals",
    )


def _with_interval(figure: dict[str, float] | None) -> str:
    if figure is None:
        return "–"
    return f"{figure['value']:.2f} ({figure['low']:.2f} .. {figure['high']:.2f})"
