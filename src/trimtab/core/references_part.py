"""Reference schedules, under the name by which controllers know them."""

from __future__ import annotations

from trimtab.core.references import (
    REFERENCES,
    constant,
    cosine,
    one_cycle,
    reference_multipliers,
    warmup_linear,
)

__all__ = [
    "REFERENCES",
    "constant",
    "cosine",
    "one_cycle",
    "reference_multipliers",
    "warmup_linear",
]
