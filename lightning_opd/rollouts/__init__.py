"""Rollout engines: how responses are written."""

from lightning_opd.rollouts.in_process import InProcessEngine

__all__ = ["InProcessEngine"]
