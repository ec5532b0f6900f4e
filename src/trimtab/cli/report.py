"""`trimtab report`, `export` and `watch`: what was recorded, to be looked at or replayed."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from trimtab.cli import options, output
from trimtab.core.errors import SpecError, UnknownNameError, unknown_name

if TYPE_CHECKING:
    from trimtab.records.reports.run_story import Grounds
    from trimtab.records.store.rows import RunRecord


def report(
    run: Annotated[
        str,
        typer.Argument(help="A run's number, latest, a file of JSON lines, or a study's name."),
    ],
    against: Annotated[
        str | None, typer.Option(help="Another run to draw beside it, such as its reference.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write; trimtab-run-N.html or trimtab-STUDY.html without it."),
    ] = None,
    png: Annotated[
        Path | None, typer.Option(help="Write the charts as a picture too, .png or .svg.")
    ] = None,
    store: options.Store = options.DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """Write the report of a run or a study: one HTML file that opens without a network."""
    words = "none keeps no record to report on; name the store of the run"
    opened = options.required_store(store, words)
    figures: dict[str, Any] = {}
    if _is_study(run, opened):
        path, figures = _write_study_report(run, against, opened, out, png)
    else:
        path = write_report_of(run, against, opened, out, png)
    if as_json:
        picture = None if png is None else str(png.resolve())
        output.print_json({"report": str(path), "picture": picture} | figures)
    else:
        typer.echo(f"wrote {path}")


def write_report_of(
    run: str, against: str | None, store: str, out: Path | None, png: Path | None = None
) -> Path:
    """Write the report of a run and return where it lies.

    Raises:
        StoreError: A run cannot be read.
        SpecError: The report cannot be written there.
        MissingDependencyError: The extra ``report`` is not installed.
    """
    from trimtab.records.reports.run import write_picture, write_report
    from trimtab.records.store.store import load_run

    record = load_run(run, store)
    other = None if against is None else load_run(against, store)
    path = out or Path(f"trimtab-{_name_of(run, record)}.html")
    _require_folders(path, png)
    write_report(path, record, other, grounds_of(record))
    if png is not None:
        write_picture(png, record, other)
    return path.resolve()


def grounds_of(record: RunRecord) -> list[Grounds | None]:
    """Return what each decision of a run rests on; empty where its policy is not at hand.

    Whether it is the policy that decided shows in its answers, which have to be the recorded ones.
    """
    from trimtab.controllers.learned import LearnedController, read_policy
    from trimtab.controllers.occlusion import explain
    from trimtab.core.errors import TrimtabError
    from trimtab.core.spec import ControlSpec
    from trimtab.defaults import policy_path
    from trimtab.records.reports.run_story import Grounds

    # Where a note stands without an action, the policy was not asked.
    asked = [item for item in record.decisions if item.action is not None or not item.note]
    try:
        policy = LearnedController(read_policy(policy_path(str(record.head["policy"]))))
        spec = ControlSpec.from_json(json.dumps(record.head["spec"]))
        policy.reset(seed=0)
        answers = [policy.act(item.observation.copy()) for item in asked]
        known = [(i.action, a) for i, a in zip(asked, answers, strict=True) if i.action is not None]
        if not known or any(not np.allclose(had, now, atol=1e-4) for had, now in known):
            return []
        found = explain(policy, spec, [item.observation for item in asked])
    except (TrimtabError, OSError, ValueError, LookupError):
        return []
    names = [item.name for item in spec.hyperparameters]
    rows = {
        item.decision: Grounds(
            {name: each.probabilities[h].tolist() for h, name in enumerate(names)},
            {
                name: {group: float(sizes[h]) for group, sizes in each.effects.items()}
                for h, name in enumerate(names)
            },
        )
        for item, each in zip(asked, found, strict=True)
    }
    return [rows.get(item.decision) for item in record.decisions]


def _name_of(run: str, record: RunRecord) -> str:
    """Return what files of a run are called: after its number, or the file it was read from."""
    return Path(run).stem if record.id is None or run.endswith(".jsonl") else f"run-{record.id}"


def _is_study(name: str, store: str) -> bool:
    """Whether a name means a study: it can be no run's, or no run has that number."""
    from trimtab.records.store.store import Store

    if name.strip() == "latest" or Path(name).suffix == ".jsonl":
        return False
    with Store(store) as opened:
        if name.strip().isdigit() and int(name) in opened.run_ids():
            return False
        known = opened.study_names()
    if name not in known and not name.strip().isdigit():
        raise unknown_name("run or study", name, ["latest", *known])
    return name in known


def _write_study_report(
    name: str, against: str | None, store: str, out: Path | None, png: Path | None
) -> tuple[Path, dict[str, Any]]:
    """Write the report of a study; return where it lies, and the study's figures.

    Raises:
        SpecError: A run is given to be drawn beside it, or the report cannot be written there.
        StoreError: The study cannot be read.
        MissingDependencyError: The extra ``report`` is not installed.
    """
    from trimtab.records.reports.study import (
        read_study_report,
        study_figures,
        write_study_picture,
        write_study_report,
    )

    if against is not None:
        raise SpecError(f"--against: {name} is a study; leave it out, or report on two runs")
    path = out or Path(f"trimtab-{name}.html")
    _require_folders(path, png)
    found = read_study_report(name, store)
    write_study_report(path, found)
    if png is not None:
        write_study_picture(png, found)
    return path.resolve(), study_figures(found)


