"""`trimtab tune`, `studies`, `resume` and `gc`: more than one run, and what is kept of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli import options, output
from trimtab.core.hyperparameters import hyperparameter
from trimtab.core.protocols import Task
from trimtab.core.spec import ControlSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from trimtab.search.study.coordinator import StudyProgress, TuneResult

_Jobs = Annotated[int, typer.Option(help="Runs at a time.")]
_EngineName = Annotated[str, typer.Option(help="local or ray.")]
_Address = Annotated[
    str | None, typer.Option(help="Address of a running Ray cluster; for --engine ray.")
]
_Cpus = Annotated[float, typer.Option(help="Cores of each run.")]
_Gpus = Annotated[
    float | None, typer.Option(help="Accelerators of each run; all are shared out by default.")
]


def tune(
    context: typer.Context,
    task: options.TaskName,
    variant: options.Variant = None,
    budget: Annotated[float, typer.Option(help="Whole runs to spend in all.")] = 4,
    method: Annotated[str, typer.Option(help="trimtab, or a name of trimtab methods.")] = "trimtab",
    seed: options.Seed = 0,
    jobs: _Jobs = 1,
    engine: _EngineName = "local",
    address: _Address = None,
    cpus: _Cpus = 1.0,
    gpus: _Gpus = None,
    store: options.StudyStore = options.DEFAULT_STORE,
    study: Annotated[
        str | None,
        typer.Option(help="Name to go on by; made of task, method and seed if left out."),
    ] = None,
    stop_when_gain_below: Annotated[
        float | None,
        typer.Option(help="End when one more run is expected to gain less than this."),
    ] = None,
    policy: options.Policy = options.DEFAULT_POLICY,
    hyperparameters: options.Steered = "lr",
    vary: Annotated[
        str, typer.Option(help="What restarts choose anew beside the learning rate, by commas.")
    ] = "",
    start: options.Start = None,
    start_scale: options.StartScale = None,
    decisions: Annotated[int, typer.Option(help="How often the policy decides in a run.")] = 20,
    objectives: Annotated[
        str, typer.Option(help="Of the Pareto set: loss, seconds, spent or a metric.")
    ] = "loss",
    sampler: Annotated[
        str | None, typer.Option(help="Who proposes static choices: optuna, hyperopt or random.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Spend a budget of several runs on a task: restarts, forks, and runs stopped early."""
    options.one_thread()
    from trimtab.search.engines.base import Resources
    from trimtab.search.study.tune import tune as spend
    from trimtab.search.study.tune import usual_study_name

    options.require_seed(seed)
    found = options.find_task(task, variant)
    begun = _starts(found, options.names(hyperparameters), start, start_scale)
    output.say_notice(found)
    if options.is_given(context, "decisions"):
        spec = _spec(method, policy, decisions)
        output.say_fewer_decisions(decisions, [(task, spec, found.total_steps)])
    called = study or usual_study_name(found.name, method, seed)
    result = _interruptible(
        called,
        store,
        lambda tell: spend(
            task,
            method=method,
            budget=budget,
            seed=seed,
            jobs=jobs,
            store=_required(store),
            study=called,
            engine=engine,
            address=address,
            resources=Resources(cpus, gpus),
            variant=variant,
            hyperparameters=options.names(hyperparameters),
            start=begun,
            vary=options.names(vary),
            policy=policy,
            decisions=decisions,
            objectives=options.names(objectives),
            stop_when_gain_below=stop_when_gain_below,
            sampler=sampler,
            progress=tell,
        ),
    )
    _print_result(result, found.monitor, as_json=as_json)


def _spec(method: str, policy: str, decisions: int) -> ControlSpec:
    """Return the spec that a study's runs take their rhythm from."""
    from trimtab.defaults import controller_for
    from trimtab.search.methods.base import DecisionSchedule

    if method != "trimtab":
        return DecisionSchedule(decisions).spec()
    return controller_for(policy, [hyperparameter("lr")], decisions=decisions)[0]


def _starts(
    task: Task, steered: list[str], start: list[str] | None, scale: float | None
) -> dict[str, float]:
    """Return the start values that differ from a task's own."""
    items, held = options.start_values(task, steered, options.assignments(start or []), scale)
    offered = {item.name: item.default for item in task.hyperparameters}
    return {one.name: one.default for one in items if one.default != offered[one.name]} | held


