"""`trimtab demo`: from a learning rate 100 times too small, left alone and steered."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli import options, output
from trimtab.cli.run import Request, execute, prepared
from trimtab.core.errors import TrimtabError

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess


_CAVEAT = (
    "One seed of one task proves nothing: read it as an example of what happens, "
    "not as a measure of how much is gained."
)


def demo(
    task: Annotated[str, typer.Option(help="What is fine-tuned.")] = "vision/solar-cells",
    variant: options.Variant = None,
    policy: options.Policy = options.DEFAULT_POLICY,
    start_scale: options.GivenStartScale = 0.01,
    seed: options.Seed = 0,
    out: Annotated[Path, typer.Option(help="The report to write.")] = Path("trimtab-demo.html"),
    store: options.Store = options.DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """Fine-tune twice from a badly wrong learning rate: left alone, and steered."""
    options.one_thread()
    kept = options.required_store(store, "the demo reports on what it recorded; name a store")
    found = options.find_task(task, variant)
    steered = Request(
        task=task, variant=variant, policy=policy, start_scale=start_scale, seed=seed, store=kept
    )
    requests = {"left alone": replace(steered, policy="none"), "steered": steered}
    for request in requests.values():  # before any process is started
        prepared(request, found)
    output.say(
        f"{found.name}: {found.total_steps} steps from a learning rate {start_scale:g} times the"
    )
    output.say("tuned one; the same data, weights and seed, once left alone and once steered.")
    notice = output.say_notice(found)
    output.say("preparing the data …")
    found.start(seed=seed)  # fills its cache once, so that the two processes only read it
    listed = f"trimtab runs{options.store_again(kept)} lists what had run"
    with output.interruptible(lambda: f"; {listed}: the same command begins anew"):
        results = _side_by_side(requests, str(found.monitor))
    from trimtab.cli.report import write_report_of

    path = write_report_of(
        str(results["steered"]["run"]), str(results["left alone"]["run"]), kept, out
    )
    if as_json:
        output.print_json({"runs": results, "report": str(path), "caveat": _CAVEAT})
        return
    _print_outcome(results)
    typer.echo(_CAVEAT)
    if notice:
        typer.echo(notice)
    typer.echo(f"report: {path}")


def _side_by_side(requests: dict[str, Request], watched: str) -> dict[str, dict[str, Any]]:
    """Run the requests in a process each, show them live, and return their results."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    events: Any = context.Queue()
    processes = {
        name: context.Process(target=_work, args=(name, request, events), daemon=True)
        for name, request in requests.items()
    }
    for process in processes.values():
        process.start()
    try:
        with output.Display(dict.fromkeys(requests, watched), "trimtab demo") as display:
            return _gather(processes, events, display)
    except BaseException:
        _end(processes)
        raise


def _gather(
    processes: Mapping[str, BaseProcess], events: Any, display: output.Display
) -> dict[str, dict[str, Any]]:
    """Show what the processes tell until each has given its result."""
    import queue

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
            output.say(f"trimtab: warning: {name}: {value}")
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
    options.one_thread()
    warnings.showwarning = tell_warning
    try:
        result = execute(
            request,
            options.find_task(request.task, request.variant),
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
        (f"test {spelled(key)}", *(output.number(test.get(key)) for test in tests.values()))
        for key in metrics
    ]
    rows += [
        (label, *(output.number(result[key]) for result in results.values()))
        for label, key in (
            ("steps", "spent_steps"),
            ("seconds", "seconds"),
            ("rollbacks", "rollbacks"),
        )
    ]
    output.print_table(("one seed", *results), rows)
