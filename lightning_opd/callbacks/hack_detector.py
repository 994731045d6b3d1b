"""An alarm when the distillation signal improves while the reward falls."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L  # Lightning's own convention
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_opd.callbacks.hack_curve import NGRAM, UNITS, HackCurve
from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import OPDCallback
from lightning_opd.models import gather_objects, student_owner, sum_over_ranks
from lightning_opd.types import RolloutBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SUMS = (*UNITS, "reward_squared", "num_trajectories")
"""What is added up over the trajectories of a rollout batch."""


class HackDetector(OPDCallback):
    """Watch for reward hacking: the KL to the teacher and the reward fall together.

    The callback compares means over the last `span` rollout batches with the block of `span` batches that had the
    best reward so far, over all prompts and in each domain. It raises the alarm when the reward has lost `reward_drop`
    of what its best lay above the lowest single reward, and more than four standard errors, while the KL per sequence
    has lost `kl_drop` of its value then. Rewards may have any sign and scale. The warning names the domains, and what
    else has changed.

    Logs `train/hack_alarm` (1 while the alarm lasts anywhere), `train/hack_alarm/<domain>`, `train/repeated_ngrams`
    (fraction of 4-grams that repeat an earlier one of their trajectory) and `train/top_token_fraction` (fraction of
    Σ|r| on the heaviest token id, r = log T − log π).

    Args:
        span: Rollout batches in a mean.
        reward_drop: Loss of reward that is too much, relative to the best mean less the lowest single reward.
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
        self._is_new_best = False
        self._overall = self._new_curve()
        self._domains: dict[str, HackCurve] = {}

    def _new_curve(self) -> HackCurve:
        return HackCurve(self.span, self.reward_drop, self.kl_drop)

    @override
    def on_rollout_end(self, trainer: L.Trainer, module: L.LightningModule, rollouts: RolloutBatch) -> None:
        if not rollouts.teacher_names or rollouts.is_off_policy:  # no signal, or not the student's words
            return
        tokenizer = student_owner(module).tokenizer
        weights = sum_over_ranks(_weights(rollouts, len(tokenizer)))
        domains = _over_ranks(_measure(rollouts))
        overall = _means([sums for _, sums in sorted(domains.items())])
        self.observe(overall)
        for domain, sums in sorted(domains.items()):
            curve = self._domains.setdefault(domain, self._new_curve())
            curve.observe(_means([sums]), self._overall.num_batches)
        one = rollouts.num_trajectories.new_ones(())
        top = weights.max() / weights.sum().clamp(min=1e-30)
        has_alarm = any(curve.has_alarm for curve in (self._overall, *self._domains.values()))
        rollouts.metrics = {
            **rollouts.metrics,
            "train/hack_alarm": (one * has_alarm, one),
            **{f"train/hack_alarm/{k}": (one * v.has_alarm, one) for k, v in sorted(self._domains.items())},
            "train/repeated_ngrams": (one * overall["repeated"], one),
            "train/top_token_fraction": (one * top, one),
        }
        self._tell(_heavy_tokens(weights, self.token_fraction, tokenizer))

    def observe(self, values: Mapping[str, float]) -> bool:
        """Take a rollout batch's means over all prompts, and return whether there is an alarm; also for old curves.

        Args:
            values: The keys of `UNITS`, and `num_trajectories` of the rollout batch; for rewards other than 0 and 1
                also `reward_squared` (its mean), `lowest` and `highest` of the single rewards.
        """
        has_alarm = self._overall.observe(values)
        self._is_new_best = self._is_new_best or self._overall.is_new_best
        return has_alarm

    def _tell(self, tokens: str) -> None:
        """Warn of the alarms that are new, each once in a run."""
        batch = self._overall.num_batches - 1
        domains = {k: v for k, v in sorted(self._domains.items()) if v.has_alarm and v.alarm_batch is None}
        is_overall = self._overall.has_alarm and self._overall.alarm_batch is None
        told = [self._overall] if is_overall else list(domains.values())
        if not told:
            return
        for curve in (*told, *domains.values()):
            curve.alarm_batch = batch
        self.alarm_batch = batch if self.alarm_batch is None else self.alarm_batch
        where = f" in the domain {', '.join(f'`{name}`' for name in domains)}" if domains else ""
        changes = "; ".join(f"{curve.best['batch']:.0f}: {curve.changes()}" for curve in told)
        rank_zero_warn(
            f"Reward hacking{where}? The student comes closer to the teacher while its reward falls, since rollout "
            f"batch {changes}. {tokens}Read the rollouts (`RolloutTable`); `FormatErrorMask` and `OutcomeReward` are "
            "the measures against it."
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
        return {
            "alarm_batch": self.alarm_batch,
            "_num_batches": self._overall.num_batches,
            "overall": self._overall.state_dict(),
            "domains": {name: curve.state_dict() for name, curve in self._domains.items()},
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.alarm_batch = state_dict["alarm_batch"]
        self._overall = dataclasses.replace(self._new_curve(), **state_dict["overall"])
        restored = {k: dataclasses.replace(self._new_curve(), **v) for k, v in state_dict["domains"].items()}
        self._domains = restored


def _weights(rollouts: RolloutBatch, vocab_size: int) -> Tensor:
    """Return this rank's Σ|r| per token id."""
    mask = rollouts.response_mask & rollouts.aligned_mask
    return torch.bincount(rollouts.token_ids[mask], _log_ratios(rollouts).abs()[mask], vocab_size)


def _log_ratios(rollouts: RolloutBatch) -> Tensor:
    mask = rollouts.response_mask & rollouts.aligned_mask
    return torch.where(mask, rollouts.teacher_logprobs - rollouts.rollout_logprobs, 0.0).double()


def _measure(rollouts: RolloutBatch) -> dict[str, dict[str, float]]:
    """Return this rank's sums, and the lowest and highest reward, of each domain that it has rows of."""
    rewards = rollouts.rewards.double()
    repeated = [_repeated(ids[own]) for ids, own in zip(rollouts.token_ids, rollouts.response_mask, strict=True)]
    columns = {
        "reward": rewards,
        "teacher_kl": -_log_ratios(rollouts).sum(1),
        "length": rollouts.response_mask.sum(1),
        "truncated": rollouts.is_truncated,
        "repeated": torch.tensor(repeated, device=rewards.device),
        "entropy": -rollouts.rollout_logprobs.double().sum(1),
        "reward_squared": rewards.square(),
        "num_trajectories": torch.ones_like(rewards),
    }
    table = torch.stack([columns[name].double() for name in SUMS], dim=1).tolist()
    found: dict[str, dict[str, float]] = {}
    for trajectory, row in zip(rollouts.trajectories, table, strict=True):
        one = dict(zip(SUMS, row, strict=True))
        one |= {"lowest": one["reward"], "highest": one["reward"]}
        domain = trajectory.prompt.domain
        found[domain] = _joined(found[domain], one) if domain in found else one
    return found


def _joined(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {
        **{name: one[name] + other[name] for name in SUMS},
        "lowest": min(one["lowest"], other["lowest"]),
        "highest": max(one["highest"], other["highest"]),
    }


def _over_ranks(own: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the same of all ranks, on every rank."""
    total: dict[str, dict[str, float]] = {}
    for part in gather_objects(own):
        for domain, sums in part.items():
            total[domain] = _joined(total[domain], sums) if domain in total else sums
    return total


def _means(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the means over all parts; entropy is per token, everything else per trajectory."""
    total = functools.reduce(_joined, parts)
    count = total["num_trajectories"]
    means = {name: total[name] / count for name in SUMS}
    means["entropy"] /= max(1e-30, means["length"])
    return {**total, **means, "num_trajectories": count}


def _repeated(token_ids: Tensor) -> float:
    """Return the fraction of n-grams that repeat an earlier one."""
    if len(token_ids) < NGRAM:
        return 0.0
    ngrams = token_ids.unfold(0, NGRAM, 1)
    return 1 - len(torch.unique(ngrams, dim=0)) / len(ngrams)


def _heavy_tokens(weights: Tensor, fraction: float, tokenizer: PreTrainedTokenizerBase) -> str:
    fractions = (weights / weights.sum().clamp(min=1e-30)).tolist()
    heavy = [f"{tokenizer.decode([i])!r} ({x:.0%})" for i, x in enumerate(fractions) if x > fraction]
    return f"Most of the signal lies on {', '.join(heavy)}. " if heavy else ""
