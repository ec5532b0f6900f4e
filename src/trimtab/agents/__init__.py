"""Learning to control: agents, the policy network, meta-training, evaluation."""

from __future__ import annotations

from trimtab.agents.base import Agent, load, make, names

__all__ = ["Agent", "load", "make", "names"]
