"""The engines of this machine: processes of their own thread and accelerator, or this process."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Self

from trimtab.core.errors import SpecError
from trimtab.search.engines.base import (
    Done,
    Resources,
    answer_of,
    quieten_worker,
    retell,
    worker_answer_of,
)

_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)
_SECONDS_TO_END = 20.0  # Ray takes seconds to shut down


class LocalEngine:
    """Does units in processes of this machine; see `trimtab.search.engines.base.Engine`.

    Each process is a fresh interpreter that never runs the caller's script again, computes with
    as many threads as it has cores, sees only its own accelerator, and ends when its parent does.

    Args:
        jobs: Processes, at least 1.
        resources: What each of them is given.
    """

    name = "local"

    def __init__(self, jobs: int, *, resources: Resources | None = None) -> None:
        self.jobs = jobs
        self._resources = resources or Resources()
        self._workers: list[_Worker] = []
        self._heard: set[str] = set()
        self._gpus: list[str] | None = None
        atexit.register(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def processes(self) -> list[int]:
        """Process numbers of the workers that were started and not found dead."""
        return [worker.process.pid or 0 for worker in self._workers]

    def run(self, function: Callable[..., Any], units: Sequence[tuple[Any, ...]]) -> Iterator[Done]:
        """Yield what ``function(*unit)`` returns for each unit, as it comes, each exactly once."""
        if function.__module__ == "__main__":
            raise SpecError(
                f"{function.__name__}: a function of the script itself is not known to workers; "
                "put it into a module"
            )
        waiting = list(enumerate(units))[::-1]
        busy: dict[Any, tuple[_Worker, int]] = {}
        try:
            while waiting or busy:
                while waiting and len(busy) < self.jobs:
                    worker = self._idle({id(one) for one, _ in busy.values()})
                    if worker.give((function, waiting[-1][1])):
                        busy[worker.connection] = (worker, waiting.pop()[0])
                    else:
                        self._drop(worker)
                for ready in wait(list(busy)):
                    worker, place = busy.pop(ready)
                    yield self._answer(worker, place)
        finally:
            for worker, _ in busy.values():  # left early
                self._drop(worker)

    def close(self) -> None:
        """End all workers; calling it again changes nothing."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.give(None)
        for worker in workers:
            worker.process.join(timeout=_SECONDS_TO_END)
            worker.kill()
        atexit.unregister(self.close)

    def _answer(self, worker: _Worker, place: int) -> Done:
        try:
            answer, told = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(timeout=5)
            status = worker.process.exitcode
            self._drop(worker)
            how = f"signal {-status}" if status is not None and status < 0 else f"status {status}"
            return Done(place, None, f"a worker process ended ({how}) in the middle", died=True)
        retell(told, self._heard)
        return Done(place, *answer)

    def _idle(self, busy: set[int]) -> _Worker:
        """Return a worker without work, started now if there is none."""
        for worker in self._workers:
            if id(worker) not in busy:
                return worker
        taken = {worker.slot for worker in self._workers}
        slot = next(number for number in range(self.jobs) if number not in taken)
        worker = _Worker(slot, self._environment(slot))
        self._workers.append(worker)
        return worker

    def _drop(self, worker: _Worker) -> None:
        worker.kill()
        if worker in self._workers:
            self._workers.remove(worker)

    def _environment(self, slot: int) -> dict[str, str]:
        threads = str(max(1, int(self._resources.cpus)))
        given = dict.fromkeys(_THREADS, threads)
        if self._gpus is None:
            self._gpus = visible_gpus()
        if self._gpus or self._resources.gpus:
            given["CUDA_VISIBLE_DEVICES"] = ",".join(self._share(slot, self._gpus))
        return given

    def _share(self, slot: int, gpus: Sequence[str]) -> list[str]:
        """Return the accelerators of a worker."""
        wanted = self._resources.gpus
        if wanted == 0:
            return []
        if wanted is None:
            return [gpus[slot % len(gpus)]]
        each = max(1, round(wanted))
        together = self.jobs * wanted if wanted < 1 else self.jobs * each
        if together > len(gpus) + 1e-9:
            raise SpecError(
                f"gpus: {wanted:g} for each of {self.jobs} runs at a time, and this machine shows "
                f"{len(gpus)}; ask for less, or run fewer at a time"
            )
        if wanted < 1:
            return [gpus[int(slot * wanted)]]
        return [gpus[number] for number in range(slot * each, (slot + 1) * each)]


def visible_gpus() -> list[str]:
    """Return the accelerators that this process may use, by number or name, without loading any.

    ``CUDA_VISIBLE_DEVICES`` decides where it is set, else what the driver's own tool lists.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        named = [name.strip() for name in given.split(",") if name.strip()]
        return [] if "-1" in named else named
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        answer = subprocess.run(
            [tool, "-L"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    lines = [line for line in answer.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number, _ in enumerate(lines)]


class _Worker:
    def __init__(self, slot: int, environment: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("spawn")
        self.slot = slot
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_work, args=(theirs,), name=f"trimtab-{slot}"
        )
        with _changed(environment), _without_script():
            self.process.start()
        theirs.close()

    def give(self, work: Any) -> bool:
        """Hand out work, or None to end; False if the worker is gone."""
        try:
            self.connection.send(work)
        except OSError:
            return False
        return True

    def kill(self) -> None:
        if self.process.is_alive():
            self.process.kill()
            self.process.join(timeout=5)
        with suppress(OSError):
            self.connection.close()


@contextmanager
def _changed(environment: Mapping[str, str]) -> Iterator[None]:
    """Let processes that are started meanwhile see another environment."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _without_script() -> Iterator[None]:
    """Keep a new process from running the caller's script once more.

    The standard library lets it do so, to find what the script defines; nothing of that is needed
    here, and a script that is not guarded by ``if __name__ == "__main__"`` would start over.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _live_with_parent() -> None:
    """End this process as soon as its parent is gone, whatever it is doing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _work(connection: Connection) -> None:
    """Do what comes through the connection until nothing more does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children
    threading.Thread(target=_live_with_parent, daemon=True).start()
    quieten_worker()
    while True:
        try:
            asked = connection.recv()
        except EOFError:
            return
        if asked is None:
            return
        connection.send(worker_answer_of(*asked))


class InlineEngine:
    """Does units in the calling process; see `trimtab.search.engines.base.Engine`."""

    name = "inline"
    jobs = 1

    def run(self, function: Callable[..., Any], units: Sequence[tuple[Any, ...]]) -> Iterator[Done]:
        """Yield what ``function(*unit)`` returns for each unit, in the order given."""
        for place, unit in enumerate(units):
            yield Done(place, *answer_of(function, unit))

    def close(self) -> None:
        """Do nothing: there is no worker."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass
