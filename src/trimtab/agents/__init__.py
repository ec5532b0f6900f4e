"""Learning to control: agents, the policy network, meta-training, evaluation."""

from __future__ import annotations

from trimtab.agents.base import load, make, names

__all__ = ["load", "make", "names"]
