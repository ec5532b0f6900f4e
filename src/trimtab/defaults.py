"""The one place that wires a default policy and store to a controller, lazily."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.core.errors import unknown_name
from trimtab.core.hyperparameters import Hyperparameter
from trimtab.core.protocols import Controller
from trimtab.core.spec import LEAST_STEPS, ControlSpec

if TYPE_CHECKING:
    from trimtab.core.decision import Recorder

DEFAULT_POLICY = "trimtab-1"
_FALLBACK = "trimtab-0"
_USUAL_DECISIONS = 20
_FIXED = ("reference", "zero", "random")


def shipped_policies() -> dict[str, Path]:
    """Return name -> file of the policies that ship inside the package."""
    folder = Path(__file__).parent / "policies"
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def policy_path(policy: str | Path, *, beside: Sequence[str] = ()) -> Path:
    """Return the file of a shipped policy's name, or the path itself.

    The default name falls back to the policy before it, with one warning, until it exists.

    Args:
        policy: A name, or a file.
        beside: Names that are no files and that the caller takes too, for the message.

    Raises:
        UnknownNameError: It is neither a shipped name nor a path.
    """
    shipped = shipped_policies()
    if str(policy) in shipped:
        return shipped[str(policy)]
    path = Path(policy)
    if str(policy) and (path.suffix or path.exists() or len(path.parts) > 1):
        return path
    if str(policy) == DEFAULT_POLICY and _FALLBACK in shipped:
        warnings.warn(
            f"policy {DEFAULT_POLICY!r} is not in this installation; using {_FALLBACK!r}",
            stacklevel=3,
        )
        return shipped[_FALLBACK]
    raise unknown_name("policy", str(policy), [*shipped, *beside])


def controller_for(
    policy: str | Path | Controller | None,
    hyperparameters: Sequence[Hyperparameter],
    *,
    decisions: int = 20,
) -> tuple[ControlSpec, Controller]:
    """Return the spec and the controller for a run.

    Args:
        policy: A shipped policy's name, a policy file, a controller of one's own (used under a
            plain `ControlSpec`, or its ``spec`` attribute), ``"random"``, or None, ``"reference"``
            or ``"zero"`` for the policy switched off.
        hyperparameters: What is steered.
        decisions: Number of decisions. A run with fewer than four steps for each has fewer, unless
            more than the usual 20 are asked for.

    Raises:
        UnknownNameError: No policy has that name.
        PolicyFileError: The file cannot be read as a policy.
    """
    from trimtab.controllers.fixed import RandomController, ReferenceController
    from trimtab.controllers.learned import LearnedController, read_policy

    least = LEAST_STEPS if decisions <= _USUAL_DECISIONS else 1
    plain = ControlSpec(
        hyperparameters=tuple(hyperparameters), decisions=decisions, least_steps=least
    )
    if policy is None or policy in ("reference", "zero"):
        return plain, ReferenceController(plain, name=str(policy or "reference"))
    if policy == "random":
        return plain, RandomController(plain)
    if not isinstance(policy, str | Path):
        own = getattr(policy, "spec", plain)
        return replace(own, hyperparameters=plain.hyperparameters, decisions=decisions), policy
    loaded = read_policy(policy_path(policy, beside=_FIXED))
    spec = replace(
        loaded.spec,
        hyperparameters=plain.hyperparameters,
        decisions=decisions,
        least_steps=min(loaded.spec.least_steps, least),
    )
    return spec, LearnedController(loaded)


def recorder_for(
    store: str | None, info: Any, *, run: int | None = None, awaits_figures: bool = False
) -> Recorder | None:
    """Return a recorder that writes to a store and tells trackers, or None when neither is wanted.

    Args:
        store: Database URL or file; None to keep no record.
        info: The `trimtab.core.decision.RunInfo` of the run; its ``log_to`` names the trackers: a
            folder for TensorBoard, ``mlflow:URI``, ``wandb:PROJECT``, or several of them.
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
    recorder: Any = None
    if store is not None:
        from trimtab.records.store.store import StoreRecorder

        recorder = StoreRecorder(store, info, run=run)
    if not trackers:
        return recorder  # type: ignore[no-any-return]
    from trimtab.records.trackers.fan_out import tell_trackers

    return tell_trackers(
        recorder, trackers, info, goes_on=run is not None, awaits_figures=awaits_figures
    )
