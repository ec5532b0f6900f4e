"""NumPy arrays out of a pickle stream, of which nothing is executed.

A pickle is a program for a small machine that may call any function. Here its instructions are
listed by the standard library's disassembler and followed by hand, and only those that describe
one NumPy array are known; anything else is refused before it means something.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trimtab.core.errors import SpecError

_RECONSTRUCT = frozenset(
    {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}
)
_NDARRAY = ("numpy", "ndarray")
_DTYPE = ("numpy", "dtype")
_PLAIN_KINDS = "biuf"
_MARK = object()

_CONSTANTS = frozenset(
    {
        "BININT",
        "BININT1",
        "BININT2",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINBYTES",
        "BINBYTES8",
        "SHORT_BINBYTES",
    }
)
_LITERALS = {"NEWTRUE": True, "NEWFALSE": False, "NONE": None, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = frozenset({"PROTO", "FRAME"})


@dataclass(frozen=True)
class _Name:
    """A name that a stream mentions; never imported."""

    module: str
    attribute: str


@dataclass
class _Described:
    """An array or a type of elements that a stream describes, before and after its state."""

    made_of: tuple[Any, ...]
    is_array: bool
    state: tuple[Any, ...] | None = None


@dataclass
class _Machine:
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)


def read_array(stream: bytes) -> np.ndarray:
    """Return the one array of plain numbers that a pickle stream holds.

    Args:
        stream: Pickle of a NumPy array of booleans, integers or floats, of protocol 3 or 4; other
            protocols call more than NumPy's constructor.

    Raises:
        SpecError: The stream holds anything but such an array, names anything but NumPy's array
            constructor, or is damaged.
    """
    machine = _Machine()
    try:
        for code, argument, _ in pickletools.genops(stream):
            if code.name == "STOP":
                break
            _follow(machine, code.name, argument)
        (result,) = machine.stack
    except (IndexError, KeyError, TypeError, ValueError, UnicodeError) as error:
        if isinstance(error, SpecError):
            raise
        raise _refused(f"it is damaged ({error})") from error
    if not isinstance(result, _Described) or not result.is_array or result.state is None:
        raise _refused(f"it holds {type(result).__name__}")
    return _array(result.state)


def _refused(what: str) -> SpecError:
    return SpecError(
        f"array file: {what}; only a pickle of one plain NumPy array is read, so reinstall the "
        "package that it belongs to"
    )


def _follow(machine: _Machine, name: str, argument: Any) -> None:
    stack, memo = machine.stack, machine.memo
    if name in _CONSTANTS:
        stack.append(argument)
    elif name in _LITERALS:
        stack.append(_LITERALS[name])
    elif name in _TUPLES:
        stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
    elif name == "MARK":
        stack.append(_MARK)
    elif name == "TUPLE":
        at = max(i for i, item in enumerate(stack) if item is _MARK)
        stack[at:] = [tuple(stack[at + 1 :])]
    elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
        memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name == "GLOBAL":
        stack.append(_named(*argument.split(" ", 1)))
    elif name == "STACK_GLOBAL":
        attribute, module = stack.pop(), stack.pop()
        stack.append(_named(module, attribute))
    elif name == "REDUCE":
        arguments, function = stack.pop(), stack.pop()
        stack.append(_described(function, arguments))
    elif name == "BUILD":
        state = stack.pop()
        _give_state(stack[-1], state)
    elif name not in _IGNORED:
        raise _refused(f"it has the instruction {name}")


def _named(module: Any, attribute: Any) -> _Name:
    if (module, attribute) in _RECONSTRUCT or (module, attribute) in (_NDARRAY, _DTYPE):
        return _Name(module, attribute)
    raise _refused(f"it names {module}.{attribute}")


def _described(function: Any, arguments: Any) -> _Described:
    if not isinstance(function, _Name) or not isinstance(arguments, tuple):
        raise _refused(f"it calls {function!r}")
    if (function.module, function.attribute) in _RECONSTRUCT:
        return _Described(arguments, is_array=True)
    if (function.module, function.attribute) == _DTYPE:
        return _Described(arguments, is_array=False)
    raise _refused(f"it calls {function.module}.{function.attribute}")


def _give_state(described: Any, state: Any) -> None:
    if not isinstance(described, _Described) or not isinstance(state, tuple):
        raise _refused(f"it sets the state of {type(described).__name__}")
    described.state = state


def _array(state: tuple[Any, ...]) -> np.ndarray:
    if len(state) != 5:
        raise _refused(f"its array has a state of {len(state)} parts, not 5")
    _, shape, described, is_fortran, content = state
    if not isinstance(described, _Described) or described.is_array:
        raise _refused("its array has no type of elements")
    if not isinstance(content, bytes):
        raise _refused(f"its array's content is {type(content).__name__}")
    code = str(described.made_of[0]) if described.made_of else ""
    order = str(described.state[1]) if described.state and len(described.state) > 1 else ""
    if code[:1] not in _PLAIN_KINDS or not code[1:].isdigit() or order not in ("<", ">", "|", "="):
        raise _refused(f"its elements are of type {order}{code}")
    try:
        elements = np.frombuffer(content, np.dtype(order + code))
        return elements.reshape(shape, order="F" if is_fortran else "C").copy()
    except (TypeError, ValueError) as error:
        raise _refused(f"it is damaged ({error})") from error
