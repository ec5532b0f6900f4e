"""`trimtab tune`, `studies`, `resume` and `gc`: more than one run, and what is kept of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli.output import (
    JSON_HELP,
    assignments,
    find_task,
    is_given,
    names,
    number,
    one_thread,
    print_json,
    print_table,
    say,
    say_fewer_decisions,
    start_values,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from trimtab.core.protocols import Task
    from trimtab.core.spec import ControlSpec
    from trimtab.search.engines.base import Resources
    from trimtab.search.study.coordinator import StudyProgress, TuneResult

_STORE_HELP = "Database URL or SQLite file of the studies."
_DEFAULT_STORE = "sqlite:///trimtab.db"

_Jobs = Annotated[int, typer.Option(help="Runs at a time.")]
_EngineName = Annotated[str, typer.Option(help="local or ray.")]
_Address = Annotated[
    str | None, typer.Option(help="Address of a running Ray cluster; for --engine ray.")
]
_Store = Annotated[str, typer.Option(help=_STORE_HELP, envvar="TRIMTAB_STORE")]
_Cpus = Annotated[float, typer.Option(help="Cores of each run.")]
_Gpus = Annotated[
    float | None, typer.Option(help="Accelerators of each run; all are shared out by default.")
]
_AsJson = Annotated[bool, typer.Option("--json", help=JSON_HELP)]
# What only tune takes.
_TaskName = Annotated[str, typer.Argument(help="A task's name (trimtab tasks) or module:factory.")]
_Variant = Annotated[str | None, typer.Option(help="Size of the task: tiny, small or default.")]
_Budget = Annotated[float, typer.Option(help="Whole runs to spend in all.")]
_Method = Annotated[str, typer.Option(help="trimtab, or a name of trimtab methods.")]
_Seed = Annotated[int, typer.Option(help="Of the runs and of what is drawn.")]
_StudyName = Annotated[
    str | None, typer.Option(help="Name to go on by; made of task, method and seed if left out.")
]
_Gain = Annotated[
    float | None, typer.Option(help="End when one more run is expected to gain less than this.")
]
_Policy = Annotated[str, typer.Option(help="A policy's name, or a policy file.")]
_Steered = Annotated[str, typer.Option(help="What is steered, separated by commas.")]
_Varied = Annotated[
    str, typer.Option(help="What restarts choose anew beside the learning rate, by commas.")
]
_Start = Annotated[
    list[str] | None,
    typer.Option(help="Start values of the first run, such as lr=1e-5; may be repeated."),
]
_StartScale = Annotated[
    float | None, typer.Option(help="Start at this factor times the task's tuned learning rate.")
]
_Decisions = Annotated[int, typer.Option(help="How often the policy decides in a run.")]
_Objectives = Annotated[
    str, typer.Option(help="Of the Pareto set: loss, seconds, spent or a metric.")
]
_Sampler = Annotated[
    str | None, typer.Option(help="Who proposes static choices: optuna, hyperopt or random.")
]


def tune(
    context: typer.Context,
    task: _TaskName,
    variant: _Variant = None,
    budget: _Budget = 4,
    method: _Method = "trimtab",
    seed: _Seed = 0,
    jobs: _Jobs = 1,
    engine: _EngineName = "local",
    address: _Address = None,
    cpus: _Cpus = 1.0,
    gpus: _Gpus = None,
    store: _Store = _DEFAULT_STORE,
    study: _StudyName = None,
    stop_when_gain_below: _Gain = None,
    policy: _Policy = "trimtab-1",
    hyperparameters: _Steered = "lr",
    vary: _Varied = "",
    start: _Start = None,
    start_scale: _StartScale = None,
    decisions: _Decisions = 20,
    objectives: _Objectives = "loss",
    sampler: _Sampler = None,
    as_json: _AsJson = False,
) -> None:
    """Spend a budget of several runs on a task: restarts, forks, and runs stopped early."""
    one_thread()
    from trimtab.search.study.tune import tune as spend
    from trimtab.search.study.tune import usual_study_name

    found = find_task(task, variant)
    begun = _starts(found, names(hyperparameters), start, start_scale)
    if notice := getattr(found, "notice", ""):
        say(str(notice))
    if is_given(context, "decisions"):
        spec = _spec(method, policy, decisions)
        say_fewer_decisions(decisions, [(task, spec, found.total_steps)])
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
            resources=_resources(cpus, gpus),
            variant=variant,
            hyperparameters=names(hyperparameters),
            start=begun,
            vary=names(vary),
            policy=policy,
            decisions=decisions,
            objectives=names(objectives),
            stop_when_gain_below=stop_when_gain_below,
            sampler=sampler,
            progress=tell,
        ),
    )
    _print_result(result, found.monitor, as_json=as_json)


def _spec(method: str, policy: str, decisions: int) -> ControlSpec:
    """Return the spec that a study's runs take their rhythm from."""
    from trimtab.core.hyperparameters import hyperparameter
    from trimtab.defaults import controller_for
    from trimtab.search.methods.base import DecisionSchedule

    if method != "trimtab":
        return DecisionSchedule(decisions).spec()
    return controller_for(policy, [hyperparameter("lr")], decisions=decisions)[0]


def _starts(
    task: Task, steered: list[str], start: list[str] | None, scale: float | None
) -> dict[str, float]:
    """Return the start values that differ from a task's own."""
    items, held = start_values(task, steered, assignments(start or []), scale)
    offered = {item.name: item.default for item in task.hyperparameters}
    return {one.name: one.default for one in items if one.default != offered[one.name]} | held


