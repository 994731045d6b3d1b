"""What travels through a training step, in the order in which it comes to be."""

from lightning_opd.types.episodes import (
    Message,
    Messages,
    Mode,
    Prompt,
    PromptBatch,
    Sample,
    Sampling,
    Split,
    Trajectory,
    Turn,
)
from lightning_opd.types.tensors import (
    LinearHead,
    LossTerms,
    RolloutBatch,
    RunSettings,
    SampledTokens,
    Signal,
    TeacherScores,
)

__all__ = [
    "LinearHead",
    "LossTerms",
    "Message",
    "Messages",
    "Mode",
    "Prompt",
    "PromptBatch",
    "RolloutBatch",
    "RunSettings",
    "Sample",
    "SampledTokens",
    "Sampling",
    "Signal",
    "Split",
    "TeacherScores",
    "Trajectory",
    "Turn",
]
