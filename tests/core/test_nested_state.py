"""Nested states come back as they were, and whatever is wrong with a file is one error."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.core.errors import StoreError
from trimtab.core.nested_state import ArrayBytes, StateForm, is_pickle_or_zip, numpy_form

FORM = StateForm(
    format="test-1",
    tag_of=lambda value: "array" if isinstance(value, np.ndarray) else "",
    aside={"array": np.ascontiguousarray},
    back={"array": np.copy},
    error=StoreError,
    advice="begin again",
    has_text_keys=True,
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.lists(inner).map(tuple),
    max_leaves=12,
)


@given(PLAIN)
def test_what_is_taken_apart_comes_back(state: Any) -> None:
    found = FORM.put_together(*FORM.take_apart(state))
    assert found == state
    assert type(found) is type(state)


def test_arrays_come_back_from_beside_the_text() -> None:
    state = {"a": [np.arange(3)], "tensor": {"array": "a0"}, "tuple": ["map"]}
    text, arrays = FORM.take_apart(state)
    assert list(arrays) == ["a0"]
    found = FORM.put_together(text, arrays)
    assert np.array_equal(found.pop("a")[0], np.arange(3))
    assert found == {"tensor": {"array": "a0"}, "tuple": ["map"]}  # words of ours as keys


@pytest.mark.parametrize(
    ("odd", "words"), [({3: 1}, "key 3 is no text"), ([{1}], "cannot be kept")]
)
def test_what_cannot_be_kept_is_refused(odd: Any, words: str) -> None:
    with pytest.raises(StoreError, match=words):
        FORM.take_apart(odd)


@pytest.mark.parametrize(
    "text", ["", "[", '{"array": "none"}', '{"map": 3}', '{"tuple": null}', "{}", "[" * 100_000]
)
def test_damaged_text_is_refused_in_one_line(text: str) -> None:
    said = r"^here: no state can be read there .*; begin again$"
    with pytest.raises(StoreError, match=said), FORM.refusing("here"):
        FORM.put_together(text, {})


def test_integer_keys_come_back_where_they_are_kept() -> None:
    form = numpy_form("test-2", StoreError, "begin again", keeps_integers=True)
    state = {0: {"numbered": 1}, 7: [{"0": 2}], -1: {}}
    assert form.put_together(*form.take_apart(state)) == state
    plain = numpy_form("test-3", StoreError, "begin again")
    assert list(plain.put_together(*plain.take_apart(state))) == ["0", "7", "-1"]


def test_numpy_numbers_keep_their_type() -> None:
    form = numpy_form("test-2", StoreError, "begin again")
    found = form.put_together(*form.take_apart([np.float32(0.1), np.int64(3)]))
    assert [(type(one), one) for one in found] == [
        (np.float32, np.float32(0.1)),
        (np.int64, np.int64(3)),
    ]


def test_an_error_of_ours_is_told_as_it_is() -> None:
    with pytest.raises(StoreError, match=r"^mine$"), FORM.refusing("here"):
        raise StoreError("mine")


def test_another_format_and_another_content_are_refused() -> None:
    arrays = [("a0", ArrayBytes("int64", (1,), b"12345678"))]
    metadata = {"format": "test-1", "state": "[]", "weights": "w"}
    metadata["sha256"] = FORM.digest(metadata, arrays)
    FORM.require_format("here", metadata)
    FORM.require_content("here", metadata, arrays)
    with pytest.raises(StoreError, match=r"here: its format is None, expected 'test-1'"):
        FORM.require_format("here", {})
    for name in metadata:
        with pytest.raises(StoreError, match="changed after it was written"):
            FORM.require_content("here", {**metadata, name: "other"}, arrays)
    other = [("a0", ArrayBytes("int64", (1,), b"12345679"))]
    with pytest.raises(StoreError, match="changed after it was written"):
        FORM.require_content("here", metadata, other)


@pytest.mark.parametrize("length", [0x80, 0x280, 0x480, 0x580])
def test_a_header_whose_length_begins_as_a_pickle_does_is_none(length: int) -> None:
    data = length.to_bytes(8, "little") + b"{" + b" " * (length - 2) + b"}"
    assert not is_pickle_or_zip(data)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("what", [{"a": 1}, [1.5] * 40, "{" * 300])
def test_pickles_are_known_by_their_first_bytes(protocol: int, what: object) -> None:
    assert is_pickle_or_zip(pickle.dumps(what, protocol=protocol))
