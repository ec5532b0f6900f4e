"""Pickled arrays are read as data; whatever else a pickle asks for is refused, not done."""

from __future__ import annotations

import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab.core.errors import SpecError
from trimtab.tasks.data.array_stream import read_array


class Deletes:
    """What a hostile file holds: unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.uint8).reshape(1, 2, 3),
        np.arange(300, dtype=">i4"),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([True, False]),
    ],
)
def test_arrays_come_back(array: np.ndarray, protocol: int) -> None:
    stream = pickle.dumps(array, protocol=protocol)
    read = read_array(stream)
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("protocol", [0, 1, 2, 5])
def test_protocols_that_call_a_codec_or_another_reader_are_refused(protocol: int) -> None:
    with pytest.raises(SpecError, match=r"it names|instruction"):
        read_array(pickle.dumps(np.arange(300), protocol=protocol))


def test_a_call_of_anything_else_is_refused_and_not_made(tmp_path: Path) -> None:
    target = tmp_path / "made"
    for protocol in range(6):
        with pytest.raises(SpecError, match=r"mkdir|instruction"):
            read_array(pickle.dumps(Deletes(target), protocol=protocol))
    assert not target.exists()


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"a": 1},
        3,
        "text",
        OrderedDict(a=1),
        np.array([object()]),
        np.array(["text"]),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        np.datetime64("2020-01-01"),
        [np.zeros(2)],
        np.ma.masked_array([1, 2], [True, False]),
    ],
)
def test_what_is_no_plain_array_is_refused(content: object) -> None:
    with pytest.raises(SpecError, match=r"array file: .* only a pickle of one plain NumPy array"):
        read_array(pickle.dumps(content, protocol=4))


def test_a_call_of_numpy_itself_is_refused() -> None:
    stream = b"\x80\x04\x8c\x05numpy\x8c\x07ndarray\x93K\x03\x85R."
    with pytest.raises(SpecError, match=r"it calls numpy\.ndarray"):
        read_array(stream)


def test_a_state_for_something_else_is_refused() -> None:
    stream = b"\x80\x04\x8c\x05numpy\x8c\x05dtype\x93K\x03\x85b."
    with pytest.raises(SpecError, match="it sets the state of _Name"):
        read_array(stream)


@pytest.mark.parametrize("cut", [0, 1, 30, 120, -1])
def test_a_damaged_stream_is_refused(cut: int) -> None:
    buffer = io.BytesIO()
    pickle.dump(np.arange(50), buffer, protocol=4)
    with pytest.raises(SpecError, match="array file: "):
        read_array(buffer.getvalue()[:cut])


def test_content_of_the_wrong_size_is_refused() -> None:
    stream = pickle.dumps(np.arange(4, dtype=np.uint8), protocol=4)
    with pytest.raises(SpecError, match="array file: "):
        read_array(stream.replace(b"C\x04\x00\x01\x02\x03", b"C\x03\x00\x01\x02"))
