"""The one place that wires policies, controllers, stores and trackers to a run, lazily."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.core import registry
from trimtab.core.errors import SpecError, unknown_name
from trimtab.core.hyperparameters import Hyperparameter
from trimtab.core.notices import tell
from trimtab.core.protocols import Controller
from trimtab.core.ranges import LrRange, within_range
from trimtab.core.spec import LEAST_STEPS, ControlSpec

if TYPE_CHECKING:
    from trimtab.core.decision import Recorder, RunInfo

DEFAULT_POLICY = "trimtab-1"
_FALLBACK = "trimtab-0"
_USUAL_DECISIONS = 20
_USUAL_STORE = "sqlite"


def policy_path(policy: str | Path, *, beside: Sequence[str] = ()) -> Path:
    """Return the file of a registered policy's name, or the path itself.

    Policies ship with trimtab, or another package registers them. The default name falls back to
    the policy before it, with one warning, until it exists.

    Args:
        policy: A name, or a file.
        beside: Names that are no files and that the caller takes too, for the message.

    Raises:
        UnknownNameError: It is neither a registered name nor a path.
        SpecError: What is registered under the name is no package.
    """
    known = registry.names("policy")
    if str(policy) in known:
        return _file_of(str(policy))
    path = Path(policy)
    if str(policy) and (path.suffix or path.exists() or len(path.parts) > 1):
        return path
    if str(policy) == DEFAULT_POLICY and _FALLBACK in known:
        tell(f"policy {DEFAULT_POLICY!r} is not in this installation; using {_FALLBACK!r}")
        return _file_of(_FALLBACK)
    raise unknown_name("policy", str(policy), [*known, *beside])


def _file_of(name: str) -> Path:
    """Return the file of a registered policy."""
    package = registry.lookup("policy", name)
    folders = list(getattr(package, "__path__", ()))
    if not folders:
        raise SpecError(
            f"policy {name!r}: {package!r} is no package; register the one whose folder holds "
            f"{name}.safetensors"
        )
    return Path(folders[0]) / f"{name}.safetensors"


def controller_for(
    policy: str | Path | Controller | None,
    hyperparameters: Sequence[Hyperparameter],
    *,
    decisions: int = 20,
    lr_range: LrRange | None = None,
) -> tuple[ControlSpec, Controller]:
    """Return the spec and the controller for a run.

    Args:
        policy: A registered policy's or controller's name, a policy file, or a controller of one's
            own (used under a plain `ControlSpec`, or its ``spec`` attribute). None and the
            controllers ``"reference"`` and ``"zero"`` are the policy switched off.
        hyperparameters: What is steered.
        decisions: Number of decisions. A run with fewer than four steps for each has fewer, unless
            more than the usual 20 are asked for.
        lr_range: Learning rates between which values stay; None for the usual bounds.

    Raises:
        UnknownNameError: No policy or controller has that name.
        PolicyFileError: The file cannot be read as a policy.
        SpecError: What is registered under the name is no policy or controller, or the range does
            not hold the start.
    """
    from trimtab.controllers.learned import LearnedController, read_policy

    least = LEAST_STEPS if decisions <= _USUAL_DECISIONS else 1
    items = within_range(hyperparameters, lr_range)
    plain = ControlSpec(hyperparameters=tuple(items), decisions=decisions, least_steps=least)
    policy = "reference" if policy is None else policy
    if isinstance(policy, str) and policy in registry.names("controller"):
        policy = registry.make_controller(policy, plain)
    if not isinstance(policy, str | Path):
        own = getattr(policy, "spec", plain)
        items = within_range(hyperparameters, lr_range, version=own.version)
        return replace(own, hyperparameters=tuple(items), decisions=decisions), policy
    loaded = read_policy(policy_path(policy, beside=registry.names("controller")))
    items = within_range(hyperparameters, lr_range, version=loaded.spec.version)
    spec = replace(
        loaded.spec,
        hyperparameters=tuple(items),
        decisions=decisions,
        least_steps=min(loaded.spec.least_steps, least),
    )
    return spec, LearnedController(loaded)


def recorder_for(
    store: str | None, info: RunInfo, *, run: int | None = None, awaits_figures: bool = False
) -> Recorder | None:
    """Return a recorder that writes to a store and tells trackers, or None when neither is wanted.

    Args:
        store: Database URL, file, or address of a registered store, ``NAME://...``; None to keep
            no record.
        info: What is known of the run; its ``log_to`` names the trackers: a folder for TensorBoard,
            ``mlflow:URI``, ``wandb:PROJECT``, or several of them.
        run: Number of a run in this store that goes on; None for a new one.
        awaits_figures: Whether `Recorder.add_figures` will be called after the end.

    Raises:
        StoreError: The store or a tracker cannot be opened.
        SpecError: ``log_to`` names no place.
        UnknownNameError: ``log_to`` names a service that there is none of.
        MissingDependencyError: A tracker's package is not installed.
    """
    trackers: Any = ()
    if info.log_to is not None:
        from trimtab.records.trackers.fan_out import check_log_to

        trackers = check_log_to(info.log_to)
    recorder = None if store is None else _store_recorder(store, info, run)
    if not trackers:
        return recorder
    from trimtab.records.trackers.fan_out import tell_trackers

    return tell_trackers(
        recorder, trackers, info, goes_on=run is not None, awaits_figures=awaits_figures
    )


def _store_recorder(store: str, info: RunInfo, run: int | None) -> Recorder:
    """Return a recorder of the store that is registered for an address, or of any database."""
    from trimtab.records.store.store import StoreRecorder
    from trimtab.records.trackers.fan_out import Recorders

    scheme = store.partition("://")[0].partition("+")[0] if "://" in store else _USUAL_STORE
    if scheme not in registry.names("store"):
        scheme = _USUAL_STORE  # SQLAlchemy knows more databases, or says what it does not know
    recorder: Recorder = registry.lookup("store", scheme)(store, info, run=run)
    return recorder if isinstance(recorder, StoreRecorder) else Recorders(recorder, {})
