from __future__ import annotations

import torch

from lightning_opd.modules.quotients import Quotients


def pair(value: float, count: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(value), torch.tensor(count)


def test_sums_and_counts_add_up_before_they_are_divided() -> None:
    """The mean of the two means would be 3."""
    quotients = Quotients()
    quotients.update({"kl": pair(30.0, 30.0)})
    quotients.update({"kl": pair(50.0, 10.0), "reward": pair(1.0, 4.0)})
    assert {name: float(value) for name, value in quotients.compute().items()} == {"kl": 2.0, "reward": 0.25}


def test_a_name_that_counted_nothing_is_left_out() -> None:
    quotients = Quotients()
    quotients.update({"kl": pair(0.0, 0.0), "reward": pair(0.0, 2.0)})
    assert set(quotients.compute()) == {"reward"}


def test_a_reset_forgets_sums_and_names() -> None:
    quotients = Quotients()
    quotients.update({"kl": pair(1.0, 1.0)})
    quotients.reset()
    quotients.update({"reward": pair(3.0, 2.0)})
    assert {name: float(value) for name, value in quotients.compute().items()} == {"reward": 1.5}


def test_sums_are_kept_in_float64() -> None:
    quotients = Quotients()
    for _ in range(3):
        quotients.update({"x": (torch.tensor(2.0**24), torch.tensor(0.0)), "y": pair(1.0, 1.0)})
        quotients.update({"x": pair(1.0, 1.0)})
    assert float(quotients.compute()["x"]) == (3 * 2**24 + 3) / 3
