"""The run-time checker behind every shape and dtype annotation of the package while tests run."""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any, TypeVar, cast

from beartype import BeartypeConf, beartype

F = TypeVar("F", bound=Callable[..., object])
CONF = BeartypeConf(is_pep484_tower=True)  # an int is a float, as for static checkers


def is_static(hint: object) -> bool:
    """Return whether a hint is, or may be, a protocol that only static checkers can check."""
    if typing.get_args(hint):
        return any(is_static(part) for part in typing.get_args(hint))
    return getattr(hint, "_is_protocol", False) and not getattr(hint, "_is_runtime_protocol", False)


def check(function: F) -> F:
    """Check the function's arguments and result at every call."""
    hints = {name: Any if is_static(hint) else hint for name, hint in function.__annotations__.items()}
    if hints != function.__annotations__:
        function.__annotations__ = hints
    return cast("Callable[[F], F]", beartype(conf=CONF))(function)
