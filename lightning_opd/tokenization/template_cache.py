"""What has been found out about a tokenizer and its chat template is found out once."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar, cast

from lightning_opd.types import TEMPLATE_SETTINGS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

P = ParamSpec("P")
T = TypeVar("T")


def by_template(
    function: Callable[Concatenate[PreTrainedTokenizerBase, P], T],
) -> Callable[Concatenate[PreTrainedTokenizerBase, P], T]:
    """Keep a function's answers about a tokenizer until its template, the template's settings or its tokens change.

    Args:
        function: Of a tokenizer and of arguments that can be hashed; its errors are not kept.
    """
    plain = cast("Callable[..., T]", function)

    @lru_cache(maxsize=64)
    def known(
        tokenizer: PreTrainedTokenizerBase,
        _state: Hashable,
        args: Sequence[object],
        kwargs: Sequence[tuple[str, object]],
    ) -> T:
        return plain(tokenizer, *args, **dict(kwargs))

    @wraps(function)
    def ask(tokenizer: PreTrainedTokenizerBase, *args: P.args, **kwargs: P.kwargs) -> T:
        return known(tokenizer, _state(tokenizer), args, tuple(kwargs.items()))

    return cast("Callable[Concatenate[PreTrainedTokenizerBase, P], T]", ask)


def _state(tokenizer: PreTrainedTokenizerBase) -> Hashable:
    settings = json.dumps(tokenizer.init_kwargs.get(TEMPLATE_SETTINGS), sort_keys=True, default=str)
    return str(tokenizer.chat_template), settings, len(tokenizer), tokenizer.eos_token
