from __future__ import annotations

import pytest
import torch

from lightning_opd.modules.optimization import OptimizerFactory, num_states, try_optimization


class Elsewhere(torch.optim.SGD):
    """Made for another device."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]  # it never returns
        msg = "not on this device"
        raise RuntimeError(msg)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), 0),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 1),
        (torch.optim.RMSprop, 1),
        (torch.optim.Adam, 2),
        (torch.optim.AdamW, 2),
        (lambda p: torch.optim.AdamW(p, amsgrad=True), 3),
        (torch.optim.Adafactor, 2 / 64),
        (lambda p: Elsewhere(p, lr=0.1), 2),
    ],
)
def test_the_numbers_that_an_optimizer_keeps_for_a_weight_are_counted(
    optimizer: OptimizerFactory, expected: float
) -> None:
    assert num_states(optimizer) == pytest.approx(expected)


def test_a_trial_leaves_no_trace() -> None:
    state = torch.random.get_rng_state()
    try_optimization(torch.optim.AdamW, torch.optim.lr_scheduler.ConstantLR)
    num_states(torch.optim.AdamW)
    assert torch.equal(torch.random.get_rng_state(), state)
