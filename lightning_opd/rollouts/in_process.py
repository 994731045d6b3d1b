"""Rollouts in this process, through the student's own forward and key-value cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import OnProgress, RolloutEngine
from lightning_opd.models import causal_lm, evaluating, prepacked, unsharded
from lightning_opd.rollouts.admission import Queue
from lightning_opd.rollouts.cache_support import check_cache, probing_prompts
from lightning_opd.rollouts.decoding import Decoding
from lightning_opd.rollouts.prefix_cache import PrefixCache
from lightning_opd.rollouts.stop_strings import StopStrings
from lightning_opd.types import Sample, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class InProcessEngine(RolloutEngine):
    """Generates with the training weights themselves: exactly on-policy, no copy, no server.

    In episodes of several turns it keeps the keys and values of one turn for the next, which reads only new tokens:
    of every row as many last tokens as the row with most new ones needs. Their memory is that of a turn's own
    cache, times the batches of a turn; `finish` releases it.

    Keys and values get space for further tokens in blocks, so that no token copies those before it. Siblings share
    one reading of their prompt. Finished responses leave at once, and waiting ones join, longest prompts first, where
    every layer keeps all keys and values; with a sliding window or a recurrent state, one batch follows the other.

    On an x86 processor, large float32 matrices are copied into the order that oneDNN multiplies fastest while a call
    lasts that may generate 16 tokens or more.

    A model with recurrent states (hybrids, state-space models) is tried out when it first arrives. Where such a model
    misreads padded prompts, only prompts of one length are generated together; where its cache does not give
    the log-probs of a plain forward, it is refused.

    Args:
        batch_size: Most responses generated at once; others wait and take the place of finished ones. It bounds
            memory only: a response does not depend on the others of its batch.
        max_cache_tokens: Most tokens whose keys and values are held at once, counted as if every response became
            as long as it may, prompt and padding included. It bounds memory as `batch_size` does; a token takes
            layers × key-value heads × head size × 2 numbers.
    """

    def __init__(self, batch_size: int = 512, max_cache_tokens: int = 2**18) -> None:
        """Remember the bounds; the student arrives with `sync`."""
        for name, bound in (("batch_size", batch_size), ("max_cache_tokens", max_cache_tokens)):
            if bound < 1:
                msg = f"`{name}` must be at least 1, got {bound}."
                raise ConfigError(msg)
        self.batch_size, self.max_cache_tokens = batch_size, max_cache_tokens
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
        on_progress: OnProgress | None = None,
    ) -> list[Sample]:
        if self._model is None:
            msg = "The engine has no student yet; call `sync(student, version)` first."
            raise RuntimeError(msg)
        self.check_seeds(seeds, len(token_ids), num_samples)
        stop_strings = StopStrings(sampling.stop_strings, self._tokenizer)
        following = PrefixCache() if sampling.max_turns > 1 else None
        lengths = [len(prompt) for prompt in token_ids]
        queue = Queue(
            lengths, num_samples, sampling.max_new_tokens, self.batch_size, self.max_cache_tokens, pads=self._pads
        )
        decoding = Decoding(
            self._model,
            token_ids,
            num_samples,
            seeds,
            sampling,
            stop_strings,
            self._prefixes,
            following,
            is_padded=self._pads,
        )
        num_steps = sampling.max_new_tokens
        with evaluating(self._model), unsharded(self._model), prepacked(self._model, num_steps):
            samples = decoding.run(queue, on_progress)
        self._num_tokens += sum(len(sample.token_ids) for sample in samples)
        self._num_row_steps += decoding.num_row_steps
        self._num_prompt_tokens += decoding.num_prompt_tokens
        self._num_read += decoding.num_read
        self._prefixes = following or PrefixCache()
        return samples
