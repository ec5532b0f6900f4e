"""The errors that trimtab raises; each also is the built-in that a caller would expect.

TrimtabError
├── SpecError (ValueError)          a setting is out of range or two settings disagree
│   └── IncompatiblePolicyError     a policy was made for another contract
├── UnknownNameError (LookupError)  a name is not registered; the message offers the nearest
├── PolicyFileError (ValueError)    a policy file is unreadable, truncated or foreign
├── MetricError (ValueError)        a user's function returned something that cannot be steered by
├── AdapterError (ValueError)       a framework object cannot be steered as it is
├── MissingDependencyError (ImportError)  an optional package is needed for what was asked
├── StoreError (RuntimeError)       the record of runs cannot be read or written
└── RescueError (RuntimeError)      a run could not be saved, and the user wants to be stopped

TrimtabWarning (UserWarning)        what the user can change, said once, in a run that goes on
└── BlindPolicyWarning              a task does not report losses that the policy reads
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AdapterError",
    "BlindPolicyWarning",
    "IncompatiblePolicyError",
    "MetricError",
    "MissingDependencyError",
    "PolicyFileError",
    "RescueError",
    "SpecError",
    "StoreError",
    "TrimtabError",
    "TrimtabWarning",
    "UnknownNameError",
    "note_task",
    "noted_task",
    "unknown_name",
]

_ALSO_CALLED = {
    **dict.fromkeys(("learning_rate", "learningrate", "lr_rate", "rate", "eta", "alpha"), "lr"),
    **dict.fromkeys(("wd", "decay", "l2", "weightdecay"), "weight_decay"),
    **dict.fromkeys(("betas", "beta", "beta_1", "adam_beta1"), "beta1"),
    **dict.fromkeys(("dropout_rate", "drop_rate", "p_drop"), "dropout"),
    **dict.fromkeys(("grad_clip", "max_grad_norm", "clipnorm", "gradient_clip_val"), "clip"),
    **dict.fromkeys(("batchsize", "bs"), "batch_size"),
    **dict.fromkeys(("smoothing", "label_smoothing_factor"), "label_smoothing"),
}
"""What hyperparameters are called elsewhere."""

_OF_TASK = "raised where this task was made: "


class TrimtabError(Exception):
    """The root of every error that trimtab raises on purpose."""


class SpecError(TrimtabError, ValueError):
    """A setting is outside what is allowed, or two settings contradict each other."""


class IncompatiblePolicyError(SpecError):
    """A policy was trained under another contract than the one it is asked to run under."""


class UnknownNameError(TrimtabError, LookupError):
    """A name was looked up that nobody registered."""


class PolicyFileError(TrimtabError, ValueError):
    """A policy file cannot be read as one."""


class MetricError(TrimtabError, ValueError):
    """A measured value, or the function that measures it, cannot be used."""


class AdapterError(TrimtabError, ValueError):
    """A framework's object (optimiser, scheduler, trainer) cannot be steered as given."""


class MissingDependencyError(TrimtabError, ImportError):
    """An optional package is not installed."""


class StoreError(TrimtabError, RuntimeError):
    """The record of runs cannot be opened, read or written."""


class RescueError(TrimtabError, RuntimeError):
    """A run went wrong in a way that nothing mends."""


class TrimtabWarning(UserWarning):
    """Something that the user can change, in a run that goes on without it."""


class BlindPolicyWarning(TrimtabWarning):
    """A task does not report losses that the policy reads; told from other processes as well."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Return the error for a name that is not registered, with the nearest known one.

    >>> str(unknown_name("controller", "cosin", ["cosine", "constant"]))
    "unknown controller 'cosin'; did you mean 'cosine'? (have: constant, cosine)"
    >>> str(unknown_name("hyperparameter", "learning_rate", ["clip", "lr"]))
    "unknown hyperparameter 'learning_rate'; did you mean 'lr'? (have: clip, lr)"
    """
    have = sorted(known)
    called = _ALSO_CALLED.get(name.lower().replace("-", "_").replace(" ", "_"))
    if kind == "hyperparameter" and called in have:
        near = [called]
    else:
        near = difflib.get_close_matches(name, have, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return UnknownNameError(f"unknown {kind} {name!r}{hint} (have: {', '.join(have) or 'none'})")


def note_task(error: Exception, reference: str) -> None:
    """Note on an error of a user's code which task it came from; it stays what it was.

    >>> error = ZeroDivisionError("three sheep short")
    >>> note_task(error, "farm:sheep")
    >>> noted_task(error)
    'farm:sheep'
    """
    error.add_note(f"{_OF_TASK}{reference}")


def noted_task(error: BaseException) -> str | None:
    """Return the task that `note_task` noted on an error, None if there is none."""
    for note in getattr(error, "__notes__", ()):
        if note.startswith(_OF_TASK):
            return str(note.removeprefix(_OF_TASK))
    return None
