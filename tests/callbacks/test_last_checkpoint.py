from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_opd.callbacks import LastCheckpoint
from lightning_opd.errors import ConfigError
from tests.world import largest_difference, make_data, make_module, make_trainer


def test_each_run_keeps_its_last_checkpoint_in_its_own_folder(world: Path, tmp_path: Path) -> None:
    states: list[dict[str, torch.Tensor]] = []
    for name, steps in (("whole", 4), ("part", 3), ("part", 4)):
        module = make_module(world)
        trainer = make_trainer(
            tmp_path / name, LastCheckpoint(every_n_steps=2), enable_checkpointing=True, max_steps=steps
        )
        trainer.fit(module, make_data(), ckpt_path="last" if states and steps == 4 else None)
        states.append(module.state_dict())
        assert [p.name for p in (tmp_path / name).rglob("*.ckpt")] == ["last.ckpt"]
        assert (tmp_path / name / "checkpoints" / "last.ckpt").is_file()
    assert trainer.global_step == 4
    assert largest_difference(states[0], states[2]) == 0.0


def test_a_distance_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="`every_n_steps` must be at least 1, got 0"):
        LastCheckpoint(0)
