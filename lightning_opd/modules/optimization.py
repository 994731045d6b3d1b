"""The optimiser and its schedule: made from what the user chose, and tried before any model is loaded."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_opd.collection.resume import describe_settings
from lightning_opd.errors import ConfigError

OptimizerFactory: TypeAlias = Callable[[Iterable[Any]], Optimizer]
"""Makes an optimiser from parameter groups, as torch's own optimisers take them."""

SchedulerFactory: TypeAlias = Callable[[Optimizer], LRScheduler]


def try_optimization(optimizer: OptimizerFactory, lr_scheduler: SchedulerFactory | None) -> None:
    """Make the optimiser of a small matrix and let its schedule take a step, so that wrong numbers are found at once.

    It costs less than a millisecond and leaves no trace: a module does it when it is made.

    Args:
        optimizer: As a module takes it.
        lr_scheduler: As a module takes it.

    Raises:
        ConfigError: One of them refuses its settings.
    """
    weight = nn.Parameter(torch.zeros(2, 2))
    tried = make_optimizer(optimizer, [{"params": [weight]}])
    if lr_scheduler is None:
        return
    schedule = make_scheduler(lr_scheduler, tried)
    with _explained("model.lr_scheduler"), warnings.catch_warnings():  # it is stepped without its optimiser
        warnings.simplefilter("ignore")
        schedule.step()


def num_states(optimizer: OptimizerFactory) -> float:
    """Return how many float32 numbers an optimiser keeps for each weight, seen after one step with a matrix of its own.

    2 for AdamW, 0 for SGD without momentum. Where it cannot take a step here (made for another device), 2 are assumed.

    Args:
        optimizer: As a module takes it.

    Raises:
        ConfigError: It refuses its settings.
    """
    weight = nn.Parameter(torch.zeros(64, 64))
    weight.grad = torch.ones_like(weight)
    tried = make_optimizer(optimizer, [{"params": [weight]}])
    try:
        tried.step(lambda: 0.0)
    except Exception:  # code of any package
        return 2.0
    kept = [value for value in tried.state[weight].values() if isinstance(value, torch.Tensor) and value.dim() > 0]
    return sum(value.numel() * value.element_size() for value in kept) / (weight.numel() * weight.element_size())


def optimization_settings(optimizer: OptimizerFactory, lr_scheduler: SchedulerFactory | None) -> dict[str, object]:
    """Return by name the settings of both that a resumed run must share.

    Args:
        optimizer: As a module takes it.
        lr_scheduler: As a module takes it.
    """
    made = optimizer([{"params": [nn.Parameter(torch.zeros(1, 1))]}])  # for its settings alone
    schedule = None if lr_scheduler is None else lr_scheduler(made)
    return {
        "model.optimizer": {"class_path": type(made).__qualname__, **describe_settings(made.defaults)},
        "model.lr_scheduler": schedule
        and {"class_path": type(schedule).__qualname__, **describe_settings(vars(schedule))},
    }


def make_optimizer(factory: OptimizerFactory, groups: list[dict[str, Any]]) -> Optimizer:
    """Return the optimiser of parameter groups.

    Raises:
        ConfigError: It refuses its settings, its learning rate is no finite number, or it cannot learn from dense
            gradients.
    """
    with _explained("model.optimizer"):
        optimizer = factory(groups)
    if isinstance(optimizer, torch.optim.SparseAdam):
        msg = "`model.optimizer` SparseAdam takes sparse gradients only; a language model's are dense. Use AdamW."
        raise ConfigError(msg)
    for group in optimizer.param_groups:
        if not math.isfinite(float(group.get("lr", 0.0))):
            msg = f"`lr` of `model.optimizer` must be a finite number, got {group['lr']}."
            raise ConfigError(msg)
    return optimizer


def make_scheduler(factory: SchedulerFactory, optimizer: Optimizer) -> LRScheduler:
    """Return the schedule of an optimiser.

    Raises:
        ConfigError: It refuses its settings.
    """
    with _explained("model.lr_scheduler"):
        return factory(optimizer)


@contextlib.contextmanager
def _explained(key: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, ArithmeticError, AssertionError) as error:
        if isinstance(error, ConfigError):
            raise
        msg = f"`{key}` cannot work with its settings: {' '.join(str(error).split())}. Correct its `init_args`."
        raise ConfigError(msg) from error
