"""The abstract classes: one file for each thing that a user may write anew."""

from lightning_opd.interfaces.abilities import (
    Generates,
    HasOutputHead,
    ReadsOwnPrompt,
    ReadsOwnTokens,
    ReadsStudentTokens,
    ReadsTrees,
    ScoresLater,
    TakesTurns,
)
from lightning_opd.interfaces.callback import OPDCallback, PhaseObserver
from lightning_opd.interfaces.engine import OnProgress, RolloutEngine
from lightning_opd.interfaces.environment import Environment
from lightning_opd.interfaces.format_rule import FormatRule
from lightning_opd.interfaces.objective import BatchForward, Objective, PrepareContext, StudentForward
from lightning_opd.interfaces.reward_function import RewardFunction, finite_reward
from lightning_opd.interfaces.task import SingleTurn, Task
from lightning_opd.interfaces.teacher import Teacher
from lightning_opd.types import Split

__all__ = [
    "BatchForward",
    "Environment",
    "FormatRule",
    "Generates",
    "HasOutputHead",
    "OPDCallback",
    "Objective",
    "OnProgress",
    "PhaseObserver",
    "PrepareContext",
    "ReadsOwnPrompt",
    "ReadsOwnTokens",
    "ReadsStudentTokens",
    "ReadsTrees",
    "RewardFunction",
    "RolloutEngine",
    "ScoresLater",
    "SingleTurn",
    "Split",
    "StudentForward",
    "TakesTurns",
    "Task",
    "Teacher",
    "finite_reward",
]