def resume(
    study: options.StudyName,
    jobs: _Jobs = 1,
    engine: _EngineName = "local",
    address: _Address = None,
    cpus: _Cpus = 1.0,
    gpus: _Gpus = None,
    store: options.StudyStore = options.DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """Go on with a study up to its budget; print the result of one that is finished."""
    options.one_thread()
    from trimtab.records.store.studies import Studies
    from trimtab.search.engines.base import Resources
    from trimtab.search.study.tune import resume as go_on

    with Studies(_required(store), create=False) as opened:
        record = opened.study(study)
    found = options.find_task(record.task, record.settings.get("variant"))
    result = _interruptible(
        study,
        store,
        lambda tell: go_on(
            study,
            store=store,
            jobs=jobs,
            engine=engine,
            address=address,
            resources=Resources(cpus, gpus),
            progress=tell,
        ),
    )
    _print_result(result, found.monitor, as_json=as_json)


def studies(
    store: options.StudyStore = options.DEFAULT_STORE, as_json: options.AsJson = False
) -> None:
    """List the studies of a store, the newest first."""
    from trimtab.records.store.studies import Studies, status_now

    with Studies(_required(store), create=False) as opened:
        rows: list[dict[str, Any]] = []
        for one in opened.all():
            units = opened.units(one)
            rows.append(
                {
                    "study": one.name,
                    "task": one.task,
                    "method": one.method,
                    "seed": one.seed,
                    "status": status_now(one, (unit.owner for unit in units)),
                    "budget": one.budget,
                    "spent": sum(float(unit.outcome.get("spent") or 0) for unit in units),
                    "units": len(units),
                    "done": sum(unit.is_over for unit in units),
                    "validation": one.summary.get("validation"),
                    "created_at": one.created_at,
                }
            )
    if as_json:
        output.print_json(rows)
        return
    table = [
        (
            row["study"],
            row["task"],
            row["method"],
            row["status"],
            f"{output.number(row['spent'])} of {output.number(row['budget'])}",
            f"{row['done']} of {row['units']}",
            output.number(row["validation"]),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(float(row["created_at"]))),
        )
        for row in rows
    ]
    head = ("study", "task", "method", "status", "spent", "units", "validation", "created")
    output.print_table(head, table, "1 study" if len(rows) == 1 else f"{len(rows)} studies")


def gc(
    study: Annotated[
        str | None, typer.Argument(help="Name of a study; all of the store if left out.")
    ] = None,
    store: options.StudyStore = options.DEFAULT_STORE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Remove snapshots that nothing needs: of finished studies all but the best weights."""
    from trimtab.records.store.studies import Studies
    from trimtab.search.study.garbage import collect

    with Studies(_required(store), create=False) as opened:
        wanted = opened.all() if study is None else [opened.study(study)]
        collected = [collect(opened, one, dry_run=dry_run) for one in wanted]
    rows = [
        {"study": f.study, "bytes": f.size, "files": [str(p) for p in f.files], "kept": f.kept}
        for f in collected
    ]
    if as_json:
        output.print_json({"dry_run": dry_run, "studies": rows})
        return
    table = [(f.study, len(f.files), f"{f.size / 1e6:.1f} MB", f.kept) for f in collected]
    verb = "Would be removed" if dry_run else "Removed"
    output.print_table(("study", "files", "size", "snapshots kept"), table, verb)


def _required(store: str) -> str:
    words = "a study needs a store to go on from; name a file or database"
    return options.required_store(store, words)


def _interruptible(
    study: str, store: str, work: Callable[[Callable[[StudyProgress], None]], TuneResult]
) -> TuneResult:
    """Do the work; on Ctrl-C say how to go on."""

    def tell(now: StudyProgress) -> None:
        best = output.number(now.best)
        output.say(
            f"{now.study}: {now.done} of {now.known} units, {now.spent:.2f} of {now.budget:g} "
            f"whole runs, best {best}"
        )

    how = f"; trimtab resume {study}{options.store_again(store)} goes on"
    with output.interruptible(lambda: how):
        return work(tell)


def _print_result(result: TuneResult, monitor: str, *, as_json: bool) -> None:
    if as_json:
        output.print_json(result.to_dict())
        return
    rows = [
        (
            row["place"],
            row["kind"],
            "" if row["parent"] is None else f"{row['parent']} at decision {row['fork_decision']}",
            ", ".join(f"{name}={_shown(value)}" for name, value in row["choices"].items()),
            row["status"],
            output.number(row["validation"]),
            output.number(row["spent"]),
        )
        for row in result.runs
    ]
    head = ("unit", "kind", "forked from", "choices", "status", f"validation {monitor}", "spent")
    output.print_table(head, rows, f"Study {result.study}")
    if result.best is None:
        typer.echo("no run gave a finite value")
        return
    chosen = ", ".join(f"{name}={_shown(value)}" for name, value in result.best.choices.items())
    validation = output.number(result.best.validation)
    test = output.number(result.best.test.get(monitor))
    typer.echo(
        f"best: {chosen}; {monitor} {validation} on validation, {test} on test; "
        f"{result.spent:.2f} whole runs"
    )


def _shown(value: Any) -> str:
    return output.number(value) if isinstance(value, int | float) else str(value)
