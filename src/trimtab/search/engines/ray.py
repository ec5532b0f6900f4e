"""The Ray engine: actors on a cluster, or on a small Ray of one's own on this machine."""

from __future__ import annotations

import atexit
import importlib.util
import logging
import math
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

from trimtab.core.errors import MissingDependencyError, SpecError, StoreError
from trimtab.search.engines.base import (
    Done,
    Resources,
    in_one_line,
    quieten_worker,
    retell,
    worker_answer_of,
)

_SECONDS_TO_END = 20.0
_SECONDS_TO_ANSWER = 10.0
_STARTS = 3
_OBJECT_STORE_BYTES = 200 * 2**20  # of a Ray of one's own; what does not fit goes to disk


class RayEngine:
    """Does units in Ray actors; see `trimtab.search.engines.base.Engine`.

    Arguments and results travel through Ray's object store, so workers need no folder in common
    with the caller; functions are found by their module's name, so every node needs the same
    packages. Ray sets each worker's threads to its cores and shows it only its own accelerators. A
    worker or node that is lost gives its unit back as ``died``, and another actor takes its place
    wherever there is room.

    Where Ray runs in this process already, it is used and left running. Without an address a Ray
    of one's own is started with exactly the cores that the runs need, and ended by `close`.

    Args:
        jobs: Units at a time, at least 1; no more than the cluster has room for.
        resources: What each actor is given; ``gpus=None`` asks for none on a cluster of several
            users, where accelerators have to be asked for.
        address: Of a running cluster, such as ``"auto"`` or ``"ray://head:10001"``.

    Raises:
        MissingDependencyError: Ray is not installed.
    """

    name = "ray"

    def __init__(
        self, jobs: int, *, resources: Resources | None = None, address: str | None = None
    ) -> None:
        if importlib.util.find_spec("ray") is None:
            raise MissingDependencyError(
                "the Ray engine needs Ray, which is not installed; run: pip install 'trimtab[ray]'"
            )
        self.jobs = jobs
        self._resources = resources or Resources()
        self._address = address
        self._is_ours = False
        self._is_begun = False
        self._room = jobs
        self._idle: list[Any] = []
        self._actors: list[Any] = []
        self._numbers: list[Any] = []  # of their processes, on their way
        self._heard: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def processes(self) -> list[int]:
        """Process numbers of the workers on their machines, as far as they answer."""
        import ray

        found: list[int] = []
        for number in self._numbers:
            try:
                found.append(int(ray.get(number, timeout=_SECONDS_TO_END)))
            except ray.exceptions.RayError:
                continue
        return found

    def run(self, function: Callable[..., Any], units: Sequence[tuple[Any, ...]]) -> Iterator[Done]:
        """Yield what ``function(*unit)`` returns for each unit, as it comes, each exactly once.

        Raises:
            StoreError: The cluster cannot be reached.
            SpecError: No node of the cluster has room for a single run.
        """
        import ray

        waiting = list(enumerate(units))[::-1]
        busy: dict[Any, tuple[Any, int]] = {}
        if units:
            self._begin()
        try:
            while waiting or busy:
                while waiting and len(busy) < self._room:
                    actor = self._idle.pop() if self._idle else self._new_actor()
                    place, unit = waiting.pop()
                    busy[actor.do.remote(function, unit)] = (actor, place)
                ready, _ = ray.wait(list(busy), num_returns=1)
                for reference in ready:
                    actor, place = busy.pop(reference)
                    yield self._answer(actor, reference, place)
        finally:
            for actor, _ in busy.values():  # left early
                self._drop(actor)

    def close(self) -> None:
        """End all workers, and Ray if it was started here; calling it again changes nothing."""
        atexit.unregister(self.close)
        if not self._is_begun:
            return
        import ray

        self._is_begun = False
        if ray.is_initialized():
            for actor in list(self._actors):
                self._drop(actor)
            if self._is_ours:
                ray.shutdown()
                _let_ray_print(True)
        self._actors, self._numbers, self._idle, self._is_ours = [], [], [], False

    def _begin(self) -> None:
        """Connect to Ray, or start it, once."""
        if self._is_begun:
            return
        import ray

        if not ray.is_initialized():
            self._connect()
            self._is_ours = True
            _let_ray_print(False)
        self._is_begun = True
        atexit.register(self.close)
        self._room = self._room_for_jobs()

    def _connect(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address is None:
            settings |= {
                "address": "local",  # whatever RAY_ADDRESS says
                "num_cpus": math.ceil(self.jobs * self._resources.cpus),
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE_BYTES,
            }
        else:
            _require_listener(self._address)
            settings["address"] = self._address
        try:
            _start(settings)
        except Exception as error:  # Ray raises plain ones, for a node that is slow to start too
            where = f"the Ray cluster at {self._address}" if self._address else "Ray"
            words = " ".join(str(error).split())
            raise StoreError(
                f"{where} cannot be reached ({words}); start one with 'ray start --head', or leave "
                "the address out"
            ) from error

    def _room_for_jobs(self) -> int:
        """Return how many runs at a time the cluster can hold, at most as many as are asked for."""
        import ray

        wanted = {"CPU": self._resources.cpus, "GPU": self._resources.gpus or 0.0}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room = sum(
            min(int(node.get(key, 0.0) / each + 1e-9) for key, each in wanted.items() if each)
            for node in nodes
        )
        if room < 1:
            largest = {key: max((n.get(key, 0.0) for n in nodes), default=0.0) for key in wanted}
            raise SpecError(
                f"cpus={wanted['CPU']:g} gpus={wanted['GPU']:g} for one run, and the largest node "
                f"of the cluster has {largest['CPU']:g} cores and {largest['GPU']:g} accelerators; "
                "ask for less"
            )
        return min(self.jobs, room)

    def _new_actor(self) -> Any:
        import ray

        worker = ray.remote(
            num_cpus=self._resources.cpus,
            num_gpus=self._resources.gpus or 0.0,
            max_restarts=0,  # the study decides whether a unit is done again
            max_task_retries=0,
        )(_Worker)
        actor = worker.remote()
        self._actors.append(actor)
        self._numbers.append(actor.process.remote())  # asked before it is busy
        return actor

    def _answer(self, actor: Any, reference: Any, place: int) -> Done:
        import ray

        try:
            answer, told = ray.get(reference)
        except ray.exceptions.RayTaskError as failure:  # arguments or result did not travel
            self._idle.append(actor)
            return Done(place, None, in_one_line(failure.cause or failure), str(failure))
        except ray.exceptions.RayError as failure:
            self._drop(actor)
            how = type(failure).__name__
            return Done(place, None, f"a Ray worker ended ({how}) in the middle", died=True)
        self._idle.append(actor)
        retell(told, self._heard)
        return Done(place, *answer)

    def _drop(self, actor: Any) -> None:
        import ray

        ray.kill(actor, no_restart=True)
        place = next(n for n, one in enumerate(self._actors) if one is actor)
        del self._actors[place], self._numbers[place]
        self._idle = [one for one in self._idle if one is not actor]


def _start(settings: dict[str, Any]) -> None:
    """Connect to Ray or start it; again where it gives up on its own node, which it waits 30 s for.

    The second time its files are in the machine's memory, which is what a busy machine needs.
    """
    import ray

    for attempt in range(_STARTS):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ray.init(**settings)
            return
        except Exception as error:
            ray.shutdown()
            if "timed out during startup" not in str(error) or attempt + 1 == _STARTS:
                raise


def _let_ray_print(is_allowed: bool) -> None:
    """Keep Ray from telling on standard output that a worker died, or let it again.

    Results are printed there, as one JSON document; the study itself knows of the worker. Ray has
    no public switch for what its nodes say; should this one go, it prints.
    """
    from ray._private import worker

    if hasattr(worker, "_worker_logs_enabled"):
        worker._worker_logs_enabled = is_allowed


def _require_listener(address: str) -> None:
    """Raise at once where nothing listens at ``host:port``; Ray itself tries for minutes.

    Raises:
        StoreError: Nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # "auto", or a form that Ray knows better
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS_TO_ANSWER).close()
    except OSError as error:
        raise StoreError(
            f"the Ray cluster at {address} cannot be reached ({error.strerror or error}); start "
            "one with 'ray start --head', or leave the address out"
        ) from error


class _Worker:
    """Lives in an actor of its own."""

    def __init__(self) -> None:
        quieten_worker()

    def process(self) -> int:
        return os.getpid()

    def do(self, function: Callable[..., Any], unit: tuple[Any, ...]) -> Any:
        return worker_answer_of(function, unit)
