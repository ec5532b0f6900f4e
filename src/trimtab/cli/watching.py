"""`trimtab watch`: a study while it goes on, as a local page that only reads."""

from __future__ import annotations

import os
import platform
from typing import Annotated

import typer

from trimtab.cli.output import JSON_HELP, print_json, say, store_or_none

__all__ = ["watch"]


def watch(
    study: Annotated[str, typer.Argument(help="Name of a study (trimtab studies).")],
    store: Annotated[
        str,
        typer.Option(help="Database URL or SQLite file of the studies.", envvar="TRIMTAB_STORE"),
    ] = "sqlite:///trimtab.db",
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes one that is free.")] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Show a study while it goes on, on a page of this machine that only reads; Ctrl-C ends it."""
    from trimtab.core.errors import SpecError
    from trimtab.records.reports.watch import WatchServer

    opened = store_or_none(store)
    if opened is None:
        raise SpecError("--store: none keeps no study to watch; name the store of the study")
    try:
        with WatchServer(study, opened, port) as server:
            if as_json:
                print_json({"study": study, "url": server.url})
            else:
                typer.echo(f"{study}: {server.url} (Ctrl-C ends)")
            if browser and not as_json and _has_screen():
                import webbrowser

                webbrowser.open(server.url)
            server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        say("trimtab: no longer watching")


def _has_screen() -> bool:
    """Whether a browser can be opened; one that runs in the terminal would take that over."""
    if platform.system() == "Linux":
        return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return True
