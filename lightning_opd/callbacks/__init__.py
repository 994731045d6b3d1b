"""Callbacks: masks, rewards and reports on each rollout batch, and the export at the end of training."""

from lightning_opd.callbacks.export import ExportHuggingFace
from lightning_opd.callbacks.first_special_token_mask import FirstSpecialTokenMask
from lightning_opd.callbacks.format_error_mask import FormatErrorMask
from lightning_opd.callbacks.hack_detector import HackDetector
from lightning_opd.callbacks.last_checkpoint import LastCheckpoint
from lightning_opd.callbacks.outcome_reward import OutcomeReward, TaskReward, WeightedReward, WellFormed
from lightning_opd.callbacks.preemption import Preemption
from lightning_opd.callbacks.progress_bar import RolloutProgressBar
from lightning_opd.callbacks.rank_watch import RankWatch
from lightning_opd.callbacks.rollout_table import RolloutTable
from lightning_opd.callbacks.run_summary import RunSummary
from lightning_opd.callbacks.teacher_balance import TeacherBalance

__all__ = [
    "ExportHuggingFace",
    "FirstSpecialTokenMask",
    "FormatErrorMask",
    "HackDetector",
    "LastCheckpoint",
    "OutcomeReward",
    "Preemption",
    "RankWatch",
    "RolloutProgressBar",
    "RolloutTable",
    "RunSummary",
    "TaskReward",
    "TeacherBalance",
    "WeightedReward",
    "WellFormed",
]
