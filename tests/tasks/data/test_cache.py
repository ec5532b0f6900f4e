"""The cache saves time and is never a reason to fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trimtab.tasks.data import cache
from trimtab.tasks.data.cache import cache_folder, cached_arrays


class Build:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.calls += 1
        return {"a": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.array([7])}


def test_the_second_call_reads_what_the_first_built(tmp_path: Path) -> None:
    build = Build()
    built = cached_arrays("x", {"size": 1}, build, folder=tmp_path)
    read = cached_arrays("x", {"size": 1}, build, folder=tmp_path)

    assert build.calls == 1
    for name, array in built.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)
    assert len(list(tmp_path.iterdir())) == 1


def test_other_inputs_are_another_entry(tmp_path: Path) -> None:
    build = Build()
    cached_arrays("x", {"size": 1}, build, folder=tmp_path)
    cached_arrays("x", {"size": 2}, build, folder=tmp_path)

    assert build.calls == 2


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_a_damaged_file_is_built_anew(tmp_path: Path, damage: bytes | None) -> None:
    build = Build()
    cached_arrays("x", {}, build, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if damage is None else damage)
    again = cached_arrays("x", {}, build, folder=tmp_path)

    assert build.calls == 2
    assert again["b"].tolist() == [7]
    assert path.read_bytes() == content


def test_a_folder_that_cannot_be_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    built = cached_arrays("x", {}, Build(), folder=tmp_path / "file" / "below")

    assert built["b"].tolist() == [7]


def test_a_full_disk_leaves_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.Path, "replace", full)
    built = cached_arrays("x", {}, Build(), folder=tmp_path)

    assert built["b"].tolist() == [7]
    assert list(tmp_path.iterdir()) == []


def test_the_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "trimtab"

    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    folder = cache_folder()
    assert folder is not None
    assert folder.is_absolute()
