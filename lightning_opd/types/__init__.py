"""What travels through a training step, in the order in which it comes to be."""

from lightning_opd.types.episodes import (
    CONTROL_TOKENS,
    TEMPLATE_SETTINGS,
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
from lightning_opd.types.states import ResponseStates
from lightning_opd.types.tensors import (
    LinearHead,
    LossTerms,
    RolloutBatch,
    RunSettings,
    SampledTokens,
    Signal,
    TeacherScores,
    TokenTree,
)

__all__ = [
    "CONTROL_TOKENS",
    "TEMPLATE_SETTINGS",
    "LinearHead",
    "LossTerms",
    "Message",
    "Messages",
    "Mode",
    "Prompt",
    "PromptBatch",
    "ResponseStates",
    "RolloutBatch",
    "RunSettings",
    "Sample",
    "SampledTokens",
    "Sampling",
    "Signal",
    "Split",
    "TeacherScores",
    "TokenTree",
    "Trajectory",
    "Turn",
]
