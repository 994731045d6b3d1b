"""Responses during generation: waiting ones join, every step draws a token of each row, finished rows leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_opd.interfaces.engine import OnProgress
from lightning_opd.models import cache_argument, logits_to_keep
from lightning_opd.rollouts.admission import Queue, Siblings, by_tokens
from lightning_opd.rollouts.drawing import draw
from lightning_opd.rollouts.growing_cache import CachePart, can_join, joined, retire
from lightning_opd.rollouts.prefix_cache import PrefixCache
from lightning_opd.rollouts.stop_strings import StopStrings
from lightning_opd.types import Sample, Sampling

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

PREFILL_TOKENS = 16_384
"""Prompt tokens, padding included, that are read at once."""


class Decoding:
    """All responses of one call, as many at once as the queue lets in.

    Rows of the batch stand in no order. Every row's last token stands in the same column: a row that joins is
    padded on the left, and columns that no row needs any more are cut off when the next ones join.

    Args:
        model: In eval mode.
        prompts: Token ids.
        num_samples: Responses per prompt.
        seeds: One per response.
        sampling: How to draw, and where a response ends.
        stop_strings: Texts that end a response.
        known: Keys and values of an earlier turn.
        following: Takes the keys and values for a next turn, or None.
        is_padded: Whether the model is given a mask; without one it sees prompts of one length only.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        num_samples: int,
        seeds: Sequence[int],
        sampling: Sampling,
        stop_strings: StopStrings,
        known: PrefixCache,
        following: PrefixCache | None,
        *,
        is_padded: bool,
    ) -> None:
        """Reserve the responses' tokens."""
        device: torch.device = model.get_input_embeddings().weight.device  # type: ignore[assignment]  # a parameter's
        self._model, self._sampling, self._prompts = model, sampling, prompts
        self._known, self._following, self._is_padded = known, following, is_padded
        self._stop_strings, self._device = stop_strings, device
        self._cache_name = cache_argument(model) or "cache"
        self._last_only = logits_to_keep(model, [-1], device)
        self._stops = torch.tensor(sampling.stop_token_ids, dtype=torch.long, device=device)
        self._prompt_lengths = self._long([len(p) for p in prompts]).repeat_interleave(num_samples)
        self._num_samples, num_rows = num_samples, len(seeds)
        self._seeds = self._long(seeds)
        self._tokens = torch.zeros(num_rows, sampling.max_new_tokens, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(num_rows, sampling.max_new_tokens, dtype=torch.float64, device=device)
        self._lengths = torch.zeros(num_rows, dtype=torch.long, device=device)
        self._is_stopped = torch.zeros(num_rows, dtype=torch.bool, device=device)
        self.num_row_steps = self.num_read = self.num_prompt_tokens = 0
        self._clear()

    def _clear(self) -> None:
        """Empty the batch."""
        self._rows = self._starts = self._long([])  # which response each row is, and the column of its first token
        self._cache: DynamicCache | None = None
        self._logits: Float[Tensor, "rows vocab"] | None = None
        self._attention: Int[Tensor, "rows time"] | None = None
        self._seen: Bool[Tensor, "rows vocab"] | None = None
        self._columns = 0

    def _long(self, values: Sequence[int]) -> Int[Tensor, " values"]:
        return torch.tensor(values, dtype=torch.long, device=self._device)

    def run(self, queue: Queue, on_progress: OnProgress | None) -> list[Sample]:
        """Generate every response to its end and return them in order."""
        while queue or len(self._rows):
            if not len(self._rows):
                self._clear()
                self._admit(queue.take())
            elif queue and self._cache is not None and can_join(self._cache):
                self._admit(queue.take(len(self._rows), self._columns - int(self._starts.min())))
            ended = self._step()
            if on_progress is not None:
                on_progress(dict(zip(ended.tolist(), self._samples(ended), strict=True)))
        return self._samples(self._long(range(len(self._seeds))))

    def _admit(self, siblings: Sequence[Siblings]) -> None:
        """Read prompts and put their rows below those of the batch."""
        if not siblings:
            return
        lengths = [len(prompt) for prompt in self._prompts]
        old = len(self._rows)
        first = int(self._starts.min()) if old else 0
        parts = [CachePart(self._cache, None, first)] if self._cache is not None else []
        logits = [self._logits] if self._logits is not None else []
        self._columns = max(self._columns - first, lengths[siblings[0].prompt])
        limit = self._columns + self._sampling.max_new_tokens
        for chunk in by_tokens(siblings, lengths, PREFILL_TOKENS if self._can_join() else 2**62):
            cache, last = self._read([self._prompts[x.prompt] for x in chunk])
            index = self._long([i for i, x in enumerate(chunk) for _ in x.rows])
            parts.append(CachePart(cache, None if len(index) == len(chunk) else index))
            logits.append(last[index])
        rows = self._long([row for x in siblings for row in x.rows])
        self._cache, self._logits = joined(parts, limit), torch.cat(logits)
        self._starts = torch.cat([self._starts - first, self._columns - self._prompt_lengths[rows]])
        self._rows = torch.cat([self._rows, rows])
        self._attention = (torch.arange(limit, device=self._device) >= self._starts[:, None]).long()
        self._see(siblings, self._logits.shape[-1])
        self.num_prompt_tokens += sum(lengths[x.prompt] for x in siblings)

    def _can_join(self) -> bool:
        from transformers import DynamicCache

        return self._is_padded and can_join(DynamicCache(config=self._model.config))

    def _read(self, prompts: Sequence[Sequence[int]]) -> tuple[DynamicCache, Float[Tensor, "prompts vocab"]]:
        """Return the cache of a few prompts, padded on the left, and the logits of their first tokens."""
        longest = max(map(len, prompts))
        padded = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        token_ids = torch.tensor(padded, dtype=torch.long, device=self._device)
        starts = longest - self._long([len(prompt) for prompt in prompts])
        attention = (torch.arange(longest, device=self._device) >= starts[:, None]).long()
        cache, num_new = self._known.beginnings(prompts, self._model.config)
        self.num_read += sum(min(len(prompt), num_new) for prompt in prompts)
        positions = (attention.cumsum(dim=1) - 1).clamp(min=0)
        return cache, self._forward(token_ids[:, -num_new:], attention, positions[:, -num_new:], cache)

    def _see(self, siblings: Sequence[Siblings], vocab_size: int) -> None:
        """Note the tokens of new rows' prompts, where a penalty asks for them."""
        if self._sampling.repetition_penalty == 1:
            return
        seen = torch.zeros(sum(len(x.rows) for x in siblings), vocab_size, dtype=torch.bool)
        row = 0
        for x in siblings:
            seen[row : row + len(x.rows), [token for token in self._prompts[x.prompt] if token < vocab_size]] = True
            row += len(x.rows)
        seen = seen.to(self._device)
        self._seen = seen if self._seen is None else torch.cat([self._seen, seen])

    def _step(self) -> Int[Tensor, " ended"]:
        """Draw a token of every row, and let the model read those of unfinished ones; return the rows that leave."""
        assert self._logits is not None
        rows, steps = self._rows, self._lengths[self._rows]
        tokens, logprobs = draw(self._logits, self._seeds[rows], steps, self._sampling, self._seen)
        self.num_row_steps += len(rows)
        self._tokens[rows, steps], self._logprobs[rows, steps] = tokens, logprobs.double()
        steps = self._lengths[rows] = steps + 1
        stops = torch.isin(tokens, self._stops) | self._says_a_stop(rows, steps)
        self._is_stopped[rows] = stops
        is_done = stops | (steps == self._sampling.max_new_tokens)
        kept = (~is_done).nonzero().squeeze(-1)
        if len(kept) < len(rows):
            self._keep(is_done.nonzero().squeeze(-1))
            order = self._retire(kept)
            tokens, steps = tokens[order], steps[order]
        if len(kept):
            if self._seen is not None:
                self._seen.scatter_(1, tokens[:, None], True)
            self._decode(tokens, steps)
        return rows[is_done]

    def _retire(self, kept: Int[Tensor, " kept"]) -> Int[Tensor, " kept"]:
        """Take finished rows out of the batch and return which old row each new one is."""
        assert self._cache is not None
        assert self._attention is not None
        order = retire(self._cache, kept, len(kept)) if len(kept) else kept
        self._rows, self._starts, self._attention = self._rows[order], self._starts[order], self._attention[order]
        self._seen = None if self._seen is None else self._seen[order]
        return order

    def _says_a_stop(self, rows: Int[Tensor, " rows"], steps: Int[Tensor, " rows"]) -> Bool[Tensor, " rows"]:
        if not self._stop_strings:
            return torch.zeros_like(rows, dtype=torch.bool)
        tails = [self._stop_strings.tail(step) for step in steps.tolist()]
        first = min(tail.start for tail in tails)
        said = self._tokens[rows, first : max(tail.stop for tail in tails)].tolist()
        last = [ids[tail.start - first : tail.stop - first] for ids, tail in zip(said, tails, strict=True)]
        return torch.tensor([self._stop_strings.has_ended(ids) for ids in last], device=rows.device)

    def _keep(self, places: Int[Tensor, " places"]) -> None:
        """Remember finished responses without their last token, which the model has not read."""
        if self._following is None or self._cache is None:
            return
        done = self._rows[places]
        prompts = [self._prompts[row // self._num_samples] for row in done.tolist()]
        generated = zip(prompts, self._tokens[done].tolist(), self._lengths[done].tolist(), strict=True)
        sequences = [[*prompt, *tokens[: length - 1]] for prompt, tokens, length in generated]
        self._following.keep(sequences, self._starts[places].tolist(), places, self._cache)

    def _decode(self, tokens: Int[Tensor, " rows"], steps: Int[Tensor, " rows"]) -> None:
        assert self._cache is not None
        assert self._attention is not None
        self._columns += 1
        positions = self._prompt_lengths[self._rows] + steps - 1
        attention = self._attention[:, : self._columns]
        self._logits = self._forward(tokens[:, None], attention, positions[:, None], self._cache)

    def _forward(self, token_ids: Tensor, attention: Tensor, position_ids: Tensor, cache: DynamicCache) -> Tensor:
        logits: Tensor = self._model(
            input_ids=token_ids,
            attention_mask=attention if self._is_padded else None,  # Mamba's steps misread a mask of ones
            position_ids=position_ids,
            use_cache=True,
            **{self._cache_name: cache},
            **self._last_only,
        ).logits
        return logits[:, -1, : self._sampling.vocab_size]

    def _samples(self, rows: Int[Tensor, " rows"]) -> list[Sample]:
        lengths, is_stopped = self._lengths[rows].tolist(), self._is_stopped[rows].tolist()
        drawn = zip(self._tokens[rows].tolist(), self._logprobs[rows].tolist(), lengths, is_stopped, strict=True)
        return [Sample(tuple(t[:n]), tuple(p[:n]), not stopped) for t, p, n, stopped in drawn]
