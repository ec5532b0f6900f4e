"""What a study asks of whoever does its runs."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

from trimtab.core.errors import BlindPolicyWarning, SpecError
from trimtab.core.notices import tell
from trimtab.records.store.transactions import StoreWaitWarning


class Done(NamedTuple):
    """A unit that came back.

    Attributes:
        place: Which one, in the order given.
        result: What the function returned; None if it failed.
        error: What went wrong in one line, else nothing.
        trace: The traceback of that.
        died: Whether the worker ended (killed, out of memory) before it could answer; the unit may
            be given again.
    """

    place: int
    result: Any
    error: str = ""
    trace: str = ""
    died: bool = False


@dataclass(frozen=True)
class Resources:
    """What one unit is given while it runs.

    Attributes:
        cpus: Cores, each worker computing with as many threads, at least one.
        gpus: Accelerators; a share below 1 lets several units use one. None: what there is is
            shared out evenly.

    Raises:
        SpecError: A number is negative, or no core is asked for.
    """

    cpus: float = 1.0
    gpus: float | None = None

    def __post_init__(self) -> None:
        if not self.cpus > 0:
            raise SpecError(f"cpus: {self.cpus!r} is not above 0; give the cores of one run")
        if self.gpus is not None and not self.gpus >= 0:
            raise SpecError(f"gpus: {self.gpus!r} is below 0; give 0, 1 or a share such as 0.5")


class Engine(Protocol):
    """Workers that do units; warm from one call of `run` to the next, until `close`.

    Functions have to be importable (module level), their arguments and results plain data, since
    every worker is another interpreter, perhaps on another machine. A worker does one unit at a
    time. A worker that dies is replaced; its unit comes back with ``died``. A worker outlives
    neither `close` nor whoever made the engine. An interruption (Ctrl-C) reaches the caller only,
    who then closes the engine.

    Attributes:
        name: ``"local"`` or ``"ray"``.
        jobs: Units at a time.
    """

    name: str
    jobs: int

    def run(self, function: Callable[..., Any], units: Sequence[tuple[Any, ...]]) -> Iterator[Done]:
        """Yield what ``function(*unit)`` returns for each unit, as it comes, each exactly once.

        Closing the iterator early ends the units that have not come back.
        """
        ...

    def close(self) -> None:
        """End all workers, at once where one is busy; calling it again changes nothing."""
        ...

    def __enter__(self) -> Self:
        """Return the engine."""
        ...

    def __exit__(self, *raised: Any, **_: Any) -> None:
        """Close it."""
        ...


def answer_of(function: Callable[..., Any], unit: tuple[Any, ...]) -> tuple[Any, str, str]:
    """Return what ``function(*unit)`` returns, or None, what it raised in one line, and the trace.

    >>> answer_of(int, ("7",)), answer_of(int, ("x",))[1]
    ((7, '', ''), "ValueError: invalid literal for int() with base 10: 'x'")
    """
    try:
        return function(*unit), "", ""
    except Exception as error:  # noqa: BLE001 - one failed unit must not end the others
        return None, in_one_line(error), traceback.format_exc()


def worker_answer_of(
    function: Callable[..., Any], unit: tuple[Any, ...]
) -> tuple[tuple[Any, str, str], tuple[str, ...]]:
    """Return `answer_of`, and what a worker's unit told that the caller has to hear."""
    told: list[str] = []

    def show(message: Warning | str, *rest: Any, **named: Any) -> None:
        if isinstance(message, BlindPolicyWarning):
            told.append(str(message))
        else:
            _show_warning(message, *rest, **named)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=BlindPolicyWarning)
        warnings.showwarning = show
        return answer_of(function, unit), tuple(told)


def retell(told: Iterable[str], heard: set[str]) -> None:
    """Tell the caller what workers told, each thing once.

    Args:
        told: As `worker_answer_of` gave it.
        heard: What the caller was told before; added to.
    """
    for words in told:
        if words not in heard:
            heard.add(words)
            tell(words, BlindPolicyWarning)


def in_one_line(error: BaseException) -> str:
    """Return an error's kind and message."""
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"


def quieten_worker() -> None:
    """Silence what is warned of in a worker process, but for a wait for the store, in one line."""
    warnings.simplefilter("ignore")
    warnings.filterwarnings("always", category=StoreWaitWarning)
    warnings.showwarning = _show_warning


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    sys.stderr.write(f"trimtab: warning: {message}\n")
