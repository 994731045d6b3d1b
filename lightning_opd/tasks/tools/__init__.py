"""Tools that a student may call, and the limits they run in."""

from lightning_opd.tasks.tools.calculator import calculate
from lightning_opd.tasks.tools.environment import ToolEnvironment
from lightning_opd.tasks.tools.text import reverse_text, sort_text
from lightning_opd.tasks.tools.tool import Tool

__all__ = ["Tool", "ToolEnvironment", "calculate", "reverse_text", "sort_text"]
