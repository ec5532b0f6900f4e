"""Whether an error of any framework says that memory ran out."""

from __future__ import annotations

_NAMES = frozenset({"MemoryError", "OutOfMemoryError", "ResourceExhaustedError"})
_SAYINGS = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of PyTorch, TensorFlow, JAX or Python says that memory ran out."""
    names = {cls.__name__ for cls in type(error).__mro__}
    said = str(error)
    if names & _NAMES or said.startswith("RESOURCE_EXHAUSTED"):
        return True
    return isinstance(error, RuntimeError) and any(words in said for words in _SAYINGS)
