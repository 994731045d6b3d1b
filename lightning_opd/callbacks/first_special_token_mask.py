"""No distillation on the first special token of a response."""

from __future__ import annotations

import lightning as L  # Lightning's own convention
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.functional.special_tokens import first_special_token_mask
from lightning_opd.interfaces import OPDCallback
from lightning_opd.models import student_owner
from lightning_opd.tokenization.replies import structure_token_ids
from lightning_opd.types import RolloutBatch, Signal


class FirstSpecialTokenMask(OPDCallback):
    """Leave the first special token of every response out of the distillation.

    Where student and teacher were trained with different templates, the position of the first control
    token (think, tool call, end of turn) dominates Σ|r| although it does not concern the task. The
    token keeps its outcome gradient and counts in the denominator. The fixed point is undetermined at
    masked tokens, so do not use it where the student should learn the teacher's format.

    Logs `train/special_token_masked` (fraction of response tokens).

    Args:
        tokens: Which tokens count as special; by default the tokenizer's control tokens, and those that open or close
            thoughts and tool calls. Other added tokens, such as Gemma's line breaks, are text.

    Reference:
        Fu et al., Revisiting on-policy distillation: empirical failure modes and simple fixes, arXiv 2603.25562
        (2026).
    """

    def __init__(self, tokens: list[str] | None = None) -> None:
        """Remember the tokens; the student's tokenizer knows their ids."""
        self.tokens = tokens

    @property
    @override
    def changes_rollouts(self) -> bool:
        return True

    @property
    @override
    def signals(self) -> frozenset[Signal]:
        return frozenset()

    @override
    def on_rollout_end(self, trainer: L.Trainer, module: L.LightningModule, rollouts: RolloutBatch) -> None:
        tokenizer = student_owner(module).tokenizer
        known = tokenizer.get_added_vocab()
        unknown = [token for token in self.tokens or () if token not in known]
        if unknown:
            msg = f"`tokens` names {unknown}, which are not among the tokenizer's added tokens {sorted(known)}."
            raise ConfigError(msg)
        ids = structure_token_ids(tokenizer) if self.tokens is None else [known[token] for token in self.tokens]
        kept = first_special_token_mask(rollouts.token_ids, rollouts.response_mask, ids)
        rollouts.distill_mask = rollouts.distill_mask & kept
        masked = (rollouts.response_mask & ~kept).sum().double()
        total = rollouts.response_mask.sum().double()
        rollouts.metrics = {**rollouts.metrics, "train/special_token_masked": (masked, total)}
