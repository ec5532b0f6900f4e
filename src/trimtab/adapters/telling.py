"""Telling of each decision while a run goes on: one line, and a function of the user's own."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from trimtab.core.decision import Decision
from trimtab.core.notices import tell
from trimtab.core.shown import decision_line

_logger = logging.getLogger("trimtab")


class Teller:
    """Tells of decisions one after another.

    Args:
        verbose: Whether a line goes to standard error; None: if that is a terminal.
        on_decision: Called with each decision; what it raises is told once and stops nothing.
    """

    def __init__(
        self, verbose: bool | None = None, on_decision: Callable[[Decision], object] | None = None
    ) -> None:
        self._verbose, self._on_decision = verbose, on_decision
        self._before: Decision | None = None

    def __call__(self, decision: Decision) -> None:
        """Tell of a decision that has been applied."""
        is_seen = sys.stderr.isatty() if self._verbose is None else self._verbose
        if is_seen or _logger.isEnabledFor(logging.INFO):
            line = decision_line(decision, self._before)
            if is_seen:
                sys.stderr.write(f"trimtab: {line}\n")
            else:
                _logger.info(line)
        self._before = decision
        if self._on_decision is None:
            return
        try:
            self._on_decision(decision)
        except Exception as error:  # noqa: BLE001 - a look at a run must never stop it
            self._on_decision = None
            tell(
                f"on_decision raised {type(error).__name__}: {error}; it is not called any more, "
                "and the run goes on"
            )
