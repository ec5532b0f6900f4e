"""What a comparison has done so far: one file that only grows, safe against being cut off."""

from __future__ import annotations

import fnmatch
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any, TextIO

from trimtab.core.errors import SpecError, StoreError
from trimtab.records.store.encoding import from_json, to_json

# What no result hangs on, as patterns of paths inside the package: commands, pages and pictures,
# the training of policies, and the policies themselves, which a job names by their content.
_NO_RESULT = (
    "agents/*",
    "cli/*",
    "policies/*",
    "records/export/*",
    "records/reports/*",
    "records/trackers/*",
)
_SUFFIXES = frozenset({".py", ".toml"})
_PACKAGES = (
    "dog-optimizer",
    "efficient-polling-lr-scheduler",
    "gen-optim",
    "gymnasium",
    "hyperopt",
    "jax",
    "jaxlib",
    "mechanic-pytorch",
    "numpy",
    "optax",
    "optuna",
    "prodigy-plus-schedule-free",
    "prodigyopt",
    "pytorch-optimizer",
    "ray",
    "safetensors",
    "schedulefree",
    "scikit-learn",
    "scipy",
    "torch",
    "transformers",
)


def fingerprint(tasks: Iterable[str]) -> dict[str, str]:
    """Return what results depend on besides their settings, by name.

    ``code`` is `code_fingerprint`; ``task code`` names the modules of ``module:factory`` tasks;
    the rest are versions.
    """
    found = {"python": platform.python_version(), "machine": platform.machine()}
    found["code"] = code_fingerprint(Path(str(resources.files("trimtab"))))
    own = []
    for name in sorted({task.rpartition(":")[0] for task in tasks if ":" in task}):
        if name.endswith(".py"):
            own.append(Path(name).resolve())
            continue
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin:
            own.append(Path(spec.origin))
    if own:
        found["task code"] = _hash_of(own, None)
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "–"
    return found


def code_fingerprint(source: Path) -> str:
    """Return 16 hexadecimal digits that name all code that a result can hang on.

    Left out is what only shows, tells or trains policies; what is new and unknown counts.

    Args:
        source: The package's folder.
    """
    found = []
    for file in source.rglob("*"):
        path = file.relative_to(source).as_posix()
        shows = any(fnmatch.fnmatchcase(path, pattern) for pattern in _NO_RESULT)
        if file.suffix in _SUFFIXES and not shows:
            found.append(file)
    return _hash_of(sorted(found), source)


def _lock(file: TextIO, folder: Path) -> None:
    """Keep other processes out until the file is closed, where the system can do that."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise SpecError(
            f"--out {folder} is used by another comparison that is still running; "
            "wait for it, or choose another folder"
        ) from error


def _hash_of(files: Iterable[Path], root: Path | None) -> str:
    digest = hashlib.sha256()
    for file in files:
        name = file.name if root is None else file.relative_to(root).as_posix()
        digest.update(f"{name}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


class Journal:
    """The results in a folder, by key; use it in a ``with`` block.

    Each result is one line, complete when it is written; what was cut off in the middle of a line
    is dropped at the next opening. A lock keeps a second process out.

    Attributes:
        results: Key -> result.

    Args:
        folder: Made if it is missing.
        identity: What all results in it depend on; see `fingerprint`.

    Raises:
        SpecError: The folder cannot be written, another process uses it, or it holds results of
            another code or other versions.
        StoreError: A line of the results is damaged, or the disk takes no more.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str]) -> None:
        self.folder, self.identity = folder, dict(identity)
        self.results: dict[str, dict[str, Any]] = {}
        self._path = folder / "results.jsonl"
        self._file: TextIO | None = None

    def __enter__(self) -> Journal:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+", encoding="utf-8")
        except OSError as error:
            raise SpecError(
                f"--out {self.folder} cannot be written ({error.strerror or error}); "
                "choose another folder"
            ) from error
        try:
            _lock(self._file, self.folder)
            self._read()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with suppress(OSError):  # what a full disk did not take was told of by `add`
                self._file.close()

    def add(self, key: str, result: Mapping[str, Any]) -> None:
        """Keep a result; it is on the disk when this returns.

        Raises:
            StoreError: The disk takes no more; what was kept before is untouched.
        """
        line = to_json({"key": key, "result": dict(result)})
        self._write(line)
        self.results[key] = from_json(line)["result"]

    def _read(self) -> None:
        assert self._file is not None, "open first"
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self._path, len(whole))
        lines = whole.splitlines()
        if not lines:
            self._write(to_json({"made by": self.identity}))
            return
        self._require_same(self._object(lines, 1, "made by")["made by"])
        for number in range(2, len(lines) + 1):
            entry = self._object(lines, number, "result")
            self.results[entry["key"]] = entry["result"]

    def _object(self, lines: Sequence[bytes], number: int, holds: str) -> dict[str, Any]:
        """Return what a line says, counted from 1."""
        try:
            entry = from_json(lines[number - 1].decode())
        except ValueError:
            entry = None
        is_whole = isinstance(entry, dict) and isinstance(entry.get(holds), dict)
        if is_whole and (number == 1 or isinstance(entry.get("key"), str)):
            return dict(entry)
        start = lines[number - 1][:40].decode(errors="replace")
        remedy = (
            "choose another folder"
            if number == 1
            else "delete this line: what it held is done again, and all else is kept"
        )
        raise StoreError(f"{self._path}: line {number} is damaged (it begins {start!r}); {remedy}")

    def _require_same(self, theirs: Mapping[str, str]) -> None:
        names = sorted(theirs.keys() | self.identity.keys())
        differing = [
            f"{name} {theirs.get(name, '–')} there, {self.identity.get(name, '–')} here"
            for name in names
            if theirs.get(name) != self.identity.get(name)
        ]
        if differing:
            raise SpecError(
                f"--out {self.folder} holds results of other code or versions "
                f"({'; '.join(differing)}); choose another folder, or delete this one"
            )

    def _write(self, line: str) -> None:
        assert self._file is not None, "open first"
        try:
            self._file.write(line + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StoreError(
                f"{self._path} cannot be written ({error.strerror or error}); what was done is "
                "kept: make room and run the same command again"
            ) from error
