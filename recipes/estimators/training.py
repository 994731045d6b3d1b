"""Shared by all trainings of this recipe: a quiet trainer, one schedule, and the comparison of arms."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import lightning as L
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR
from typing_extensions import override

from lightning_opd.modules.optimization import OptimizerFactory

warnings.filterwarnings("ignore", message=".*does not have many workers.*")


NUM_VALIDATIONS = 4
"""Along each training, beside the one before it."""

Ingredients: TypeAlias = tuple[L.LightningModule, L.LightningDataModule, Sequence[L.Callback]]


def make_trainer(num_steps: int, *callbacks: L.Callback, validate_every: int | None = None) -> L.Trainer:
    """Return a trainer on one CPU process that saves nothing and shows its bar only."""
    return L.Trainer(
        max_steps=num_steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        val_check_interval=validate_every,
        check_val_every_n_epoch=None,
        limit_val_batches=0 if validate_every is None else None,
        callbacks=list(callbacks),
    )


def optimizer_at(lr: float) -> OptimizerFactory:
    """Return AdamW without weight decay."""
    return lambda parameters: AdamW(parameters, lr=lr, weight_decay=0.0)


def cosine_to_a_tenth(num_steps: int) -> Callable[[Optimizer], CosineAnnealingLR]:
    """Return a schedule that falls to a tenth of the learning rate."""
    return lambda optimizer: CosineAnnealingLR(optimizer, num_steps, eta_min=optimizer.defaults["lr"] / 10)


class Curve(L.Callback):
    """Keeps every validation: one number per metric and step."""

    def __init__(self) -> None:
        """Start empty."""
        self.points: list[dict[str, float]] = []

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the validation's metrics."""
        metrics = {k.removeprefix("val/"): float(v) for k, v in trainer.callback_metrics.items() if "val/" in k}
        self.points.append({"step": trainer.global_step, **metrics})


class Ledger(dict[str, Any]):
    """Results by name, saved whenever one is added: an interrupted script resumes with the missing ones."""

    def __init__(self, path: Path) -> None:
        """Read the results of an earlier run."""
        super().__init__(json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {})
        self._path = path

    def once(self, name: str, compute: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401  # JSON
        """Return the result of that name; compute and keep it if there is none."""
        if name not in self:
            self[name] = compute(*arguments)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial = self._path.with_suffix(".partial")
            partial.write_text(json.dumps(self, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            partial.replace(self._path)
        return self[name]


@dataclass(frozen=True)
class Comparison:
    """Each arm at its best learning rate, over several seeds of order and noise.

    Args:
        make: From (arm, learning rate, steps, seed) to a module, its data and its callbacks.
        arms: Their names.
        lrs: Learning rates to choose from.
        steps_to_choose: Steps, of a schedule as long as `steps`, after which the first seed's validation chooses.
        steps: Steps of each training.
    """

    make: Callable[[str, float, int, int], Ingredients]
    arms: Sequence[str]
    lrs: Sequence[float]
    steps_to_choose: int
    steps: int

    def run(self, ledger: Ledger, seeds: Sequence[int]) -> None:
        """Run the trainings that are not in the ledger yet."""
        brief, every = self.steps_to_choose, max(1, self.steps // NUM_VALIDATIONS)
        for name in self.arms:
            tried = {
                lr: ledger.once(f"choice/{name}/{lr:g}", self._train, name, lr, seeds[0], brief, brief)
                for lr in self.lrs
            }
            ledger.once(f"lr/{name}", best, tried)
        for seed in seeds:
            ledger.once(f"start/{seed}", self._start, seed)
            for name in self.arms:
                ledger.once(f"run/{name}/{seed}", self._train, name, ledger[f"lr/{name}"], seed, self.steps, every)

    def _train(self, name: str, lr: float, seed: int, num_steps: int, every: int) -> list[dict[str, float]]:
        L.seed_everything(seed, verbose=False)
        module, data, callbacks = self.make(name, lr, self.steps, seed)
        curve = Curve()
        make_trainer(num_steps, *callbacks, curve, validate_every=every).fit(module, data)
        return curve.points

    def _start(self, seed: int) -> dict[str, float]:
        """Return the validation of the untrained student, which is the same for every arm."""
        module, data, _ = self.make(self.arms[0], 0.0, self.steps, seed)
        [metrics] = make_trainer(1, validate_every=1).validate(module, data, verbose=False)
        return {"step": 0, **{key.removeprefix("val/"): value for key, value in metrics.items()}}


def best(tried: Mapping[float, Sequence[Mapping[str, float]]]) -> float:
    """Return the learning rate whose last validation has the highest outcome."""
    return max(tried, key=lambda lr: tried[lr][-1]["reward"])
