"""Arrays that are slow to compute, kept in the user's cache folder; losing them costs only time."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors


def cache_folder() -> Path | None:
    """Return trimtab's folder below the user's cache folder, or None where there is no home.

    ``XDG_CACHE_HOME`` is used where it is set (an absolute path), else the system's custom.
    """
    configured = os.environ.get("XDG_CACHE_HOME", "")
    if configured and Path(configured).is_absolute():
        return Path(configured) / "trimtab"
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"]) / "trimtab" / "Cache"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    below = "Library/Caches" if sys.platform == "darwin" else ".cache"
    return home / below / "trimtab"


def cached_arrays(
    name: str,
    inputs: Mapping[str, object],
    build: Callable[[], dict[str, np.ndarray]],
    *,
    folder: Path | None = None,
) -> dict[str, np.ndarray]:
    """Return ``build()``'s arrays, from disk if they were built from the same inputs before.

    A missing, damaged or foreign file is built anew, and a folder that cannot be written (read
    only, full) is left alone: neither is an error. Files are complete when they appear, so
    several processes may share the folder. A file is a SHA-256 digest followed by safetensors
    with that digest; reading one runs no code.

    Args:
        name: Start of the file's name, such as ``"solar-cells"``.
        inputs: Everything that the arrays depend on (versions, sizes, hashes); JSON-like values.
        build: Computes the arrays.
        folder: Where to keep them; None for `cache_folder`.
    """
    folder = cache_folder() if folder is None else folder
    recipe = repr(sorted((key, str(value)) for key, value in inputs.items()))
    key = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    path = None if folder is None else folder / f"{name}-{key}.arrays"
    found = None if path is None else _read(path)
    if found is not None:
        return found
    arrays = {name: np.ascontiguousarray(array) for name, array in build().items()}
    if path is not None:
        _write(path, arrays)
    return arrays


_DIGEST_BYTES = 32


def _read(path: Path) -> dict[str, np.ndarray] | None:
    try:
        content = path.read_bytes()
        digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != digest:
            return None
        return {key: np.asarray(array) for key, array in load_safetensors(body).items()}
    except (OSError, SafetensorError, ValueError):
        return None


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    body = save_safetensors(arrays)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(body).digest() + body)
        Path(temporary).replace(path)
    except OSError:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
