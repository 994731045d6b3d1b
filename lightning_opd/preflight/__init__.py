"""Checks of a run before it costs anything: settings, prompts, folders, tokenizers, models."""

from lightning_opd.preflight.callback import Preflight
from lightning_opd.preflight.report import Check, Report, Status
from lightning_opd.preflight.trainer import PreflightTrainer

__all__ = ["Check", "Preflight", "PreflightTrainer", "Report", "Status"]
