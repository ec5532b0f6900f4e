"""Telling several recorders of one run: the store first, then trackers that may fail."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trimtab.core.decision import Decision, Recorder, RunInfo, Summary
from trimtab.core.errors import (
    MissingDependencyError,
    SpecError,
    StoreError,
    TrimtabError,
    unknown_name,
)
from trimtab.core.notices import tell

_SERVICES = ("mlflow", "tensorboard", "wandb")


class Recorders(Recorder):
    """Tells a store and any number of trackers the same.

    Our own store looks after its failures. A tracker, or a store of another package, that fails is
    told of in one warning and left out from then on; the training goes on.

    Args:
        store: Where the run is kept; None for nowhere.
        trackers: Service -> recorder.
    """

    def __init__(self, store: Recorder | None, trackers: Mapping[str, Recorder]) -> None:
        self._store = store or Recorder()
        self._told = {"store: it": self._store}
        self._told |= {f"log_to: {service}": tracker for service, tracker in trackers.items()}

    def decision(self, decision: Decision) -> None:
        """Keep one decision, and tell of it."""
        self._tell(lambda one: one.decision(decision))

    def finish(self, summary: Summary, status: str) -> None:
        """Close the record, and tell how the run ended."""
        self._tell(lambda one: one.finish(summary, status))

    def add_figures(self, figures: Mapping[str, Any]) -> None:
        """Keep figures known after the end, and tell them."""
        self._tell(lambda one: one.add_figures(figures))

    def state(self) -> dict[str, Any]:
        """Return the store's state; trackers find a run that goes on by its number there."""
        return self._store.state()

    def _tell(self, call: Callable[[Recorder], None]) -> None:
        for name, one in list(self._told.items()):
            try:
                call(one)
            except Exception as error:  # noqa: BLE001 - a record must never stop a training
                del self._told[name]
                words = " ".join(str(error).split()) or "no message"
                tell(
                    f"{name} failed ({type(error).__name__}: {words}); it is told "
                    "nothing more of this run, and training goes on"
                )


def tell_trackers(
    store: Recorder | None,
    log_to: Sequence[tuple[str, str]],
    info: RunInfo,
    *,
    goes_on: bool = False,
    awaits_figures: bool = False,
) -> Recorders:
    """Return a store's recorder and newly opened trackers as one recorder.

    A tracker that cannot be opened closes the run in the store as failed.

    Args:
        store: Recorder of the store; None keeps no record.
        log_to: What `check_log_to` gives.
        info: What is known of the run.
        goes_on: Whether the run was begun by another process.
        awaits_figures: Whether `add_figures` will be called after the end.

    Raises:
        MissingDependencyError: A service's package is not installed.
        StoreError: A service cannot be opened.
    """
    run = None if store is None else store.state().get("run")
    try:
        trackers = open_trackers(
            log_to, info, run=run, goes_on=goes_on, awaits_figures=awaits_figures
        )
    except BaseException:
        if store is not None:
            store.finish(Summary(), "failed")
        raise
    return Recorders(store, trackers)


def check_log_to(log_to: Any) -> tuple[tuple[str, str], ...]:
    """Return (service, where) of each tracker that is asked for.

    Args:
        log_to: None, or one or several of: a folder or ``tensorboard:FOLDER``, ``mlflow:URI``,
            ``wandb:PROJECT``.

    Raises:
        SpecError: It is something else, empty, or names one service twice.
        UnknownNameError: It names a service that there is none of.
    """
    if log_to is None:
        return ()
    given = [log_to] if isinstance(log_to, str | os.PathLike) else list(log_to)
    found: dict[str, str] = {}
    for one in given:
        if not isinstance(one, str | os.PathLike):
            raise SpecError(
                f"log_to: {one!r} is no text; give a folder for TensorBoard, 'mlflow:URI' or "
                "'wandb:PROJECT'"
            )
        service, where = _split(os.fspath(one))
        if service in found:
            raise SpecError(f"log_to: {service} is asked for twice; ask once")
        found[service] = where
    return tuple(found.items())


def _split(text: str) -> tuple[str, str]:
    service, colon, where = text.partition(":")
    if not colon and text.strip().lower() in _SERVICES:
        name = text.strip().lower()
        place = {"wandb": "PROJECT", "mlflow": "URI", "tensorboard": "FOLDER"}[name]
        raise SpecError(
            f"log_to: {text!r} names a service and no place; write {name}:{place}, or "
            f"./{name} for a TensorBoard folder of that name"
        )
    # One letter and a colon are a drive of Windows.
    if not colon or len(service) == 1 or not service.isidentifier():
        service, where = "tensorboard", text
    elif service not in _SERVICES:
        raise unknown_name("tracker", service, _SERVICES)
    if not where.strip() and service != "mlflow":
        needs = "a folder" if service == "tensorboard" else "a project"
        raise SpecError(f"log_to: {text!r} names no place; {service} needs {needs} after the colon")
    return service, where.strip()


def open_trackers(
    log_to: Sequence[tuple[str, str]],
    info: RunInfo,
    *,
    run: int | None,
    goes_on: bool = False,
    awaits_figures: bool = False,
) -> dict[str, Recorder]:
    """Return service -> tracker, each ready to be told; before any training.

    Args:
        log_to: What `check_log_to` gives.
        info: What is known of the run.
        run: Its number in the store; None without one.
        goes_on: Whether the run was begun by another process; it is then looked for.
        awaits_figures: Whether `add_figures` will be called after the end.

    Raises:
        MissingDependencyError: A service's package is not installed.
        StoreError: A service cannot be opened.
    """
    trackers: dict[str, Recorder] = {}
    for service, where in log_to:
        try:
            if service == "tensorboard":
                from trimtab.records.trackers.tensorboard import TensorBoardTracker

                trackers[service] = TensorBoardTracker(where, info, run=run, goes_on=goes_on)
            elif service == "mlflow":
                from trimtab.records.trackers.mlflow import MlflowTracker

                trackers[service] = MlflowTracker(where, info, run=run, goes_on=goes_on)
            else:
                from trimtab.records.trackers.wandb import WandbTracker

                trackers[service] = WandbTracker(
                    where, info, run=run, awaits_figures=awaits_figures
                )
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"log_to: {service} needs the package {error.name!r}, which is not installed; "
                "pip install 'trimtab[trackers]'"
            ) from error
        except TrimtabError:
            raise
        except Exception as error:
            words = " ".join(str(error).split()) or "no message"
            raise StoreError(
                f"log_to: {service} cannot be opened ({type(error).__name__}: {words}); check "
                f"{where!r}, or leave it out"
            ) from error
    return trackers
