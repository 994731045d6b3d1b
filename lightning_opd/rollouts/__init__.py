"""Rollout engines: how responses are generated."""

from lightning_opd.rollouts.in_process import InProcessEngine

__all__ = ["InProcessEngine"]
