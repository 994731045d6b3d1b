"""An alarm when the distillation signal improves while the reward falls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L  # Lightning's own convention
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import OPDCallback
from lightning_opd.models import student_owner, sum_over_ranks
from lightning_opd.types import RolloutBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NGRAM = 4
MIN_STANDARD_ERRORS = 4.0
UNITS: Mapping[str, str] = {
    "reward": "reward",
    "teacher_kl": "KL per sequence (nats)",
    "length": "length (tokens)",
    "truncated": "truncated",
    "repeated": f"repeated {NGRAM}-grams",
    "entropy": "entropy (nats per token)",
}


class HackDetector(OPDCallback):
    """Watch for reward hacking: the KL to the teacher and the reward fall together.

    The callback compares means over the last `span` rollout batches with the block of `span` batches that had the
    best reward so far. It raises the alarm when the reward has lost `reward_drop` of its best and more than four
    standard errors, while the KL per sequence has lost `kl_drop` of its value then. The warning names what else
    has changed.

    Logs `train/hack_alarm` (1 while the alarm lasts), `train/repeated_ngrams` (fraction of 4-grams that repeat an
    earlier one of their trajectory) and `train/top_token_fraction` (fraction of Σ|r| on the heaviest token id,
    r = log T − log π).

    Args:
        span: Rollout batches in a mean.
        reward_drop: Relative loss of reward that is too much.
        kl_drop: Relative loss of KL that counts as an improved signal.
        token_fraction: Fraction of Σ|r| above which the alarm names a token id.
        stop: Whether to end training at the alarm. The student at the end of the best block is then in
            `checkpoints/best.ckpt` of the trainer's `default_root_dir` (weights only).

    Reference:
        `.github/THEORY.md`, section 9.
    """

    def __init__(
        self,
        span: int = 5,
        reward_drop: float = 0.25,
        kl_drop: float = 0.1,
        token_fraction: float = 0.2,
        stop: bool = False,  # a key in YAML
    ) -> None:
        """Check the numbers."""
        if span < 1:
            msg = f"`span` must be at least 1 rollout batch, got {span}."
            raise ConfigError(msg)
        for name, fraction in (("reward_drop", reward_drop), ("kl_drop", kl_drop), ("token_fraction", token_fraction)):
            if not 0 < fraction < 1:
                msg = f"`{name}` is a fraction between 0 and 1, got {fraction}."
                raise ConfigError(msg)
        self.span, self.reward_drop, self.kl_drop = span, reward_drop, kl_drop
        self.token_fraction, self.stop = token_fraction, stop
        self.alarm_batch: int | None = None
        self._num_batches, self._is_new_best = 0, False
        self._last: list[dict[str, float]] = []
        self._best: dict[str, float] = {}

    @override
    def on_rollout_end(self, trainer: L.Trainer, module: L.LightningModule, rollouts: RolloutBatch) -> None:
        if not rollouts.teacher_names or rollouts.is_off_policy:  # no signal, or not the student's words
            return
        tokenizer = student_owner(module).tokenizer
        sums, weights = _measure(rollouts, len(tokenizer))
        sums, weights = sum_over_ranks(sums), sum_over_ranks(weights)
        has_alarm = self.observe(_values(sums))
        one = rollouts.num_trajectories.new_ones(())
        top = weights.max() / weights.sum().clamp(min=1e-30)
        rollouts.metrics = {
            **rollouts.metrics,
            "train/hack_alarm": (one * has_alarm, one),
            "train/repeated_ngrams": (one * self._last[-1]["repeated"], one),
            "train/top_token_fraction": (one * top, one),
        }
        if has_alarm and self.alarm_batch is None:
            self.alarm_batch = self._num_batches - 1
            tokens = _heavy_tokens(weights, self.token_fraction, tokenizer)
            rank_zero_warn(self._message(tokens))

    def observe(self, values: Mapping[str, float]) -> bool:
        """Take a rollout batch's means, and return whether there is an alarm; also for recorded curves.

        Args:
            values: The keys of `UNITS`, and `num_trajectories` of the rollout batch.
        """
        self._num_batches += 1
        self._last = [*self._last, dict(values)][-self.span :]
        recent = self._recent()
        is_block = self._num_batches % self.span == 0
        if is_block and (not self._best or recent["reward"] > self._best["reward"]):
            self._best, self._is_new_best = recent, True
        if not self._best:
            return False
        drop = self._best["reward"] - recent["reward"]
        error = (self._best["squared_error"] + recent["squared_error"]) ** 0.5
        return (
            drop > self.reward_drop * self._best["reward"]
            and drop > MIN_STANDARD_ERRORS * error
            and recent["teacher_kl"] < (1 - self.kl_drop) * self._best["teacher_kl"]
        )

    def _recent(self) -> dict[str, float]:
        """Return the means of the last rollout batches, and the squared standard error of their reward."""
        means = {name: sum(batch[name] for batch in self._last) / len(self._last) for name in UNITS}
        count = sum(batch["num_trajectories"] for batch in self._last)
        rate = min(1.0, max(0.0, means["reward"]))
        return {**means, "squared_error": max(rate * (1 - rate), 1 / count) / count, "batch": self._num_batches}

    def _message(self, tokens: str) -> str:
        best, recent = self._best, self._recent()
        changes = ", ".join(f"{text} {best[name]:.3g} → {recent[name]:.3g}" for name, text in UNITS.items())
        return (
            f"Reward hacking? The student comes closer to the teacher while its reward falls, since rollout batch "
            f"{best['batch']:.0f}: {changes}. {tokens}Read the rollouts (`RolloutTable`); `FormatErrorMask` and "
            "`OutcomeReward` are the measures against it."
        )

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: RolloutBatch, batch_idx: int
    ) -> None:
        is_new_best, self._is_new_best = self._is_new_best, False
        if self.stop and is_new_best:
            trainer.save_checkpoint(self._path(trainer), weights_only=True)

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: RolloutBatch, batch_idx: int
    ) -> None:
        is_due = self.stop and self.alarm_batch is not None and not trainer.should_stop
        if is_due and not trainer.fit_loop._should_accumulate():  # never inside a rollout batch
            trainer.should_stop = True
            rank_zero_info(f"Stopped by HackDetector; the best student is kept in {self._path(trainer)}.")

    @staticmethod
    def _path(trainer: L.Trainer) -> Path:
        return Path(trainer.default_root_dir) / "checkpoints" / "best.ckpt"

    @override
    def state_dict(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in ("alarm_batch", "_num_batches", "_last", "_best")}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)


def _measure(rollouts: RolloutBatch, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Return this rank's sums of all watched quantities, and Σ|r| per token id."""
    mask = rollouts.response_mask & rollouts.aligned_mask
    log_ratios = torch.where(mask, rollouts.teacher_logprobs - rollouts.rollout_logprobs, 0.0).double()
    weights = torch.bincount(rollouts.token_ids[mask], log_ratios.abs()[mask], vocab_size)
    repeated = sum(_repeated(ids[own]) for ids, own in zip(rollouts.token_ids, rollouts.response_mask, strict=True))
    sums = [
        rollouts.rewards.double().sum(),
        -log_ratios.sum(),
        rollouts.response_mask.sum(),
        rollouts.is_truncated.sum(),
        repeated,
        -rollouts.rollout_logprobs.double().sum(),
        len(rollouts),
    ]
    return torch.tensor([float(x) for x in sums], dtype=torch.float64, device=mask.device), weights


def _repeated(token_ids: Tensor) -> float:
    """Return the fraction of n-grams that repeat an earlier one."""
    if len(token_ids) < NGRAM:
        return 0.0
    ngrams = token_ids.unfold(0, NGRAM, 1)
    return 1 - len(torch.unique(ngrams, dim=0)) / len(ngrams)


def _values(sums: Tensor) -> dict[str, float]:
    """Return the rollout batch's means; entropy is per token, everything else per trajectory."""
    *totals, count = sums.tolist()
    values = {name: total / count for name, total in zip(UNITS, totals, strict=True)}
    values["entropy"] /= max(1e-30, values["length"])
    return {**values, "num_trajectories": count}


def _heavy_tokens(weights: Tensor, fraction: float, tokenizer: PreTrainedTokenizerBase) -> str:
    fractions = (weights / weights.sum().clamp(min=1e-30)).tolist()
    heavy = [f"{tokenizer.decode([i])!r} ({x:.0%})" for i, x in enumerate(fractions) if x > fraction]
    return f"Most of the signal lies on {', '.join(heavy)}. " if heavy else ""
