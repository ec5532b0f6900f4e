"""NumPy with short ways for single numbers, so that a live decision costs microseconds.

`observe` and `apply` are written once against an array namespace. Most of what they compute for
one run are single numbers, and NumPy's functions spend 0.5 to 5 microseconds on each before they
compute anything. `SCALAR_NUMPY` offers the functions that the core uses under the same names, with
the same results: where the arguments are single numbers it chooses and compares directly, else it
calls NumPy. The arithmetic stays NumPy's float32 in both cases.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np


class ScalarNumpy:
    """The functions of NumPy that the core uses; the docstrings say what differs inside."""

    float32 = np.float32
    log = staticmethod(np.log)
    log10 = staticmethod(np.log10)
    exp = staticmethod(np.exp)
    tanh = staticmethod(np.tanh)
    sign = staticmethod(np.sign)
    abs = staticmethod(abs)
    concatenate = staticmethod(np.concatenate)

    @staticmethod
    def asarray(value: Any, dtype: Any = None) -> Any:
        """Return a float32 scalar for a number asked for as float32, else what NumPy gives."""
        if dtype is np.float32 and isinstance(value, float | int | np.generic):
            return np.float32(value)
        return np.asarray(value, dtype)

    @staticmethod
    def all(value: Any) -> Any:
        """Return whether all elements are true, without NumPy's dispatch."""
        return value.all()

    @staticmethod
    def isfinite(value: Any) -> Any:
        """Return a NumPy boolean for a scalar, so that ``~`` negates it."""
        return (
            np.isfinite(value) if isinstance(value, np.ndarray) else np.bool_(math.isfinite(value))
        )

    @staticmethod
    def isnan(value: Any) -> Any:
        """Return a NumPy boolean for a scalar, so that ``~`` negates it."""
        return np.isnan(value) if isinstance(value, np.ndarray) else np.bool_(math.isnan(value))

    @staticmethod
    def where(condition: Any, yes: Any, no: Any) -> Any:
        """Return one of the two for a scalar condition, unless the other's shape is the larger."""
        if isinstance(condition, np.ndarray):
            return np.where(condition, yes, no)
        chosen, other = (yes, no) if condition else (no, yes)
        if isinstance(other, np.ndarray) and getattr(chosen, "shape", ()) != other.shape:
            return np.where(condition, yes, no)
        return chosen

    @staticmethod
    def mean(values: Any, axis: int) -> Any:
        """Return the mean over an axis; of one row it is that row, to the last bit."""
        if axis == 0 and len(values) == 1:
            return values[0]
        return np.mean(values, axis=axis)

    @staticmethod
    def minimum(first: Any, second: Any) -> Any:
        """Return the smaller, or nan if one of them is."""
        if isinstance(first, np.ndarray) or isinstance(second, np.ndarray):
            return np.minimum(first, second)
        return first if first <= second or first != first else second

    @staticmethod
    def maximum(first: Any, second: Any) -> Any:
        """Return the larger, or nan if one of them is."""
        if isinstance(first, np.ndarray) or isinstance(second, np.ndarray):
            return np.maximum(first, second)
        return first if first >= second or first != first else second

    @classmethod
    def clip(cls, value: Any, low: Any, high: Any) -> Any:
        """Return the value within the bounds; nan stays nan."""
        return cls.minimum(cls.maximum(value, low), high)

    @staticmethod
    def take(values: Any, index: Any, axis: int = 0) -> Any:
        """Return what stands at an index of the first axis."""
        if axis != 0:
            return np.take(values, index, axis=axis)
        return values[index]

    @staticmethod
    def stack(items: Sequence[Any], axis: int = 0) -> Any:
        """Return a float32 array of the items, in one conversion."""
        stacked = np.array(items, np.float32)
        if axis == -1 and stacked.ndim == 2:
            return stacked.T
        return stacked if axis == 0 else np.moveaxis(stacked, 0, axis)


SCALAR_NUMPY = ScalarNumpy()


def namespace_of(xp: Any) -> Any:
    """Return the namespace to compute with: the fast one for ``numpy``, any other as it is."""
    return SCALAR_NUMPY if xp is np else xp


def quiet(xp: Any) -> contextlib.AbstractContextManager[Any]:
    """Return a context without NumPy's warnings: infinity and nan are signals here, not faults."""
    is_numpy = xp is np or xp is SCALAR_NUMPY
    return np.errstate(all="ignore") if is_numpy else contextlib.nullcontext()
