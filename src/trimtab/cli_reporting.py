"""`trimtab report`: one run as one HTML file that needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli_output import JSON_HELP, STORE_HELP, print_json, store_or_none

__all__ = ["report", "write_report_of"]


def report(
    run: Annotated[str, typer.Argument(help="A run's number, latest, or a file of JSON lines.")],
    against: Annotated[
        str | None, typer.Option(help="Another run to draw beside it, such as its reference.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write; trimtab-run-N.html without it.")
    ] = None,
    png: Annotated[
        Path | None, typer.Option(help="Write the charts as a picture too, .png or .svg.")
    ] = None,
    store: Annotated[
        str, typer.Option(help=STORE_HELP, envvar="TRIMTAB_STORE")
    ] = "sqlite:///trimtab.db",
    as_json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Write a run's report: one HTML file that opens without a network."""
    path = write_report_of(run, against, store_or_none(store), out, png)
    if as_json:
        picture = None if png is None else str(png.resolve())
        print_json({"report": str(path), "picture": picture})
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
    from trimtab.records.report import write_picture, write_report
    from trimtab.records.store import load_run

    if store is None:
        raise SpecError("--store: none keeps no record to report on; name the store of the run")
    record = load_run(run, store)
    other = None if against is None else load_run(against, store)
    name = Path(run).stem if record.id is None or run.endswith(".jsonl") else f"run-{record.id}"
    path = out or Path(f"trimtab-{name}.html")
    for wanted in (path, png):
        if wanted is not None and not wanted.resolve().parent.is_dir():
            raise SpecError(f"{wanted}: its folder does not exist; create it, or write elsewhere")
    write_report(path, record, other)
    if png is not None:
        write_picture(png, record, other)
    return path.resolve()