def resume(
    study: Annotated[str, typer.Argument(help="Name of a study (trimtab studies).")],
    jobs: _Jobs = 1,
    engine: _EngineName = "local",
    address: _Address = None,
    cpus: _Cpus = 1.0,
    gpus: _Gpus = None,
    store: _Store = _DEFAULT_STORE,
    as_json: _AsJson = False,
) -> None:
    """Go on with a study up to its budget; print the result of one that is finished."""
    one_thread()
    from trimtab.records.store.studies import Studies
    from trimtab.search.study.tune import resume as go_on

    with Studies(_required(store), create=False) as opened:
        record = opened.study(study)
    found = find_task(record.task, record.settings.get("variant"))
    result = _interruptible(
        study,
        store,
        lambda tell: go_on(
            study,
            store=store,
            jobs=jobs,
            engine=engine,
            address=address,
            resources=_resources(cpus, gpus),
            progress=tell,
        ),
    )
    _print_result(result, found.monitor, as_json=as_json)


def studies(store: _Store = _DEFAULT_STORE, as_json: _AsJson = False) -> None:
    """List the studies of a store, the newest first."""
    from trimtab.records.store.studies import Studies

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
                    "status": _status(one.status, [unit.owner for unit in units if unit.owner]),
                    "budget": one.budget,
                    "spent": sum(float(unit.outcome.get("spent") or 0) for unit in units),
                    "units": len(units),
                    "done": sum(unit.is_over for unit in units),
                    "validation": one.summary.get("validation"),
                    "created_at": one.created_at,
                }
            )
    if as_json:
        print_json(rows)
        return
    table = [
        (
            row["study"],
            row["task"],
            row["method"],
            row["status"],
            f"{number(row['spent'])} of {number(row['budget'])}",
            f"{row['done']} of {row['units']}",
            number(row["validation"]),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(float(row["created_at"]))),
        )
        for row in rows
    ]
    head = ("study", "task", "method", "status", "spent", "units", "validation", "created")
    print_table(head, table, "1 study" if len(rows) == 1 else f"{len(rows)} studies")


def _status(status: str, owners: list[str]) -> str:
    """Return a study's status; one that runs nowhere on this host is interrupted."""
    from trimtab.records.store.studies import is_gone

    if status == "running" and owners and all(map(is_gone, owners)):
        return "interrupted"
    return status


def gc(
    study: Annotated[
        str | None, typer.Argument(help="Name of a study; all of the store if left out.")
    ] = None,
    store: _Store = _DEFAULT_STORE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")
    ] = False,
    as_json: _AsJson = False,
) -> None:
    """Remove snapshots that nothing needs: of finished studies all but the best weights."""
    from trimtab.records.store.studies import Studies
    from trimtab.search.study.garbage import collect

    with Studies(_required(store), create=False) as opened:
        wanted = opened.all() if study is None else [opened.study(study)]
        freed = [collect(opened, one, dry_run=dry_run) for one in wanted]
    rows = [
        {"study": f.study, "bytes": f.size, "files": [str(p) for p in f.files], "kept": f.kept}
        for f in freed
    ]
    if as_json:
        print_json({"dry_run": dry_run, "studies": rows})
        return
    table = [(f.study, len(f.files), f"{f.size / 1e6:.1f} MB", f.kept) for f in freed]
    verb = "Would be removed" if dry_run else "Removed"
    print_table(("study", "files", "size", "snapshots kept"), table, verb)


def _required(store: str) -> str:
    from trimtab.core.errors import SpecError

    if store.strip().lower() == "none":
        raise SpecError("--store: a study needs a store to go on from; name a file or database")
    return store


def _resources(cpus: float, gpus: float | None) -> Resources:
    from trimtab.search.engines.base import Resources

    return Resources(cpus, gpus)


def _interruptible(
    study: str, store: str, work: Callable[[Callable[[StudyProgress], None]], TuneResult]
) -> TuneResult:
    """Do the work; on Ctrl-C say how to go on."""

    def tell(now: StudyProgress) -> None:
        best = number(now.best)
        say(
            f"{now.study}: {now.done} of {now.known} units, {now.spent:.2f} of {now.budget:g} "
            f"whole runs, best {best}"
        )

    try:
        return work(tell)
    except KeyboardInterrupt:
        where = "" if store == _DEFAULT_STORE else f" --store {store}"
        say(f"trimtab: interrupted; trimtab resume {study}{where} goes on")
        raise typer.Exit(130) from None


def _print_result(result: TuneResult, monitor: str, *, as_json: bool) -> None:
    if as_json:
        print_json(result.to_dict())
        return
    rows = [
        (
            row["place"],
            row["kind"],
            "" if row["parent"] is None else f"{row['parent']} at decision {row['fork_decision']}",
            ", ".join(f"{name}={_shown(value)}" for name, value in row["choices"].items()),
            row["status"],
            number(row["validation"]),
            number(row["spent"]),
        )
        for row in result.runs
    ]
    head = ("unit", "kind", "forked from", "choices", "status", f"validation {monitor}", "spent")
    print_table(head, rows, f"Study {result.study}")
    if result.best is None:
        typer.echo("no run gave a finite value")
        return
    chosen = ", ".join(f"{name}={_shown(value)}" for name, value in result.best.choices.items())
    test = number(result.best.test.get(monitor))
    typer.echo(
        f"best: {chosen}; {monitor} {number(result.best.validation)} on validation, {test} on "
        f"test; {result.spent:.2f} whole runs"
    )


def _shown(value: Any) -> str:
    return number(value) if isinstance(value, int | float) else str(value)
