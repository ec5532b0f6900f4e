"""The command line: what `trimtab COMMAND` does, and how it ends.

Every command takes ``--json``: one JSON document on standard output, progress on standard error.
Exit status 0: done; 2: what was asked for is wrong (an option, a name, a value, a policy file);
1: it failed on the way; 130: interrupted with Ctrl-C. An error is one line on standard error;
``--debug`` anywhere on the line adds the traceback.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from trimtab.cli import compare, demo, init, learn, lists, replay, report, run, tune
from trimtab.core.errors import (
    PolicyFileError,
    SpecError,
    TrimtabError,
    UnknownNameError,
    noted_task,
)


class _Commands(TyperGroup):
    """All commands; Ctrl-C in one that does not say itself how to go on is told here."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _say("interrupted")
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    name="trimtab",
    help="Steer the hyperparameters of a fine-tuning run while it goes on.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

app.command("run", short_help="Fine-tune once, steered or not.")(run.run)
app.command("compare", short_help="Compare methods at equal compute.")(compare.compare)
app.command("tune", short_help="Spend the budget of several runs.")(tune.tune)
app.command("runs", short_help="List the runs of a store.")(report.runs)
app.command("studies", short_help="List the studies of a store.")(tune.studies)
app.command("resume", short_help="Go on with a study.")(tune.resume)
app.command("watch", short_help="Show a study while it goes on.")(report.watch)
app.command("gc", short_help="Remove snapshots that nothing needs.")(tune.gc)
app.command("report", short_help="Write the report of a run or study.")(report.report)
app.command("export", short_help="Write a run's schedule as plain code.")(report.export)
app.command("replay", short_help="Run the batch of an event again.")(replay.replay)
app.command("init", short_help="Write a task to start from.")(init.init)
app.command("demo", short_help="Fine-tune twice from a wrong start.")(demo.demo)
app.command("tasks", short_help="List tasks, metrics and licences.")(lists.tasks)
app.command("methods", short_help="List the ways to choose hyperparameters.")(compare.methods)
app.command("policies", short_help="List the policies that are installed.")(lists.policies)
app.command("doctor", short_help="Say what this installation has.")(lists.doctor)
app.command("learn", short_help="Meta-train a policy on simulated runs.")(learn.learn)
app.command("evaluate", short_help="Find out what a policy is worth.")(learn.evaluate)

# Typer brings its own copy of Click in newer versions, so the class is found by its name.
_ClickError = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WRONG_REQUEST = (SpecError, UnknownNameError, PolicyFileError)


def _print_version(wanted: bool) -> None:
    if wanted:
        from trimtab import __version__

        typer.echo(f"trimtab {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Steer the hyperparameters of a fine-tuning run while it goes on."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line and exit with its status.

    Args:
        arguments: Without the program's name; None for those of this process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    command = typer.main.get_command(app)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            status = command.main(
                args=[item for item in given if item != "--debug"],
                prog_name="trimtab",
                standalone_mode=False,
            )
        except BaseException as error:
            if debug and not isinstance(error, SystemExit):
                raise
            status = _status_of(error)
    sys.exit(status if isinstance(status, int) else 0)


def _status_of(error: BaseException) -> int:
    """Say in one line what went wrong, and return the exit status."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        _say("interrupted")
        return 130
    if isinstance(error, BrokenPipeError):
        # Whoever read the output has left; let nothing be flushed into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, _ClickError):
        return _usage(error)
    if isinstance(error, TrimtabError):
        _say(str(error))
        return 2 if isinstance(error, _WRONG_REQUEST) else 1
    if isinstance(error, OSError) and error.errno in _NO_ROOM and error.filename is None:
        _say(f"the output cannot be written ({error.strerror}); make room, or send it elsewhere")
        return 1
    words = " ".join(str(error).split()) or "no message"
    task = noted_task(error)
    where = "" if task is None else f"task {task!r}: "
    _say(f"{where}{type(error).__name__}: {words} (--debug shows where)")
    return 1


def _usage(error: Any) -> int:
    """Report a mistake on the command line as Click words it."""
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(error.ctx.get_help())
        return 0
    words = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "trimtab"
    _say(f"{words[:1].lower()}{words[1:]}; see {where} --help")
    return 2


def _say(words: str) -> None:
    typer.echo(f"trimtab: {' '.join(words.split())}", err=True)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _say(f"warning: {message}")
