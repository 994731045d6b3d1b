"""Rollout engines: how responses are generated."""

from lightning_opd.rollouts.in_process import InProcessEngine
from lightning_opd.rollouts.vllm import VLLMEngine

__all__ = ["InProcessEngine", "VLLMEngine"]
