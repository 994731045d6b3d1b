from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar

from lightning_opd.data import progress
from tests.world import make_data, make_module, make_trainer


class Tqdm(TQDMProgressBar):
    """Keeps every text that its bars show."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        self.texts = texts

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name in ("_train_progress_bar", "_val_progress_bar", "_test_progress_bar") and value is not None:
            show = value.set_postfix_str  # type: ignore[attr-defined]
            value.set_postfix_str = lambda text, **_: (self.texts.append(f"{name} {text}"), show(text))  # type: ignore[attr-defined]


class Rich(RichProgressBar):
    """Keeps every description that its bars show."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        self.texts = texts

    def _init_progress(self, trainer: object) -> None:
        super()._init_progress(trainer)  # type: ignore[arg-type]
        if self.progress is not None:
            update = self.progress.update

            def keep(task: object, **fields: object) -> None:
                self.texts.append(str(fields.get("description", "")))
                update(task, **fields)  # type: ignore[arg-type]

            self.progress.update = keep  # type: ignore[method-assign, assignment]


@pytest.mark.parametrize("make", [Tqdm, Rich])
def test_the_bar_moves_during_generation(
    make: type[ProgressBar], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_UPDATES", 0.0)
    texts: list[str] = []
    module, data = make_module(world), make_data()
    bar = make(texts)  # type: ignore[call-arg]
    trainer = make_trainer(
        tmp_path, bar, enable_progress_bar=True, limit_val_batches=1, num_sanity_val_steps=1, val_check_interval=1
    )
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    shown = [text for text in texts if "rollout" in text]
    assert len(shown) > 10
    counts = [int(text.rpartition("rollout ")[2].split("/")[0]) for text in shown]
    assert max(counts) > min(counts)
    if make is Tqdm:
        assert {text.split()[0] for text in shown} == {"_train_progress_bar", "_val_progress_bar", "_test_progress_bar"}
    else:
        assert {"Epoch", "Validation", "Testing"} <= {text.split()[0] for text in shown}
