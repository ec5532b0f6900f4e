"""JAX in a process that was forked from one in which it ran: it would wait for ever.

Its threads stay in the parent, and what waits for them in the child waits without an end. Episodes
are refused there instead.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from typing import Any

from trimtab.core.errors import SpecError

_IMPORTS_JAX = re.compile(r"^\s*(import|from) jax\b", re.MULTILINE)
_NUMPY_FAMILY = "simulated/quadratic"
_forked: list[int] = []  # this process, if it was forked from one where JAX ran


def _note_fork() -> None:
    bridge = sys.modules.get("jax._src.xla_bridge")
    _forked.clear()
    if bridge is not None and getattr(bridge, "backends_are_initialized", bool)():
        _forked.append(os.getpid())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def is_fork_of_jax() -> bool:
    """Return whether JAX cannot run in this process, as it ran in the one it was forked from."""
    return bool(_forked)


def runs_on_jax(task: Any) -> bool:
    """Return whether a task, or what a task is named, trains under JAX, as far as can be seen."""
    name = task if isinstance(task, str) else str(getattr(task, "name", ""))
    if name.startswith("simulated/"):
        return name.partition("@")[0] != _NUMPY_FAMILY
    if isinstance(task, str):
        return False
    module = sys.modules.get(task.__module__ if inspect.isroutine(task) else type(task).__module__)
    keras = sys.modules.get("keras")
    try:
        source = inspect.getsource(module) if module is not None else ""
    except (OSError, TypeError):
        return any(getattr(one, "__name__", "") == "jax" for one in vars(module).values())
    on_keras = keras is not None and keras.backend.backend() == "jax" and "keras" in source
    return on_keras or _IMPORTS_JAX.search(source) is not None


def refuse_jax() -> SpecError:
    """Return the error for an episode that would wait for ever."""
    return SpecError(
        f"process {os.getpid()} was forked from one in which JAX ran, and JAX would wait for ever "
        "in it; let worker processes be spawned: "
        'gymnasium.make_vec(..., vectorization_mode="async", vector_kwargs={"context": "spawn"}), '
        'SubprocVecEnv(..., start_method="spawn"); or leave vectorization_mode out, which batches '
        "simulated tasks in this process"
    )
