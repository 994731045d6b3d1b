"""Rollouts by vLLM servers that take over the student's weights before every rollout batch."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import as_completed
from typing import TYPE_CHECKING, Any, Literal

import torch
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.functional.logprobs import token_logprobs
from lightning_opd.interfaces import OnProgress, RolloutEngine
from lightning_opd.models import causal_lm, evaluating, gather_objects, unsharded, whole_weights
from lightning_opd.rollouts.served_student import ServedStudent
from lightning_opd.servers import ServerPool, ServersDownError
from lightning_opd.servers.launch import Launch
from lightning_opd.servers.vllm import COMPLETIONS, models_of, sampling_request, scores_of, scoring_request
from lightning_opd.types import Sample, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NUM_PROOF_TOKENS = 12
MAX_GAPS = {torch.float64: 1e-3, torch.float32: 1e-2, torch.float16: 0.1, torch.bfloat16: 0.2}
"""Mean difference in nats of server and trainer on the known tokens that rounding explains."""


class VLLMEngine(RolloutEngine):
    """Let running vLLM servers generate, or start some on this machine.

    Before every rollout batch they take over the student's weights: an adapter is loaded under a new name, a full
    model by a reload from a folder, after which cached prefixes are dropped. Then each must give known tokens the
    log-probs that the trainer gives them; the difference is `gap`. Every response has its own seed. The log-probs of a
    server are not bit for bit the trainer's, so objectives need their `off_policy` weight (`TruncatedImportance`).

    Servers that are started here need no further setting. Those that run elsewhere must be started with
    `--logprobs-mode processed_logprobs` and, for a full student, `VLLM_SERVER_DEV_MODE=1`; for an adapter with
    `--enable-lora`, the student's rank as `--max-lora-rank`, and `VLLM_ALLOW_RUNTIME_LORA_UPDATING=1`. They have to
    read `weights_folder`. Servers that take weights obey everyone who reaches them: keep them off public networks.

    Args:
        urls: Running servers that share the load; null where `launch` starts them.
        launch: How to start servers on this machine; null to use those at `urls`.
        model: Name under which running servers know the student's model; by default their only one.
        weights_folder: Where the weights are handed over; by default a temporary folder in memory.
        requests_at_once: Responses that one server works on at a time.
        timeout: Seconds that one response may take.
        max_retries: How often a request is sent again before its server is left out.
        api_key_variable: Environment variable that holds the servers' API key.
        ca_file: Certificates to trust instead of the system's.
        overlap: Rollout batches that are generated ahead, 0 or 1. With 1 the servers generate the next one while the
            student learns from this one; its weights are then one rollout batch older, `train/staleness` says how many
            optimiser steps. A resumed run generates its first rollout batch anew. One process only.

    Attributes:
        gap: Mean difference in nats between servers and trainer on the known tokens, after the last `sync`.
    """

    def __init__(
        self,
        urls: list[str] | None = None,
        launch: Launch | None = None,
        model: str | None = None,
        weights_folder: str | None = None,
        requests_at_once: int = 64,
        timeout: float = 600.0,
        max_retries: int = 4,
        api_key_variable: str = "VLLM_API_KEY",
        ca_file: str | None = None,
        overlap: Literal[0, 1] = 0,
    ) -> None:
        """Remember the settings; servers are started, or asked, by the first `sync`."""
        if (urls is None) == (launch is None):
            msg = "VLLMEngine needs either `urls` of running servers or `launch`, which starts them. Set one."
            raise ConfigError(msg)
        if overlap not in {0, 1}:
            msg = f"`overlap` must be 0 or 1, got {overlap}: a rollout batch is at most one older than its student."
            raise ConfigError(msg)
        self.urls, self.launch, self.model, self.weights_folder = urls, launch, model, weights_folder
        self.overlap = overlap
        self._pool_settings: dict[str, Any] = {
            "requests_at_once": requests_at_once,
            "timeout": timeout,
            "max_retries": max_retries,
            "api_key_variable": api_key_variable,
            "ca_file": ca_file,
        }
        self._pool = None if urls is None else ServerPool(urls, **self._pool_settings)
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._served: ServedStudent | None = None
        self._name, self._max_length = "", 0
        self._version: tuple[int, int] | None = None
        self._reports_draws = launch is not None
        self.gap = 0.0

    @property
    @override
    def generates_ahead(self) -> bool:
        return self.overlap > 0

    @override
    def connect(self) -> int | None:
        if self.launch is not None:
            self.launch.check()
            return self.launch.max_length
        assert self._pool is not None
        try:
            served = [models_of(self._pool, url) for url in self._pool.urls]
        except ServersDownError as error:
            msg = f"{error} Start it, or leave it out of `urls`."
            raise ConfigError(msg) from None
        return min((models[0].max_length for models in served if models[0].max_length), default=None)

    @override
    def use_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @override
    @torch.no_grad()
    def sync(self, student: torch.nn.Module, version: int) -> None:
        if self._version == (id(student), version):
            return
        weights = whole_weights(student)  # all ranks together
        is_first = torch.distributed.get_rank() == 0 if torch.distributed.is_initialized() else True
        state: tuple[str, str, tuple[str, ...]] | ConfigError | ServersDownError | None = None
        if is_first:
            try:
                state = self._hand_over(student, weights)
            except (ConfigError, ServersDownError) as error:
                state = error
        state = gather_objects(state)[0]
        if isinstance(state, ConfigError | ServersDownError):
            raise state
        assert state is not None
        self._name, _, urls = state
        if self._pool is None or self._pool.urls != urls:
            self._pool = ServerPool(urls, **self._pool_settings)
        self._max_length = min(models_of(self._pool, url)[0].max_length for url in self._pool.alive)
        self._prove(student)
        self._version = (id(student), version)

    def _hand_over(
        self, student: torch.nn.Module, weights: dict[str, torch.Tensor] | None
    ) -> tuple[str, str, tuple[str, ...]]:
        """Give the weights to every server; return the name to ask for, the folder, and the servers."""
        if self._served is None:
            self._served = ServedStudent(self.launch, self.model, self.weights_folder, self._pool, self._pool_settings)
        name, folder, self._pool = self._served.update(student, self._known_tokenizer(), weights)
        return name, folder, self._pool.urls

    def _known_tokenizer(self) -> PreTrainedTokenizerBase:
        if self._tokenizer is None:
            msg = "The engine has no tokenizer yet; call `use_tokenizer(tokenizer)` before `sync`."
            raise RuntimeError(msg)
        return self._tokenizer

    def _prove(self, student: torch.nn.Module) -> None:
        """Compare every server with the student on known tokens.

        Raises:
            ConfigError: A server has other weights.
        """
        model = causal_lm(student)
        vocab_size = min(len(self._known_tokenizer()), model.config.vocab_size)
        ids = [(1 + 7919 * i) % vocab_size for i in range(NUM_PROOF_TOKENS)]
        own = _logprobs(model, ids)
        assert self._pool is not None
        for url in self._pool.alive:
            [scores] = scores_of(self._pool.post(url, COMPLETIONS, scoring_request(self._name, [ids], 0)), [ids], 0)
            self.gap = float((torch.tensor(scores.logprobs, dtype=torch.float64) - own).abs().mean())
            device = model.device.type
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype
            if not self.gap <= MAX_GAPS.get(dtype, MAX_GAPS[torch.bfloat16]):
                msg = (
                    f"The server {url} gives known tokens log-probs that are {self.gap:.3g} nats from the student's "
                    f"({str(dtype).removeprefix('torch.')}): it did not take over the weights, or runs another model. "
                    "Start it with `launch`, or see what VLLMEngine asks of servers."
                )
                raise ConfigError(msg)

    @override
    def generate(
        self,
        token_ids: Sequence[Sequence[int]],
        num_samples: int,
        seeds: Sequence[int],
        sampling: Sampling = Sampling(),  # frozen, hence safe to share
        on_progress: OnProgress | None = None,
    ) -> list[Sample]:
        pool = self._pool
        if pool is None or self._version is None:
            msg = "The engine has no student yet; call `sync(student, version)` first."
            raise RuntimeError(msg)
        self.check_seeds(seeds, len(token_ids), num_samples)
        longest = max(map(len, token_ids), default=0) + sampling.max_new_tokens
        if longest > self._max_length:
            msg = (
                f"A prompt with its reply may take {longest} tokens, and the vLLM server has positions for "
                f"{self._max_length}. Lower `data.sampling.max_new_tokens`, or raise its `--max-model-len`."
            )
            raise ConfigError(msg)
        self._check_reported_logprobs(pool, sampling)
        pending = [
            pool.submit(COMPLETIONS, sampling_request(self._name, token_ids[i // num_samples], seed, sampling))
            for i, seed in enumerate(seeds)
        ]
        places = {answer: place for place, answer in enumerate(pending)}
        for answer in as_completed(pending):
            if on_progress is not None:
                on_progress({places[answer]: _sample(answer.result())})
        return [_sample(answer.result()) for answer in pending]

    def _check_reported_logprobs(self, pool: ServerPool, sampling: Sampling) -> None:
        """Refuse servers that report other log-probs than those they draw with, where these differ.

        Raises:
            ConfigError: With how to start them.
        """
        if self._reports_draws or (sampling.temperature in {0.0, 1.0} and sampling.keeps_the_distribution):
            return
        ids = [(1 + 7919 * i) % len(self._known_tokenizer()) for i in range(NUM_PROOF_TOKENS)]
        hot = Sampling(temperature=3.0, max_new_tokens=1)
        for url in pool.alive:
            drawn = _sample(pool.post(url, COMPLETIONS, sampling_request(self._name, ids, 1, hot)))
            whole = [*ids, *drawn.token_ids]
            [scores] = scores_of(pool.post(url, COMPLETIONS, scoring_request(self._name, [whole], 0)), [whole], 0)
            if abs(scores.logprobs[-1] - drawn.logprobs[-1]) < 1e-3:
                msg = (
                    f"The server {url} reports log-probs at temperature 1, and `data.sampling` draws otherwise. Start "
                    "it with `--logprobs-mode processed_logprobs`."
                )
                raise ConfigError(msg)
        self._reports_draws = True

    @override
    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
        if self._served is not None:
            self._served.close()
        self._served, self._version = None, None
        if self.launch is not None:
            self._pool = None


def _logprobs(model: PreTrainedModel, token_ids: Sequence[int]) -> torch.Tensor:
    """Return the student's log-probs of all tokens but the first, in float64."""
    ids = torch.tensor([list(token_ids)], device=model.device)
    with unsharded(model), evaluating(model):
        return token_logprobs(model(input_ids=ids, use_cache=False).logits, ids)[0, 1:].double().cpu()


def _sample(answer: dict[str, Any]) -> Sample:
    choice = answer["choices"][0]
    if choice.get("token_ids") is None or choice.get("logprobs") is None or choice["finish_reason"] == "abort":
        msg = "A server answered without token ids or log-probs, or broke off. VLLMEngine needs vLLM 0.10.2 or later."
        raise ConfigError(msg)
    logprobs = tuple(float(x) for x in choice["logprobs"]["token_logprobs"])
    return Sample(tuple(choice["token_ids"]), logprobs, choice["finish_reason"] == "length")
