"""Sequences that go to a scoring server, and their log-probs on the student's time axis."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lightning_opd.servers import TokenScores
from lightning_opd.servers.vllm import scores_of
from lightning_opd.types import SampledTokens, TeacherScores


class Row:
    """One sequence as a server reads it: up to its last token to score."""

    def __init__(self, row: int, ids: tuple[int, ...], start: int, columns: list[int]) -> None:
        self.row, self.ids, self.start, self.columns = row, ids, start, columns


class Request:
    """Sequences that a server scores together."""

    def __init__(self, answer: Future[dict[str, Any]], token_ids: Sequence[tuple[int, ...]], top_k: int) -> None:
        self._answer, self._token_ids, self._top_k = answer, token_ids, top_k

    @cached_property
    def scores(self) -> dict[tuple[int, ...], TokenScores]:
        """Each sequence's scores, as soon as the server has answered."""
        found = scores_of(self._answer.result(), self._token_ids, self._top_k)
        return dict(zip(self._token_ids, found, strict=True))


def until_last(tokens: SampledTokens, mask: Tensor, row: int) -> tuple[tuple[int, ...], int, list[int]]:
    """Return a row's token ids, the column of the first, and the columns to score."""
    columns = mask[row].nonzero().flatten().tolist()
    if not columns:
        return (), 0, []
    start = int(tokens.attention_mask[row].int().argmax())
    scored = [column for column in columns if column > start]  # nothing predicts a first token
    return tuple(tokens.token_ids[row, start : columns[-1] + 1].tolist()), start, scored


def batches(token_ids: Iterable[tuple[int, ...]], most_tokens: int) -> Iterator[list[tuple[int, ...]]]:
    """Yield sequences together, the longest first, as many as a request may hold."""
    batch: list[tuple[int, ...]] = []
    for ids in sorted(token_ids, key=len, reverse=True):
        if batch and sum(map(len, batch)) + len(ids) > most_tokens:
            yield batch
            batch = []
        batch.append(ids)
    if batch:
        yield batch


def collect(
    tokens: SampledTokens,
    aligned_mask: Tensor,
    rows: Sequence[Row],
    requests: Mapping[tuple[int, ...], Request],
    top_k: int,
) -> TeacherScores:
    """Wait for every answer, and lay the scores out on the student's time axis."""
    logprobs = torch.zeros_like(tokens.rollout_logprobs)
    top_ids = torch.zeros(*tokens.token_ids.shape, top_k, dtype=torch.long)
    top_logprobs = torch.zeros(*tokens.token_ids.shape, top_k, dtype=torch.float64)
    for row in rows:
        scores, places = requests[row.ids].scores[row.ids], [column - row.start - 1 for column in row.columns]
        logprobs[row.row, row.columns] = logprobs.new_tensor([scores.logprobs[i] for i in places])
        if top_k:
            top_ids[row.row, row.columns] = torch.tensor([scores.top_ids[i] for i in places])
            top_logprobs[row.row, row.columns] = top_logprobs.new_tensor([scores.top_logprobs[i] for i in places])
    if not top_k:
        return TeacherScores(logprobs, aligned_mask)
    return TeacherScores(
        logprobs, aligned_mask, top_ids.to(logprobs.device), top_logprobs.to(logprobs.device, logprobs.dtype)
    )
