"""A PostgreSQL server of the tests' own, where the machine has the programs for one."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

__all__ = ["new_database", "postgres"]


def _account() -> str | None:
    """Return who the server runs as: it refuses to run as root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in known)


def _initialise(folder: Path, as_user: dict[str, Any]) -> None:
    words = ["initdb", "-D", str(folder / "data"), "-A", "trust", "-U", "tester", "-E", "UTF8"]
    subprocess.run([*words, "--no-sync"], check=True, capture_output=True, **as_user)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Start a server that listens on a socket only; give the URL of its first database."""
    missing = [name for name in ("initdb", "postgres", "psql") if shutil.which(name) is None]
    if importlib.util.find_spec("psycopg") is None:
        missing.append("the Python package psycopg")
    if missing:
        pytest.skip(f"PostgreSQL is not here: {', '.join(missing)} not found")
    folder = Path(tempfile.mkdtemp(prefix="trimtab-pg-"))
    account = _account()
    if account is not None:
        shutil.chown(folder, account)
    as_user = {"user": account, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C"}}
    _initialise(folder, as_user)
    options = ["-c", "listen_addresses=", "-c", "fsync=off", "-k", str(folder)]
    server = subprocess.Popen(
        ["postgres", "-D", str(folder / "data"), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **as_user,
    )
    asked = ["psql", "-h", str(folder), "-U", "tester", "-d", "postgres", "-c", "select 1"]
    try:
        for _ in range(100):
            if subprocess.run(asked, capture_output=True, check=False).returncode == 0:
                break
            server.poll() is None or pytest.fail("the PostgreSQL server ended")
            subprocess.run(["sleep", "0.1"], check=True)
        yield f"postgresql+psycopg://tester@/postgres?host={folder}"
    finally:
        server.send_signal(signal.SIGINT)  # does not wait for clients
        server.wait(timeout=20)
        shutil.rmtree(folder, ignore_errors=True)


def new_database(url: str) -> str:
    """Return the URL of an empty database on the server that `postgres` gave."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    folder = url.partition("host=")[2]
    made = ["psql", "-h", folder, "-U", "tester", "-d", "postgres", "-c", f"create database {name}"]
    subprocess.run(made, check=True, capture_output=True)
    return url.replace("/postgres?", f"/{name}?")
