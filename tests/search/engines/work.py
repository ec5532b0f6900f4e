"""What the engines' tests let workers do."""

from __future__ import annotations

import os
import signal
import time


def square(number: int) -> tuple[int, int]:
    return number**2, os.getpid()


def square_slowly(number: int, seconds: float) -> tuple[int, int]:
    time.sleep(seconds)
    return square(number)


def fail_below(number: int, least: int = 1) -> int:
    if number < least:
        raise ValueError(f"{number} is below {least}")
    return number


def die_at(number: int, fatal: int) -> int:
    if number == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def environment(name: str, seconds: float) -> str | None:
    time.sleep(seconds)
    return os.environ.get(name)
