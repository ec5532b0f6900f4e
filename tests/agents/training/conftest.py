"""What the tests of meta-training share: compiling that takes less time than what it compiles."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def quick_compiling() -> Iterator[None]:
    """Compile this module's programs as fast as can be; they run for milliseconds.

    Not where numbers of two programs are compared, which users' are to agree in.
    """
    jax = pytest.importorskip("jax")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()  # the next module gets programs as users do
