"""Functions of a block of logits as one kernel on CUDA, where torch's compiler works; step by step elsewhere."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache, wraps
from typing import ParamSpec, TypeAlias

import torch
from torch import Tensor

Parameters = ParamSpec("Parameters")
Found: TypeAlias = tuple[Tensor, Tensor]

KINDS = {"cuda"}
"""Kinds of device on which functions are compiled."""

TRIAL_ROWS = 16
"""Rows on which a compiled function must agree with the plain one before it is used."""

_logger = logging.getLogger(__name__)
_agreements: dict[Hashable, bool] = {}


def compiled(function: Callable[Parameters, Found]) -> Callable[Parameters, Found]:
    """Return the function, which on CUDA runs compiled where it then finds the same; else as it is.

    Args:
        function: As `BlockFunction`; it may take hashable arguments, as its own object, before the logits.
    """
    name = function.__qualname__

    @cache
    def made() -> Callable[Parameters, Found]:  # late: the compiler takes seconds to import
        return torch.compile(inspect.unwrap(function), dynamic=True, fullgraph=True)

    @wraps(function)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Found:
        logits = next(x for x in args if isinstance(x, Tensor))
        if logits.device.type not in KINDS or not logits.numel():
            return function(*args, **kwargs)
        # all on which another kernel depends
        fixed = *(x for x in args if not isinstance(x, Tensor)), *kwargs.items()
        case = name, fixed, logits.device, logits.dtype, len(logits) == 1, logits.is_inference()
        if case not in _agreements:
            _agreements[case] = _agrees(name, function, made, args, kwargs)
        return (made() if _agreements[case] else function)(*args, **kwargs)

    return run


def forms() -> dict[str, str]:
    """Return of each function that ran on a kind of `KINDS` whether it is compiled, by its name."""
    found: dict[str, set[bool]] = {}
    for case, is_same in _agreements.items():
        assert isinstance(case, tuple)
        found.setdefault(case[0], set()).add(is_same)
    return {name: "compiled" if all(own) else "eager" for name, own in found.items()}


def _agrees(
    name: str,
    function: Callable[..., Found],
    made: Callable[[], Callable[..., Found]],
    args: Sequence[object],
    kwargs: Mapping[str, object],
) -> bool:
    """Return whether both find the same of the first rows, and say it where they do not."""
    reason = "its values differ"
    found = []
    try:
        for run in (function, made()):
            own = [x[:TRIAL_ROWS].clone() if isinstance(x, Tensor) else x for x in args]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outputs = run(*own, **kwargs)
            logits = [next(x for x in own if isinstance(x, Tensor))] if kwargs["gradient"] else []
            found.append([*outputs, *logits])
    except Exception as error:  # whatever a compiler may lack on this machine
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    else:
        if all(torch.allclose(x, y, rtol=1e-3, atol=1e-5, equal_nan=True) for x, y in zip(*found, strict=True)):
            return True
    _logger.info("%s runs uncompiled, which is slower and finds the same (%s)", name, reason)
    return False
