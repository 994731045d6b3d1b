"""The prompts of each split: all that the task has, and those that are used once they are examined."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_opd.collection import Learner
from lightning_opd.collection.prompt_checks import examine_prompts
from lightning_opd.collection.prompt_limits import PromptLimits, opening_tokens, several_turns
from lightning_opd.collection.prompt_report import PromptReport
from lightning_opd.collection.tool_checks import check_tool_turns
from lightning_opd.errors import ConfigError, Problems
from lightning_opd.interfaces import Task
from lightning_opd.types import Prompt, Split


class PromptSplits:
    """The prompts of a task, split by split.

    Attributes:
        fitting: Split → the prompts that leave space for a reply; of examined splits.
        reports: Split → what was found out about all of its prompts.

    Args:
        task: Has the prompts.
    """

    def __init__(self, task: Task) -> None:
        """Begin with nothing examined."""
        self._task = task
        self.fitting: dict[Split, Sequence[Prompt]] = {}
        self.reports: dict[Split, PromptReport] = {}

    def get(self, split: Split, *, may_be_empty: bool = False) -> Sequence[Prompt]:
        """Return the prompts of a split that are used; all of them before they are examined.

        Raises:
            ConfigError: There are none.
        """
        prompts = self.fitting[split] if split in self.fitting else self._task.prompts(split)
        if not prompts and not may_be_empty:
            msg = (
                f"{type(self._task).__name__} has no prompts in the `{split}` split. Give it some (of `Jsonl`: "
                f"`split: {{{split}: 0.1}}` or `{split}_path`), or choose another in `data.evaluation.splits`."
            )
            raise ConfigError(msg)
        return prompts

    def examine(
        self, splits: Sequence[Split], learner: Learner, limits: PromptLimits, rank: int, num_ranks: int
    ) -> None:
        """Render and measure the prompts of some splits, and choose those that fit.

        Args:
            splits: Which; only `train` may not be empty.
            learner: Whose student and teachers read them.
            limits: What fits; lengths of shorter teachers and of openings are added.
            rank: Of this process.
            num_ranks: Processes that take part of the work each.

        Raises:
            ConfigError: With all that is wrong with them.
        """
        problems = Problems()
        with problems.collecting():
            teachers = learner.teachers
            lengths = teachers.shorter_than(limits.max_length)
            limits = dataclasses.replace(limits, teacher_lengths=lengths, own_prompts=teachers.with_own_prompts())
        self.fitting, self.reports = {}, {}
        for split in splits:
            prompts = self.get(split, may_be_empty=split != "train")
            own = dataclasses.replace(
                limits,
                opening_tokens=opening_tokens(self._task, prompts, learner.tokenizer),
                several_turns=several_turns(self._task, prompts) if limits.max_turns > 1 else frozenset(),
            )
            self.fitting[split], report = examine_prompts(
                prompts, learner.tokenizer, own, learner.teachers.names, rank, num_ranks
            )
            self.reports[split] = report
            if len(prompts) or split == "train":
                rank_zero_info(f"{split}: {report}.")
            problems.add(*report.problems())
            with problems.collecting():
                learner.teachers.mix(report.teachers)
            with problems.collecting():
                learner.teachers.check_prompts(self.fitting[split])
            with problems.collecting():
                check_tool_turns(self._task, self.fitting[split], learner, limits.max_turns)
        problems.raise_all()
