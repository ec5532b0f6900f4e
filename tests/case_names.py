"""Names of test cases that are alike in every process, so that several can share the tests."""

import re


def without_address(value: object) -> str:
    """Return what a value prints, without the address that differs from process to process."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))
