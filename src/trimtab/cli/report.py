"""`trimtab report`: a run or a study as one HTML file that needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trimtab.cli.output import JSON_HELP, STORE_HELP, print_json, store_or_none

__all__ = ["report", "write_report_of"]


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
    store: Annotated[
        str, typer.Option(help=STORE_HELP, envvar="TRIMTAB_STORE")
    ] = "sqlite:///trimtab.db",
    as_json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Write the report of a run or a study: one HTML file that opens without a network."""
    opened = store_or_none(store)
    figures: dict[str, Any] = {}
    if opened is not None and _is_study(run, opened):
        path, figures = _write_study_report(run, against, opened, out, png)
    else:
        path = write_report_of(run, against, opened, out, png)
    if as_json:
        picture = None if png is None else str(png.resolve())
        print_json({"report": str(path), "picture": picture} | figures)
    else:
        typer.echo(f"wrote {path}")


def write_report_of(
    run: str, against: str | None, store: str | None, out: Path | None, png: Path | None = None
) -> Path:
    """Write the report of a run and return where it lies.

    Raises:
        StoreError: A run cannot be read.
        SpecError: The report cannot be written there.
        MissingDependencyError: The extra ``report`` is not installed.
    """
    from trimtab.core.errors import SpecError
    from trimtab.records.reports.page import write_picture, write_report
    from trimtab.records.store.store import load_run

    if store is None:
        raise SpecError("--store: none keeps no record to report on; name the store of the run")
    record = load_run(run, store)
    other = None if against is None else load_run(against, store)
    name = Path(run).stem if record.id is None or run.endswith(".jsonl") else f"run-{record.id}"
    path = out or Path(f"trimtab-{name}.html")
    _require_folders(path, png)
    write_report(path, record, other)
    if png is not None:
        write_picture(png, record, other)
    return path.resolve()


def _is_study(name: str, store: str) -> bool:
    """Whether a name means a study: it can be no run's, or no run has that number."""
    from sqlalchemy import select

    from trimtab.core.errors import unknown_name
    from trimtab.records.store.models import studies
    from trimtab.records.store.store import Store

    if name.strip() == "latest" or Path(name).suffix == ".jsonl":
        return False
    with Store(store) as opened:
        if name.strip().isdigit() and int(name) in opened.run_ids():
            return False
        known = [row["name"] for row in opened.rows(select(studies.c.name))]
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
    from trimtab.core.errors import SpecError
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
    from trimtab.core.errors import SpecError

    for wanted in paths:
        if wanted is not None and not wanted.resolve().parent.is_dir():
            raise SpecError(f"{wanted}: its folder does not exist; create it, or write elsewhere")
