"""What there is: tasks, policies, and the state of this installation."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli import options, output
from trimtab.cli.catalogue import rows_by_variant
from trimtab.core.errors import (
    MissingDependencyError,
    SpecError,
    TrimtabError,
    UnknownNameError,
    unknown_name,
)
from trimtab.core.protocols import Task
from trimtab.core.registry import names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


# A whole run of the reference schedule, 21 validations included, on two idle cores.
_SECONDS_AT_MOST = {"tiny": 5.0, "small": 20.0, "default": 60.0}


def tasks(
    wanted: Annotated[
        list[str] | None, typer.Argument(metavar="[TASK]...", help="Only these; none for all.")
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="Size of the tasks; all for every size that each has.")
    ] = None,
    time: Annotated[
        bool, typer.Option("--time", help="Run each once without a policy and take the time.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """List the tasks, with what they measure and the licence of their data."""
    options.one_thread()
    rows = [
        row
        for name in wanted or names("task")
        for row in _rows_of(name, variant, is_timed=time, is_asked_for=bool(wanted))
    ]
    if not wanted and variant is not None and all(row.get("needs") for row in rows):
        _require_variant(variant, names("task"))
    if as_json:
        output.print_json(rows)
        return
    timings = ("seconds_here", "seconds_at_most") if time else ()
    columns = ["task", *(["variant"] if variant else []), "kind", "metric", "seconds", "licence"]
    output.print_table(
        [*columns, *(["seconds here", "at most"] if time else [])],
        [
            (
                row["name"],
                *([row.get("variant") or "–"] if variant else []),
                row.get("needs") or row["kind"],
                row["metric"] or "–",
                output.number(row["seconds"]),
                row["licence"] or "–",
                *(output.number(row.get(key)) for key in timings),
            )
            for row in rows
        ],
    )


def _rows_of(
    name: str, variant: str | None, *, is_timed: bool, is_asked_for: bool
) -> Iterator[dict[str, Any]]:
    """Yield what is told of a task, once for each variant that was asked for.

    A task without that variant is passed over, unless it was asked for by name.
    """
    told = None if is_timed else rows_by_variant(name)
    usual = "" if variant is None else variant or "no name"
    if told is not None and (variant == "all" or usual in told):
        chosen = [one for one in told if one] or [""] if variant == "all" else [usual]
        yield from (dict(told[one]) for one in chosen)
        return
    if told is not None and not is_asked_for:
        return
    try:
        for one in _variants_of(name) if variant == "all" else [variant]:
            found = options.find_task(name, one)
            row = describe(found) | {"name": name}
            if is_timed:
                output.say(f"timing {name}{'' if one is None else f' {one}'} …")
                row["seconds_here"] = _seconds_of(found)
                row["seconds_at_most"] = _SECONDS_AT_MOST.get(_size_of(row))
            yield row
    except MissingDependencyError as error:
        nothing = dict.fromkeys(("kind", "metric", "licence", "seconds"))
        yield {"name": name, **nothing, "needs": str(error)}
    except (SpecError, UnknownNameError):
        if is_asked_for:
            raise


def _require_variant(variant: str, tasks: Iterable[str]) -> None:
    """Refuse a variant that is none of the usual ones, and that no task here has.

    Raises:
        UnknownNameError: It is such a one.
    """
    known = {"all", *_SECONDS_AT_MOST}
    for name in tasks:
        with suppress(MissingDependencyError, UnknownNameError):
            known.update(one for one in _variants_of(name) if one is not None)
    if variant not in known:
        raise unknown_name("variant", variant, known)


def _variants_of(name: str) -> list[str | None]:
    """Return the variants of a task, or None in a list if it comes in one size."""
    told = rows_by_variant(name)
    if told is not None:
        return [one for one in told if one] or [None]
    return list(describe(options.find_task(name, None)).get("variants") or [None])


def _size_of(row: Mapping[str, Any]) -> str:
    """Return which of the usual sizes a variant is; ``small-lora`` is ``small``."""
    return str(row.get("variant") or "").partition("-")[0]


def describe(task: Task) -> dict[str, Any]:
    """Return what a task says of itself, at least kind, metric, licence and seconds."""
    described = getattr(task, "describe", None)
    told = dict(described()) if callable(described) else {}
    usual = {
        "kind": getattr(task, "kind", None),
        "metric": getattr(task, "metric", task.monitor),
        "licence": getattr(task, "licence", None),
        "seconds": getattr(task, "seconds", None),
        "total_steps": task.total_steps,
        "hyperparameters": [item.to_dict() for item in task.hyperparameters],
    }
    return usual | told


def _seconds_of(task: Task) -> float:
    """Return how long a run takes once data and weights that are cached lie in the cache."""
    from trimtab.defaults import controller_for
    from trimtab.tasks.run import run_task

    spec, controller = controller_for(None, tuple(task.hyperparameters)[:1])
    task.start(seed=0)
    return run_task(task, controller, spec).seconds


def policies(as_json: options.AsJson = False) -> None:
    """List the policies that are installed, each with its card."""
    from trimtab.controllers.learned import read_policy_header
    from trimtab.core.errors import TrimtabError
    from trimtab.core.registry import names
    from trimtab.defaults import DEFAULT_POLICY, policy_path

    rows: list[dict[str, Any]] = []
    for name in names("policy"):
        try:
            path = policy_path(name)
            header = read_policy_header(path)
        except TrimtabError as error:  # of another package; the rest is listed all the same
            output.say(f"{name}: {error}")
            continue
        card = path.with_suffix(".md")
        rows.append(
            {
                "name": name,
                "default": name == DEFAULT_POLICY,
                "spec_hash": header["spec_hash"],
                "trained_on": [item.name for item in header["spec"].hyperparameters],
                "about": header["about"],
                "bytes": path.stat().st_size,
                "path": str(path),
                "card": str(card) if card.exists() else None,
            }
        )
    if as_json:
        output.print_json(rows)
        return
    if not rows:
        output.say("no policy ships with this installation; train one with trimtab learn")
    output.print_table(
        ("policy", "trained on", "contract", "kB", "card"),
        [
            (
                row["name"] + (" (default)" if row["default"] else ""),
                ", ".join(row["trained_on"]),
                row["spec_hash"],
                output.number(row["bytes"] / 1000),
                row["card"] or "–",
            )
            for row in rows
        ],
    )


def doctor(
    store: options.Store = options.DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """Say what this installation has: versions, extras, threads, store, policy."""
    report: dict[str, Any] = {
        "versions": _versions(),
        "extras": _extras(),
        "threads": _threads(),
        "store": _store_state(options.store_or_none(store)),
        "policy": _default_policy(),
    }
    if as_json:
        output.print_json(report)
        return
    for heading in ("versions", "threads", "store", "policy"):
        output.print_table((heading, ""), report[heading].items())
    output.print_table(
        ("extra", "state"),
        [
            (name, "complete" if not missing else f"lacks {', '.join(missing)}")
            for name, missing in report["extras"].items()
        ],
    )


def _versions() -> dict[str, str]:
    import importlib.metadata
    import platform

    from trimtab import __version__

    found = {"trimtab": __version__, "python": platform.python_version()}
    found["platform"] = platform.platform()
    for package in ("numpy", "gymnasium", "torch", "jax", "transformers", "lightning", "keras"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "–"
    return found


def _extras() -> dict[str, list[str]]:
    """Return extra -> the packages of it that are not installed."""
    import importlib.metadata
    import re

    needs: dict[str, list[str]] = {}
    try:
        declared = importlib.metadata.requires("trimtab") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    for line in declared:
        marker = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", line)
        name = re.match(r"[\w.-]+", line)
        # An extra made of other extras, or a choice of packages by platform, says nothing itself.
        if marker and name and name.group() != "trimtab" and "sys_platform" not in line:
            needs.setdefault(marker.group(1), []).append(name.group())
    missing: dict[str, list[str]] = {}
    for extra, packages in sorted(needs.items()):
        missing[extra] = []
        for package in packages:
            try:
                importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                missing[extra].append(package)
    return missing


def _threads() -> dict[str, Any]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cores": usable,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set; trimtab takes 1"),
    }


def _store_state(store: str | None) -> dict[str, Any]:
    from trimtab.records.store.database import file_of, shown, store_url
    from trimtab.records.store.store import Store

    if store is None:
        return {"store": "none", "state": "no record is kept"}
    try:
        url = store_url(store)
        path = file_of(url)
        if path is not None and not path.exists():
            return {"store": shown(url), "state": "none yet; the first run creates it"}
        with Store(url) as opened:
            state: dict[str, Any] = {"store": shown(url), "state": "readable"}
            state["runs"] = len(opened.run_ids())
        if path is not None:
            state["writable"] = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
            state["megabytes"] = round(Path(path).stat().st_size / 1e6, 2)
    except TrimtabError as error:
        return {"store": store, "state": str(error)}
    return state


def _default_policy() -> dict[str, Any]:
    import warnings

    from trimtab.controllers.learned import read_policy_header
    from trimtab.defaults import DEFAULT_POLICY, policy_path

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = policy_path(DEFAULT_POLICY)
        header = read_policy_header(path)
    except TrimtabError as error:
        return {"wanted": DEFAULT_POLICY, "found": str(error)}
    return {"wanted": DEFAULT_POLICY, "found": header["name"], "contract": header["spec_hash"]}
