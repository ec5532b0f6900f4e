"""`trimtab init`: a task to start from."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli import options, output
from trimtab.core.errors import SpecError


def init(
    file: Annotated[Path, typer.Argument(help="File to write; it must not exist.")] = Path(
        "own_task.py"
    ),
    as_json: options.AsJson = False,
) -> None:
    """Write a task that runs as it stands, to be changed into your own."""
    from trimtab.records.array_files import write_whole

    if file.suffix != ".py":
        raise SpecError(f"{file}: a task is a file of Python; give a name that ends in .py")
    if not file.absolute().parent.is_dir():
        raise SpecError(f"{file}: its folder does not exist; create it, or write elsewhere")
    text = resources.files("trimtab.cli").joinpath("own_task.py.txt").read_text(encoding="utf-8")
    if file.exists() or file.is_symlink():
        raise SpecError(f"{file} exists; give another name, or move it away")
    try:
        write_whole(file, text.replace("own_task.py:make", f"{file}:make").encode())
    except OSError as error:
        raise SpecError(
            f"{file} cannot be written ({error.strerror or error}); write elsewhere"
        ) from error
    if as_json:
        output.print_json({"file": str(file.resolve()), "task": f"{file}:make"})
    else:
        typer.echo(f"wrote {file}; try: trimtab run {file}:make")
