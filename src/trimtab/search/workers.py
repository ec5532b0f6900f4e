"""Processes that do units side by side, each with one thread, and end with their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from trimtab.core.errors import StoreError

__all__ = ["Done", "run_all"]


class Done(NamedTuple):
    """A piece of work that came back.

    Attributes:
        place: Which one, in the order given.
        result: What it returned; None if it failed.
        error: What went wrong in one line, else nothing.
        trace: The traceback of that.
    """

    place: int
    result: Any
    error: str = ""
    trace: str = ""


def _live_with_parent() -> None:
    """End this process as soon as its parent is gone, whatever it is doing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _work(connection: Connection, function: Callable[..., Any]) -> None:
    """Do what comes through the connection until nothing more does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children
    threading.Thread(target=_live_with_parent, daemon=True).start()
    warnings.simplefilter("ignore")
    while (asked := connection.recv()) is not None:
        place, arguments = asked
        try:
            answer = Done(place, function(*arguments))
        except Exception as error:  # noqa: BLE001 - one failed unit must not end the others
            words = " ".join(str(error).split()) or "no message"
            answer = Done(place, None, f"{type(error).__name__}: {words}", traceback.format_exc())
        connection.send(answer)


class _Worker:
    def __init__(self, function: Callable[..., Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_work, args=(theirs, function))
        self.process.start()
        theirs.close()

    def end(self) -> None:
        try:
            self.connection.send(None)
        except OSError:
            return
        self.process.join(timeout=20)  # Ray takes seconds to shut down


def run_all(
    function: Callable[..., Any], work: Sequence[tuple[Any, ...]], jobs: int
) -> Iterator[Done]:
    """Yield what a function returns for each tuple of arguments, as it comes.

    The function, its arguments and results have to be importable or plain, since every process
    is a new interpreter. If the caller stops early, the processes are ended at once.

    Args:
        function: Done in other processes.
        work: Arguments, taken in this order.
        jobs: Processes at a time.

    Raises:
        StoreError: A process died, for example for want of memory.
    """
    waiting = list(enumerate(work))[::-1]
    workers: dict[Any, _Worker] = {}
    try:
        for _ in range(min(jobs, len(work))):
            worker = _Worker(function)
            workers[worker.connection] = worker
            worker.connection.send(waiting.pop())
        busy = set(workers)
        while busy:
            for ready in wait(list(busy)):
                worker = workers[ready]
                try:
                    done = worker.connection.recv()
                except (EOFError, OSError) as error:
                    worker.process.join(timeout=5)
                    raise StoreError(
                        f"a process of the comparison died (exit status "
                        f"{worker.process.exitcode}); what was done is kept: run the same "
                        "command again, with fewer --jobs if memory was short"
                    ) from error
                if waiting:
                    worker.connection.send(waiting.pop())
                else:
                    busy.discard(ready)
                yield done
        for worker in workers.values():
            worker.end()
    finally:
        for worker in workers.values():
            if worker.process.is_alive():
                worker.process.kill()
            worker.connection.close()
