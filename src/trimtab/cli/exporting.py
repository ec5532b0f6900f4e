"""`trimtab export`: a run's schedule as plain numbers and code that replay it without trimtab."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli.output import JSON_HELP, STORE_HELP, folder, names, print_json, store_or_none

__all__ = ["export"]


def export(
    run: Annotated[str, typer.Argument(help="A run's number, latest, or a file of JSON lines.")],
    to: Annotated[
        str, typer.Option(help="Any of json, torch, keras, transformers, optax, by commas.")
    ] = "json",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the files; trimtab-run-N without it.", parser=folder, metavar="<path>"
        ),
    ] = None,
    all_steps: Annotated[
        bool, typer.Option("--all-steps", help="Keep the steps that were undone as well.")
    ] = False,
    store: Annotated[
        str, typer.Option(help=STORE_HELP, envvar="TRIMTAB_STORE")
    ] = "sqlite:///trimtab.db",
    as_json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Write a run's schedule as files that replay it without trimtab."""
    from trimtab.core.errors import SpecError
    from trimtab.records.export.export import export_run
    from trimtab.records.store.store import load_run

    kept = store_or_none(store)
    if kept is None:
        raise SpecError("--store: none keeps no record to export; name the store of the run")
    record = load_run(run, kept)
    name = Path(run).stem if record.id is None or run.endswith(".jsonl") else f"run-{record.id}"
    into = out or Path(f"trimtab-{name}" if not name.startswith("trimtab-") else name)
    paths = export_run(record, names(to), into, all_steps=all_steps)
    if as_json:
        print_json({"files": {target: str(path.resolve()) for target, path in paths.items()}})
    else:
        for path in paths.values():
            typer.echo(f"wrote {path}")
