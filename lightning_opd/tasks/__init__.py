"""Tasks: prompts with a verifiable outcome."""

from lightning_opd.tasks.answers import AnswerReward, ChoiceAnswer, ExactAnswer, MathAnswer, NumberAnswer
from lightning_opd.tasks.arithmetic import Arithmetic
from lightning_opd.tasks.calculator_agent import CalculatorAgent
from lightning_opd.tasks.jsonl import Jsonl
from lightning_opd.tasks.mixture import Curriculum, Mixture, Phase
from lightning_opd.tasks.reasoning_gym import ReasoningGym
from lightning_opd.tasks.strings import Strings
from lightning_opd.tasks.text_agent import TextAgent

__all__ = [
    "AnswerReward",
    "Arithmetic",
    "CalculatorAgent",
    "ChoiceAnswer",
    "Curriculum",
    "ExactAnswer",
    "Jsonl",
    "MathAnswer",
    "Mixture",
    "NumberAnswer",
    "Phase",
    "ReasoningGym",
    "Strings",
    "TextAgent",
]
