from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar

from lightning_opd.data import progress
from lightning_opd.types import RolloutBatch
from tests.world import Recorder, make_data, make_module, make_trainer


class Tqdm(TQDMProgressBar):
    """Keeps every text that its bars show."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        self.texts = texts

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name in ("_train_progress_bar", "_val_progress_bar", "_test_progress_bar") and value is not None:
            bar: Any = value
            show = bar.set_postfix_str

            def keep(text: str, **_: object) -> None:
                self.texts.append(f"{name} {text}")
                show(text)

            bar.set_postfix_str = keep


class Rich(RichProgressBar):
    """Keeps every description that its bars show."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        self.texts = texts

    def _init_progress(self, trainer: L.Trainer) -> None:
        super()._init_progress(trainer)
        bar: Any = self.progress
        if bar is not None and bar.update.__name__ != "keep":  # one bar for several stages
            update = bar.update

            def keep(task: object, **fields: object) -> None:
                self.texts.append(str(fields.get("description", "")))
                update(task, **fields)

            bar.update = keep


def finished(rollouts: RolloutBatch) -> list[int]:
    """Return after each token but the last how many replies are finished; with the last one all are, cut or not."""
    lengths = rollouts.response_mask.sum(1)
    counts = [int((lengths <= step).sum()) for step in range(1, int(lengths.max()) + 1)]
    return [count for count in counts if count < len(rollouts)]


@pytest.mark.parametrize("make", [Tqdm, Rich])
def test_the_bar_moves_during_generation(
    make: Callable[[list[str]], ProgressBar], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_UPDATES", 0.0)
    texts: list[str] = []
    module, data, recorder = make_module(world), make_data(), Recorder()
    bar = make(texts)
    trainer = make_trainer(
        tmp_path,
        bar,
        recorder,
        enable_progress_bar=True,
        limit_val_batches=1,
        num_sanity_val_steps=1,
        val_check_interval=1,
    )
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    shown = [text for text in texts if "generate" in text]
    in_training = [text.split(" generate ")[1] for text in shown if text.startswith(("_train", "Epoch"))]
    assert in_training == [f"{n}/8" for rollouts in recorder.rollout_batches for n in finished(rollouts)]
    totals = {(text.split()[0], text.rpartition("/")[2]) for text in shown}
    names = ("_train", "_val", "_test") if make is Tqdm else ("Epoch", "Validation", "Testing")
    expected = zip(names, ("8", "4", "8"), strict=True)
    assert all(any(bar.startswith(name) and total == count for bar, count in totals) for name, total in expected)
    if make is Tqdm:
        assert {text.split()[0] for text in shown} == {"_train_progress_bar", "_val_progress_bar", "_test_progress_bar"}
    else:
        assert {"Epoch", "Validation", "Testing"} <= {text.split()[0] for text in shown}
