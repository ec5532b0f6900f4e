"""`trimtab replay`: a batch that an event blames, run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli import options, output
from trimtab.core.errors import SpecError


def replay(
    event: Annotated[Path, typer.Argument(help="A file that save_batch=True wrote.")],
    training: Annotated[
        str,
        typer.Argument(
            help="file.py:make or module:make; make() returns the model and a function from a "
            "batch to its loss."
        ),
    ],
    as_json: options.AsJson = False,
) -> None:
    """Run the batch of an event again, with the random state that it had."""
    from trimtab.adapters.torch.saved_batch import read_event, run_again
    from trimtab.core.registry import load_object

    told = read_event(event)
    made = load_object("training", training)()
    if not (isinstance(made, tuple) and len(made) == 2):
        raise SpecError(
            f"{training} returned {type(made).__name__}; return (model, loss_of), where "
            "loss_of(batch) is the loss"
        )
    again = run_again(event, *made)
    if as_json:
        output.print_json({"event": told.to_dict()} | again._asdict())
        return
    typer.echo(told.sentence())
    where = f"first not finite in the output of {again.first_not_finite}"
    typer.echo(
        f"again: loss {again.loss:.6g}, gradient norm {again.gradient_norm:.6g}; "
        + (where if again.first_not_finite else "all outputs are finite")
    )
