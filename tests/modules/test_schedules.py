from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from lightning_opd.errors import ConfigError
from lightning_opd.modules import WarmupCosine
from tests.world import make_data, make_module, make_trainer


def optimizer(lr: float = 2.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


@pytest.mark.parametrize(("warmup", "final", "steps"), [(0, 0.0, 7), (3, 0.1, 20), (5, 1.0, 6), (10, 0.1, 4)])
def test_the_schedule_is_a_line_and_a_half_cosine(warmup: int, final: float, steps: int) -> None:
    own = optimizer()
    schedule = WarmupCosine(own, warmup, final)
    schedule.set_num_steps(steps)
    seen = []
    for _ in range(steps):
        seen.append(own.param_groups[0]["lr"])
        own.step()
        schedule.step()
    expected = [
        2.0
        * (
            (t + 1) / (warmup + 1)
            if t < warmup
            else final + (1 - final) * (1 + math.cos(math.pi * (t - warmup) / max(1, steps - 1 - warmup))) / 2
        )
        for t in range(steps)
    ]
    assert seen == pytest.approx(expected)
    assert warmup >= steps or seen[-1] == pytest.approx(2.0 * (final if warmup < steps - 1 else 1.0))


@pytest.mark.parametrize(
    ("settings", "message"), [({"warmup_steps": -1}, "at least 0"), ({"final_fraction": 2.0}, "lie")]
)
def test_impossible_schedules_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WarmupCosine(optimizer(), **settings)  # type: ignore[arg-type]  # wrong on purpose


def test_the_trainer_gives_the_end(world: Path, tmp_path: Path) -> None:
    module = make_module(world)
    module._lr_scheduler = lambda own: WarmupCosine(own, warmup_steps=1, final_fraction=0.0)  # as YAML sets it
    trainer = make_trainer(tmp_path, max_steps=3)
    trainer.fit(module, make_data())
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert isinstance(scheduler, WarmupCosine)
    assert [scheduler.fraction(step) for step in range(3)] == pytest.approx([0.5, 1.0, 0.0])


def test_a_run_without_an_end_is_refused(world: Path, tmp_path: Path) -> None:
    module = make_module(world)
    module._lr_scheduler = WarmupCosine  # as YAML sets it
    with pytest.raises(ConfigError, match=r"trainer\.max_steps"):
        make_trainer(tmp_path, max_steps=-1, max_epochs=-1).fit(module, make_data())
