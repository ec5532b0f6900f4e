"""`trimtab demo`: from a learning rate 100 times too small, left alone and steered."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli.output import (
    JSON_HELP,
    STORE_HELP,
    find_task,
    number,
    one_thread,
    print_json,
    print_table,
    say,
    store_or_none,
)
from trimtab.cli.run import Request, execute, watched_metric

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from trimtab.cli.display import Display
    from trimtab.core.protocols import Task

_CAVEAT = (
    "One seed of one task proves nothing: read it as an example of what happens, "
    "not as a measure of how much is gained."
)


def demo(
    task: Annotated[str, typer.Option(help="What is fine-tuned.")] = "vision/solar-cells",
    variant: Annotated[
        str | None, typer.Option(help="Size of the task: tiny, small or default.")
    ] = None,
    policy: Annotated[str, typer.Option(help="A policy's name, or a policy file.")] = "trimtab-1",
    start_scale: Annotated[
        float, typer.Option(help="Start at this factor times the tuned learning rate.")
    ] = 0.01,
    seed: Annotated[int, typer.Option(help="Of both runs.")] = 0,
    out: Annotated[Path, typer.Option(help="The report to write.")] = Path("trimtab-demo.html"),
    store: Annotated[
        str, typer.Option(help=STORE_HELP, envvar="TRIMTAB_STORE")
    ] = "sqlite:///trimtab.db",
    as_json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Fine-tune twice from a badly wrong learning rate: left alone, and steered."""
    one_thread()
    kept = store_or_none(store)
    if kept is None:
        from trimtab.core.errors import SpecError

        raise SpecError("--store: the demo reports on what it recorded; name a store")
    found = find_task(task, variant)
    steered = Request(
        task=task, variant=variant, policy=policy, start_scale=start_scale, seed=seed, store=kept
    )
    requests = {"left alone": replace(steered, policy="none"), "steered": steered}
    _check(requests, found)
    say(f"{found.name}: {found.total_steps} steps from a learning rate {start_scale:g} times the")
    say("tuned one; the same data, weights and seed, once left alone and once steered.")
    if notice := getattr(found, "notice", ""):
        say(str(notice))
    _prepare(found, seed)
    results = _side_by_side(requests, watched_metric(found))
    from trimtab.cli.report import write_report_of

    path = write_report_of(
        str(results["steered"]["run"]), str(results["left alone"]["run"]), kept, out
    )
    if as_json:
        print_json({"runs": results, "report": str(path), "caveat": _CAVEAT})
        return
    _print_outcome(results)
    typer.echo(_CAVEAT)
    if notice:
        typer.echo(str(notice))
    typer.echo(f"report: {path}")


def _check(requests: dict[str, Request], task: Task) -> None:
    """Find what is wrong with the requests here, before any process is started."""
    from trimtab.cli.output import start_values
    from trimtab.defaults import controller_for

    for request in requests.values():
        items, _ = start_values(task, request.hyperparameters, request.start, request.start_scale)
        policy = None if request.policy == "none" else request.policy
        controller_for(policy, items, decisions=request.decisions)


def _prepare(task: Task, seed: int) -> None:
    """Let the task fill its cache once, so that the two processes only read it."""
    say("preparing the data …")
    task.start(seed=seed)


def _side_by_side(requests: dict[str, Request], watched: str) -> dict[str, dict[str, Any]]:
    """Run the requests in a process each, show them live, and return their results."""
    import multiprocessing

    from trimtab.cli.display import Display

    context = multiprocessing.get_context("spawn")
    events: Any = context.Queue()
    processes = {
        name: context.Process(target=_work, args=(name, request, events), daemon=True)
        for name, request in requests.items()
    }
    for process in processes.values():
        process.start()
    try:
        with Display(dict.fromkeys(requests, watched), "trimtab demo") as display:
            return _gather(processes, events, display)
    except BaseException:
        _end(processes)
        raise


def _gather(
    processes: Mapping[str, BaseProcess], events: Any, display: Display
) -> dict[str, dict[str, Any]]:
    """Show what the processes tell until each has given its result."""
    import queue

    from trimtab.core.errors import TrimtabError

    results: dict[str, dict[str, Any]] = {}
    while len(results) < len(processes):
        try:
            kind, name, value = events.get(timeout=1.0)
        except queue.Empty:
            for name, process in processes.items():
                if name not in results and not process.is_alive():
                    raise TrimtabError(
                        f"the run {name!r} ended without a result (exit status "
                        f"{process.exitcode}); run it alone with trimtab run to see why"
                    ) from None
            continue
        if kind == "progress":
            display.update(name, value)
        elif kind == "warning":
            say(f"trimtab: warning: {name}: {value}")
        elif kind == "result":
            results[name] = value
        else:
            raise value
    for process in processes.values():
        process.join()
    return {name: results[name] for name in processes}


def _work(name: str, request: Request, events: Any) -> None:
    """Run a request in a process of its own and tell the parent; Ctrl-C is the parent's to hear."""
    import logging
    import warnings

    def interrupt(*_: object) -> None:
        # What is closed at this moment is given up; libraries would log it with a traceback.
        logging.disable(logging.CRITICAL)
        raise KeyboardInterrupt

    def tell_warning(message: Warning | str, *_: Any, **__: Any) -> None:
        events.put(("warning", name, str(message)))

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, interrupt)
    one_thread()
    warnings.showwarning = tell_warning
    try:
        result = execute(
            request,
            find_task(request.task, request.variant),
            progress=lambda now: events.put(("progress", name, now)),
        )
        events.put(("result", name, result.to_dict()))
    except KeyboardInterrupt:
        os._exit(130)
    except Exception as error:  # noqa: BLE001 - the parent raises it again
        events.put(("error", name, _portable(error)))
    finally:
        # What is left is to hand over the events; being ended there is no interruption.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _portable(error: Exception) -> Exception:
    """Return an error of the same kind that another process can be handed."""
    from trimtab.core.errors import TrimtabError

    if isinstance(error, TrimtabError):
        return type(error)(str(error))
    return TrimtabError(f"{type(error).__name__}: {error}")


def _end(processes: Mapping[str, BaseProcess]) -> None:
    """Ask the runs to close their records, and wait until they have."""
    for process in processes.values():
        if process.is_alive():
            process.terminate()
    for process in processes.values():
        process.join(timeout=15)


def _print_outcome(results: dict[str, dict[str, Any]]) -> None:
    from trimtab.records.reports.run_charts import spelled

    tests = {name: result["test"] for name, result in results.items()}
    metrics = [key for key in next(iter(tests.values())) if key != "examples"]
    rows: list[tuple[Any, ...]] = [
        (f"test {spelled(key)}", *(number(test.get(key)) for test in tests.values()))
        for key in metrics
    ]
    rows += [
        (label, *(number(result[key]) for result in results.values()))
        for label, key in (
            ("steps", "spent_steps"),
            ("seconds", "seconds"),
            ("rollbacks", "rollbacks"),
        )
    ]
    print_table(("one seed", *results), rows)
