"""Tasks: prompts with a verifiable outcome."""

from lightning_opd.tasks.arithmetic import Arithmetic
from lightning_opd.tasks.jsonl import Jsonl
from lightning_opd.tasks.mixture import Curriculum, Mixture, Phase
from lightning_opd.tasks.strings import Strings

__all__ = ["Arithmetic", "Curriculum", "Jsonl", "Mixture", "Phase", "Strings"]
