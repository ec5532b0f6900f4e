"""Where what is recorded came from: versions, commit, command line, machine and process."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import secrets
import shlex
import socket
import subprocess
import sys
from pathlib import Path

# Module name -> distribution name; looked up only if the module is loaded.
_PACKAGES: dict[str, str] = {
    "gymnasium": "gymnasium",
    "jax": "jax",
    "keras": "keras",
    "lightning": "lightning",
    "numpy": "numpy",
    "peft": "peft",
    "ray": "ray",
    "sklearn": "scikit-learn",
    "stable_baselines3": "stable-baselines3",
    "tensorflow": "tensorflow",
    "torch": "torch",
    "transformers": "transformers",
}


def package_versions() -> dict[str, str]:
    """Return the versions of Python, trimtab and every loaded package that computes, by name."""
    from trimtab import __version__

    versions = {"python": platform.python_version(), "trimtab": __version__}
    for module, package in _PACKAGES.items():
        if module in sys.modules:
            versions[package] = _version(module, package)
    return versions


@functools.cache
def _version(module: str, package: str) -> str:
    """Return a loaded package's version, looked up once a process: that takes milliseconds."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(sys.modules[module], "__version__", "unknown"))


def git_commit() -> str | None:
    """Return the commit of the working folder, with ``+`` after it if files differ, else None.

    Asked once a process and folder: that is the code which was loaded, whatever comes later.
    """
    return _commit_of(str(Path.cwd()))


@functools.cache
def _commit_of(folder: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--match="],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
            cwd=folder,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def command_line() -> str:
    """Return the command that started this process, with passwords in addresses blanked."""
    return re.sub(r"://([^:/@\s]+):[^@\s]*@", r"://\1:***@", shlex.join(sys.argv))


def machine() -> str:
    """Return the processor and how many of its cores this process may use, in words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = platform.processor() or platform.machine()
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", listed.read_text(), re.MULTILINE)
        name = found.group(1).strip() if found else name
    return f"{name}, {cores} core{'s' * (cores != 1)}"


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
    return pid.isdigit() and has_ended(host, int(pid), began)


def is_seen_from_here(host: str) -> bool:
    """Whether the processes of a host can be told from here to be alive or to have ended."""
    return host == socket.gethostname() and os.name == "posix"


def has_ended(host: str, pid: int, began: str = "0") -> bool:
    """Whether a process is known to have ended; False for one on another host.

    Args:
        host: Where it ran.
        pid: Its number.
        began: When it began, in the kernel's ticks, since numbers are used again; ``"0"`` if that
            is not known.
    """
    if not is_seen_from_here(host):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    now = _began(pid)
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
