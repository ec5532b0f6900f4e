"""Who a process is, so that another can tell whether it is still there."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

__all__ = ["is_gone", "process_token"]


def process_token() -> str:
    """Return text that names this process on this host, and one claim of it.

    It holds the host, the process number, when that process began (numbers are used again) and a
    random word.
    """
    pid = os.getpid()
    return f"{socket.gethostname()}:{pid}:{_began(pid) or 0}:{secrets.token_hex(8)}"


def is_gone(token: str) -> bool:
    """Whether the process of a token is known to have ended; False for one on another host."""
    host, _, rest = token.rpartition(":")[0].partition(":")
    pid, _, began = rest.partition(":")
    if host != socket.gethostname() or os.name != "posix" or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    now = _began(int(pid))
    # A process that has ended and was not waited for yet has no parts of its own any more.
    return now == "" or (now is not None and began not in ("0", now))


def _began(pid: int) -> str | None:
    """Return when a process began in the kernel's ticks; "" if it has ended; None if unknown."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] in ("Z", "X") else fields[19]
