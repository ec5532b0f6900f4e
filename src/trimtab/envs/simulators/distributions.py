"""The documented distributions of the simulators, read from ``distributions.toml``."""

from __future__ import annotations

import hashlib
import tomllib
from functools import cache
from importlib import resources
from typing import Any


def _text() -> bytes:
    return resources.files(__package__).joinpath("distributions.toml").read_bytes()


@cache
def distributions() -> dict[str, Any]:
    """Return the tables of ``distributions.toml``; nobody may change them."""
    return tomllib.loads(_text().decode())


def distributions_hash() -> str:
    """Return the SHA-256 of the file, in hexadecimal digits; reports print it."""
    return hashlib.sha256(_text()).hexdigest()
