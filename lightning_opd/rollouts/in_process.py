"""Rollouts in this process, through the student's own forward and key-value cache."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import LongTensor, Tensor
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import RolloutEngine
from lightning_opd.models import cache_argument, causal_lm, unsharded
from lightning_opd.rollouts.cache_support import check_cache, probing_prompts
from lightning_opd.rollouts.drawing import draw
from lightning_opd.rollouts.prefix_cache import PrefixCache
from lightning_opd.rollouts.stop_strings import StopStrings
from lightning_opd.types import Sample, Sampling

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

RETIRE_FRACTION = 0.05
"""Finished rows leave the batch once they are this fraction of it.

Every step copies the cache anyway to append its token, so dropping rows costs little."""


class InProcessEngine(RolloutEngine):
    """Generates with the training weights themselves: exactly on-policy, no copy, no server.

    In episodes of several turns it keeps the keys and values of one turn for the next, which reads only new tokens:
    of every row as many last tokens as the row with most new ones needs. Their memory is that of a turn's own
    cache, times the batches of a turn; `finish` releases it.

    A model with recurrent states (hybrids, state-space models) is tried out when it first arrives. Where such a model
    misreads padded prompts, only prompts of one length are generated together; where its cache does not give
    the log-probs of a plain forward, it is refused.

    Args:
        batch_size: Most responses generated at once; longer lists are split. It bounds memory only:
            a response does not depend on the others of its batch.
    """

    def __init__(self, batch_size: int = 512) -> None:
        """Remember the batch size; the student arrives with `sync`."""
        if batch_size < 1:
            msg = f"`batch_size` must be at least 1, got {batch_size}."
            raise ConfigError(msg)
        self.batch_size = batch_size
        self._model: PreTrainedModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._num_tokens = self._num_row_steps = 0
        self._num_prompt_tokens = self._num_read = 0
        self._prefixes = PrefixCache()
        self._pads = True

    @property
    def reused_fraction(self) -> float:
        """Fraction of the prompts' tokens since the last `sync` that came from an earlier turn's keys and values."""
        return 1 - self._num_read / max(1, self._num_prompt_tokens)

    @property
    def occupancy(self) -> float:
        """Tokens generated since the last `sync`, as a fraction of decode steps × rows still in the batch."""
        return self._num_tokens / max(1, self._num_row_steps)

    @property
    @override
    def is_exact(self) -> bool:
        return True

    @override
    def use_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @override
    def sync(self, student: torch.nn.Module, version: int) -> None:
        model = causal_lm(student)
        if model is not self._model:
            self._model = model
            self._pads = self._check_cache(model)
        self._num_tokens = self._num_row_steps = 0
        self._num_prompt_tokens = self._num_read = 0
        self.finish()

    def _check_cache(self, model: PreTrainedModel) -> bool:
        prompts, num_samples = probing_prompts(model), 3
        stops = range(0, model.get_input_embeddings().weight.shape[0], 3)  # type: ignore[index]  # a parameter's
        sampling = Sampling(max_new_tokens=6, stop_token_ids=tuple(stops))

        def generate(pads: bool) -> list[Sample]:
            self._pads = pads
            return self.generate(prompts, num_samples, range(len(prompts) * num_samples), sampling)

        try:
            return check_cache(model, generate)
        except ConfigError:
            self._model = None
            raise

    @override
    def finish(self) -> None:
        self._prefixes = PrefixCache()

    @override
    @torch.no_grad()
    def generate(
        self,
        token_ids: Sequence[Sequence[int]],
        num_samples: int,
        seeds: Sequence[int],
        sampling: Sampling = Sampling(),  # frozen, hence safe to share
        on_progress: Callable[[int], None] | None = None,
    ) -> list[Sample]:
        if self._model is None:
            msg = "The engine has no student yet; call `sync(student, version)` first."
            raise RuntimeError(msg)
        if len(seeds) != len(token_ids) * num_samples:
            msg = f"Expected {len(token_ids) * num_samples} seeds (prompts × samples), got {len(seeds)}."
            raise ConfigError(msg)
        stop_strings = StopStrings(sampling.stop_strings, self._tokenizer)
        was_training = self._model.training
        self._model.eval()
        samples: dict[int, Sample] = {}
        following = PrefixCache() if sampling.max_turns > 1 else None
        try:
            with unsharded(self._model):
                for chosen in self._batches([len(prompt) for prompt in token_ids], num_samples):
                    rows = [i * num_samples + j for i in chosen for j in range(num_samples)]
                    decoding = _Decoding(
                        self._model,
                        [token_ids[i] for i in chosen],
                        num_samples,
                        [seeds[row] for row in rows],
                        sampling,
                        stop_strings,
                        self._prefixes,
                        following,
                        is_padded=self._pads,
                    )
                    for row, sample in zip(rows, decoding.run(on_progress, len(samples)), strict=True):
                        samples[row] = sample
                        self._num_tokens += len(sample.token_ids)
                    self._num_row_steps += decoding.num_row_steps
                    self._num_prompt_tokens += sum(len(token_ids[i]) for i in chosen)
                    self._num_read += decoding.num_read
        finally:
            self._model.train(was_training)
        self._prefixes = following or PrefixCache()
        return [samples[row] for row in range(len(seeds))]

    def _batches(self, lengths: Sequence[int], num_samples: int) -> Iterator[Sequence[int]]:
        """Yield the prompts to generate for at once, the shortest first."""
        size = max(1, self.batch_size // num_samples)
        by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
        groups = itertools.groupby(by_length, lambda i: 0 if self._pads else lengths[i])
        for group in (list(group) for _, group in groups):
            yield from (group[start : start + size] for start in range(0, len(group), size))


class _Decoding:
    """One batch of responses during generation; finished rows leave it."""

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
        device: torch.device = model.get_input_embeddings().weight.device  # type: ignore[assignment]  # a parameter's
        self._model, self._sampling, self._prompts = model, sampling, prompts
        self._known, self._following, self._is_padded = known, following, is_padded
        self._stop_strings = stop_strings
        self._cache_name = cache_argument(model) or "cache"
        self._stops = torch.tensor(sampling.stop_token_ids, dtype=torch.long, device=device)
        longest, rows = max(map(len, prompts)), len(prompts) * num_samples
        self._prompt_ids = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
        attention = torch.zeros(len(prompts), longest + sampling.max_new_tokens, dtype=torch.long, device=device)
        for index, prompt in enumerate(prompts):
            self._prompt_ids[index, longest - len(prompt) :] = torch.tensor(prompt, device=device)
            attention[index, longest - len(prompt) : longest] = 1
        attention[:, longest:] = 1
        self._attention, self._longest, self._num_samples = attention, longest, num_samples
        self._seeds = torch.tensor(seeds, dtype=torch.long, device=device)
        self._tokens = torch.zeros(rows, sampling.max_new_tokens, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(rows, sampling.max_new_tokens, dtype=torch.float64, device=device)
        self._lengths = torch.full((rows,), sampling.max_new_tokens, dtype=torch.long, device=device)
        self._is_stopped = torch.zeros(rows, dtype=torch.bool, device=device)
        self.num_row_steps = self.num_read = 0

    def run(self, on_progress: Callable[[int], None] | None, num_done: int) -> list[Sample]:
        """Generate every row to its end and return them in order."""
        logits, cache = self._prefill()
        rows = torch.arange(len(self._seeds), device=logits.device)  # which response each batch row is
        attention = self._attention.repeat_interleave(self._num_samples, dim=0)
        seen = self._seen(logits.shape[-1])
        for step in range(self._sampling.max_new_tokens):
            tokens, logprobs = draw(logits, self._seeds[rows], step, self._sampling, seen)
            self.num_row_steps += len(rows)
            is_alive = ~self._is_stopped[rows]
            self._tokens[rows, step] = tokens
            self._logprobs[rows, step] = logprobs.double()
            stops = is_alive & (torch.isin(tokens, self._stops) | self._says_a_stop(rows, step))
            self._lengths[rows[stops]] = step + 1
            self._is_stopped[rows[stops]] = True
            is_alive &= ~stops
            num_alive = int(is_alive.sum())
            is_last = num_alive == 0 or step + 1 == self._sampling.max_new_tokens
            if on_progress is not None:
                on_progress(num_done + len(self._seeds) - (0 if is_last else num_alive))  # a truncated one is done, too
            if is_last:
                self._keep(rows, self._is_stopped[rows], cache)
                break
            if num_alive <= (1 - RETIRE_FRACTION) * len(rows):
                self._keep(rows, ~is_alive, cache)
                kept = is_alive.nonzero().squeeze(-1)
                cache.reorder_cache(cast(LongTensor, kept))  # every kind of layer can, unlike selecting
                rows, tokens, attention = rows[kept], tokens[kept], attention[kept]
                seen = None if seen is None else seen[kept]
            if seen is not None:
                seen.scatter_(1, tokens[:, None], True)
            logits = self._decode(tokens, attention[:, : self._longest + step + 1], cache)
        return self._samples()

    def _seen(self, vocab_size: int) -> Bool[Tensor, "rows vocab"] | None:
        """Return the tokens of each row's prompt, where a penalty asks for them."""
        if self._sampling.repetition_penalty == 1:
            return None
        seen = torch.zeros(len(self._prompts), vocab_size, dtype=torch.bool)
        for row, prompt in zip(seen, self._prompts, strict=True):
            row[[token for token in prompt if token < vocab_size]] = True
        return seen.to(self._seeds.device).repeat_interleave(self._num_samples, dim=0)

    def _says_a_stop(self, rows: Int[Tensor, " rows"], step: int) -> Bool[Tensor, " rows"]:
        if not self._stop_strings:
            return torch.zeros_like(rows, dtype=torch.bool)
        last = self._tokens[rows, self._stop_strings.tail(step + 1)].tolist()
        return torch.tensor([self._stop_strings.has_ended(ids) for ids in last], device=rows.device)

    def _prefill(self) -> tuple[Float[Tensor, "rows vocab"], DynamicCache]:
        cache, num_new = self._known.beginnings(self._prompts, self._model.config)
        self.num_read = sum(min(len(prompt), num_new) for prompt in self._prompts)
        logits = self._forward(self._prompt_ids[:, -num_new:], self._attention[:, : self._longest], cache)
        if self._num_samples > 1:
            repeated = torch.arange(len(logits), device=logits.device).repeat_interleave(self._num_samples)
            cache.reorder_cache(cast(LongTensor, repeated))
            logits = logits[repeated]
        return logits, cache

    def _keep(self, rows: Int[Tensor, " rows"], is_done: Bool[Tensor, " rows"], cache: DynamicCache) -> None:
        """Remember finished responses without their last token, which the model has not read."""
        if self._following is None:
            return
        places = is_done.nonzero().squeeze(-1)
        done = rows[places]
        prompts = [self._prompts[row // self._num_samples] for row in done.tolist()]
        generated = zip(prompts, self._tokens[done].tolist(), self._lengths[done].tolist(), strict=True)
        sequences = [[*prompt, *tokens[: length - 1]] for prompt, tokens, length in generated]
        self._following.keep(sequences, [self._longest - len(prompt) for prompt in prompts], places, cache)

    def _decode(
        self, tokens: Int[Tensor, " rows"], attention: Int[Tensor, "rows time"], cache: DynamicCache
    ) -> Float[Tensor, "rows vocab"]:
        return self._forward(tokens[:, None], attention, cache)

    def _forward(self, token_ids: Tensor, attention: Tensor, cache: DynamicCache) -> Tensor:
        position_ids = (attention.cumsum(dim=1) - 1).clamp(min=0)[:, -token_ids.shape[1] :]
        logits: Tensor = self._model(
            input_ids=token_ids,
            attention_mask=attention if self._is_padded else None,  # Mamba's steps misread a mask of ones
            position_ids=position_ids,
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_name: cache},
        ).logits
        return logits[:, -1, : self._sampling.vocab_size]

    def _samples(self) -> list[Sample]:
        tokens, logprobs = self._tokens.tolist(), self._logprobs.tolist()
        rows = zip(tokens, logprobs, self._lengths.tolist(), self._is_stopped.tolist(), strict=True)
        return [Sample(tuple(t[:n]), tuple(p[:n]), not stopped) for t, p, n, stopped in rows]
