"""Going on after a training step of ``fit`` that found no memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trimtab.adapters.keras.keras_variables import backend_name

__all__ = ["MemoryGuard", "is_out_of_memory"]

_MOST_IN_A_ROW = 3
_ERRORS = frozenset({"MemoryError", "OutOfMemoryError", "ResourceExhaustedError"})


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of TensorFlow, JAX, PyTorch or Python says that memory ran out."""
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & _ERRORS) or str(error).startswith("RESOURCE_EXHAUSTED")


class MemoryGuard:
    """Stands around a model's compiled training function, under TensorFlow and PyTorch.

    A step that runs out of memory may have changed some weights and not others. The run goes back
    to its best state and on with the next batch; the lost one counts. The third such step in a row
    is the user's to see, as is every one under JAX, whose step has given its state away by then.

    Args:
        model: Whose ``train_function`` has been made.
        mend: Goes back to the best state, told what happened; returns False if it cannot.

    Attributes:
        lost: Whether the latest execution was lost.
    """

    def __init__(self, model: Any, mend: Callable[[BaseException], bool]) -> None:
        self.lost = False
        self._mend, self._in_a_row = mend, 0
        self._model, self._function = model, model.train_function
        self._installed: Any = None
        if backend_name() != "jax":
            self._installed = model.train_function = self._train

    def release(self) -> None:
        """Give the model its own training function back, if it still has ours."""
        if self._installed is not None and self._model.train_function is self._installed:
            self._model.train_function = self._function

    def _train(self, iterator: Any) -> Any:
        try:
            logs = self._function(iterator)
        except Exception as error:
            self._in_a_row += 1
            out = is_out_of_memory(error) and self._in_a_row < _MOST_IN_A_ROW
            if not out or not self._mend(error):
                raise
            self.lost = True
            return self._model.get_metrics_result()
        self.lost, self._in_a_row = False, 0
        return logs