def _require_folders(*paths: Path | None) -> None:
    for wanted in paths:
        if wanted is not None and not wanted.resolve().parent.is_dir():
            raise SpecError(f"{wanted}: its folder does not exist; create it, or write elsewhere")


def export(
    run: Annotated[
        str,
        typer.Argument(
            help="A run's number, latest, a study's name (its best run), best (that of the newest "
            "study), or a file of JSON lines."
        ),
    ],
    to: Annotated[
        str, typer.Option(help="Any of json, torch, keras, transformers, optax, by commas.")
    ] = "json",
    out: Annotated[
        Path | None, options.folder_option("Folder of the files; trimtab-run-N without it.")
    ] = None,
    all_steps: Annotated[
        bool, typer.Option("--all-steps", help="Keep the steps that were undone as well.")
    ] = False,
    store: options.Store = options.DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """Write a run's schedule as files that replay it without trimtab."""
    from trimtab.records.export.export import export_run

    words = "none keeps no record to export; name the store of the run"
    record = _run_or_best(run, options.required_store(store, words))
    name = _name_of(run, record)
    into = out or Path(f"trimtab-{name}" if not name.startswith("trimtab-") else name)
    paths = export_run(record, options.names(to), into, all_steps=all_steps)
    if as_json:
        output.print_json(
            {"files": {target: str(path.resolve()) for target, path in paths.items()}}
        )
    else:
        for path in paths.values():
            typer.echo(f"wrote {path}")


def _run_or_best(name: str, store: str) -> RunRecord:
    """Return a run, or the best run of a study with all that was decided before it was forked.

    Raises:
        UnknownNameError: There is no run or study of that name, or no study for ``best``.
        SpecError: The study has no run yet.
        StoreError: The store cannot be read.
    """
    from trimtab.records.reports.study import read_study_report
    from trimtab.records.store.store import Store, load_run

    if name.strip() == "best":
        with Store(store) as opened:
            studies = opened.study_names()
        if not studies:
            raise UnknownNameError(
                "best: the store has no study, and of single runs none is called the best; give a "
                "run's number (trimtab runs), or latest"
            )
        name = studies[-1]
    elif not _is_study(name, store):
        return load_run(name, store)
    study = read_study_report(name, store)
    path = [one.run for one in study.view.best_path if one.run is not None]
    if not path:
        raise SpecError(f"study {name}: no run has finished yet; try again later")
    return study.winner or load_run(str(path[-1]), store)  # none: nothing was decided in it


def runs(
    last: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 20,
    store: options.Store = options.DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """List the runs of a store, the newest first."""
    from trimtab.records.store.store import Store

    with Store(options.required_store(store, "none keeps no record to list")) as opened:
        records = opened.runs(limit=last)
    rows = [
        {
            "run": record.id,
            "task": record.head["task"],
            "policy": record.head["policy"],
            "seed": record.head["seed"],
            "status": record.status,
            "best": dict(record.figures.get("best") or {}),
            "started_at": record.head["started_at"],
        }
        for record in records
    ]
    if as_json:
        output.print_json(rows)
        return
    if not rows:
        output.say("no run yet; trimtab run TASK makes one")
    output.print_table(
        ("run", "task", "policy", "seed", "status", "best", "begun"),
        [
            (
                row["run"],
                row["task"],
                row["policy"],
                row["seed"],
                row["status"],
                ", ".join(
                    f"{key} {output.number(value)}"
                    for key, value in row["best"].items()
                    if key != "examples"
                ),
                time.strftime("%Y-%m-%d %H:%M", time.localtime(float(row["started_at"]))),
            )
            for row in rows
        ],
    )


def watch(
    study: options.StudyName,
    store: options.StudyStore = options.DEFAULT_STORE,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes one that is free.")] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")
    ] = True,
    as_json: options.AsJson = False,
) -> None:
    """Show a study while it goes on, on a page of this machine that only reads; Ctrl-C ends it."""
    from trimtab.records.reports.watch import WatchServer

    words = "none keeps no study to watch; name the store of the study"
    opened = options.required_store(store, words)
    try:
        with WatchServer(study, opened, port) as server:
            if as_json:
                output.print_json({"study": study, "url": server.url})
            else:
                typer.echo(f"{study}: {server.url} (Ctrl-C ends)")
            if browser and not as_json and _has_screen():
                import webbrowser

                webbrowser.open(server.url)
            server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        output.say("trimtab: no longer watching")


def _has_screen() -> bool:
    """Whether a browser can be opened; one that runs in the terminal would take that over."""
    if platform.system() == "Linux":
        return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return True
