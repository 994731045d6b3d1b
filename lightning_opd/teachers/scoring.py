"""What a language model says about the tokens of a batch, collected a few rows at a time."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import torch
from jaxtyping import Int
from torch import Tensor

from lightning_opd.functional.logprobs import MAX_CHUNK_ELEMENTS, linear_token_statistics, linear_top_k
from lightning_opd.models import LanguageModel
from lightning_opd.types import LinearHead, ResponseStates, SampledTokens, Signal, TeacherScores


class RowScores:
    """Scores of a whole batch, to which `add` brings those of some rows.

    A token that the model does not know is not aligned, nor is anything after it.

    Args:
        model: Scores; frozen and in eval mode.
        tokens: What is scored.
        signals: What is asked for; nothing else is computed, and log-probs that are not are NaN.
        temperature: Divides the logits.
        top_k: Likeliest tokens per position, if they are asked for.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokens: SampledTokens,
        signals: AbstractSet[Signal],
        temperature: float,
        top_k: int,
    ) -> None:
        """Begin with nothing scored."""
        self._model, self._tokens, self._signals = model, tokens, signals
        self._temperature, self._top_k = temperature, top_k
        is_known = (tokens.token_ids < model.vocab_size) | ~tokens.attention_mask
        self._aligned_mask = tokens.response_mask & is_known.long().cumprod(dim=1).bool()
        self._token_ids = tokens.token_ids.clamp(max=model.vocab_size - 1)
        unread = 0.0 if Signal.LOGPROBS in signals else torch.nan
        self._logprobs = torch.zeros_like(tokens.rollout_logprobs).masked_fill(self._aligned_mask, unread)
        self._num_read = 0
        self._states, self._index = self._new_states(), torch.zeros_like(tokens.token_ids)
        self._num_stored = 0
        self._top_ids: Tensor | None = None
        self._top_logprobs: Tensor | None = None

    def _new_states(self) -> Tensor:
        """Return memory for the states that are asked for, and for no others."""
        num_states = int(self._aligned_mask.sum()) if Signal.HIDDEN_STATES in self._signals else 0
        return torch.empty(num_states, self._model.width, dtype=self._model.model.dtype, device=self._token_ids.device)

    @property
    def padding(self) -> tuple[Tensor, Tensor]:
        """Tokens that the model has read, padding included, and those that are real."""
        count = self._tokens.attention_mask.sum().double()
        return count.new_tensor(self._num_read), count

    def add(self, rows: Int[Tensor, " rows"]) -> None:
        """Score some rows."""
        columns, head = self._tokens.span(rows), self._model.head
        token_ids = self._token_ids[rows][:, columns]
        aligned_mask = self._aligned_mask[rows][:, columns]
        chunk_size = max(1, MAX_CHUNK_ELEMENTS // self._model.vocab_size)
        attention_mask = self._tokens.attention_mask[rows][:, columns]
        states = self._model.states(token_ids, attention_mask)
        self._num_read += self._model.padded_tokens(attention_mask)
        if Signal.LOGPROBS in self._signals:
            logprobs, _ = linear_token_statistics(
                states, head().logits, token_ids, aligned_mask, self._temperature, chunk_size
            )
            self._logprobs[rows, columns] = logprobs.to(self._logprobs.dtype)
        shape = self._tokens.token_ids.shape
        if Signal.HIDDEN_STATES in self._signals:
            end = self._num_stored + int(aligned_mask.sum())
            self._states = self._states.to(states.dtype)  # of the first rows: then it is known
            self._states[self._num_stored : end] = states[aligned_mask]
            places = aligned_mask.flatten().cumsum(0).view_as(aligned_mask) + self._num_stored
            self._index[rows, columns] = torch.where(aligned_mask, places, 0)
            self._num_stored = end
        if Signal.TOP_LOGPROBS in self._signals:
            ids, values = linear_top_k(states, head().logits, aligned_mask, self._top_k, self._temperature, chunk_size)
            if self._top_ids is None or self._top_logprobs is None:
                self._top_ids = ids.new_zeros(*shape, ids.shape[-1])
                self._top_logprobs = values.new_zeros(self._top_ids.shape)
            self._top_ids[rows, columns], self._top_logprobs[rows, columns] = ids, values

    def scores(self, heads: tuple[LinearHead | None, ...]) -> TeacherScores:
        """Return what was collected; with the head, where hidden states are asked for."""
        return TeacherScores(
            self._logprobs,
            self._aligned_mask,
            self._top_ids,
            self._top_logprobs,
            ResponseStates((self._states,), self._index) if Signal.HIDDEN_STATES in self._signals else None,
            heads,
            {"score_padding": self.padding},
        )
