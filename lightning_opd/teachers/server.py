"""A teacher behind running servers: token ids go out, log-probs come back."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import ReadsStudentTokens, ScoresLater, Teacher
from lightning_opd.models import load_tokenizer
from lightning_opd.servers import ServedModel, ServerPool, ServersDownError, TokenScores
from lightning_opd.servers.vllm import COMPLETIONS, models_of, scores_of, scoring_request
from lightning_opd.teachers.server_requests import Request, Row, batches, collect, until_last
from lightning_opd.types import SampledTokens, Sampling, Signal, TeacherScores

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedTokenizerBase

PROBE = "On-policy distillation: 3 × 17 = 51.\n\nThe student learns from its own text; naïve, déjà vu, 東京."
MAX_GAP = 0.3
"""Nats by which two servers of one model may differ on the probe's tokens, on average."""
MAX_BEGUN = 16_384
"""Most sequences whose scores are begun before they are asked for."""


class ServerTeacher(Teacher, ReadsStudentTokens, ScoresLater):
    """A model behind one or more vLLM servers; it reads the student's own token ids.

    It returns log-probs of the sampled tokens, and of the likeliest ones to an objective that asks for them
    (`DistributionMatching` with `teacher_signal: top_k`, or `PolicyGradient` with `Immediate`). Servers score at
    temperature 1 only, so the student has to sample at 1. An episode is sent as soon as it ends, while others are
    still generated; the same tokens are sent once. With a `CrossTokenizerTeacher` it is the `scorer`.

    All servers are asked for a short text before the training begins: they must serve the model, know the tokens, give
    log-probs and agree with each other. A server that no longer answers is left out with a warning; when none is left
    the run ends, and goes on from its last checkpoint.

    Args:
        urls: One or more servers of the same model, such as `http://127.0.0.1:8000`; they share the load.
        model: Its name on the servers; by default the only one that they serve.
        tokenizer: Folder or hub name of its tokenizer; by default where the server says it loaded the model from.
        top_k: Likeliest tokens per position for an objective that asks for them; the server's `--max-logprobs` (20
            by default) bounds it.
        tokens_per_request: Most tokens of one request; a longer sequence has one of its own.
        requests_at_once: Requests that one server works on at a time.
        timeout: Seconds that one request may take.
        max_retries: How often a request is sent again before its server is left out.
        api_key_variable: Environment variable that holds the servers' API key.
        ca_file: Certificates to trust instead of the system's.
        trust_remote_code: Run code shipped with the tokenizer; only for models you trust.
        chat_template_kwargs: Settings of the teacher's own chat template, where it renders prompts itself.
    """

    def __init__(  # noqa: PLR0913, PLR0917  # settings, each a key in YAML
        self,
        urls: str | list[str],
        model: str | None = None,
        tokenizer: str | None = None,
        top_k: int = 20,
        tokens_per_request: int = 8192,
        requests_at_once: int = 4,
        timeout: float = 600.0,
        max_retries: int = 4,
        api_key_variable: str = "VLLM_API_KEY",
        ca_file: str | None = None,
        trust_remote_code: bool = False,  # a key in YAML
        chat_template_kwargs: dict[str, object] | None = None,
    ) -> None:
        """Remember the settings; servers are asked when the run is set up."""
        self.pool = ServerPool(
            urls,
            api_key_variable=api_key_variable,
            timeout=timeout,
            max_retries=max_retries,
            requests_at_once=requests_at_once,
            ca_file=ca_file,
        )
        for name, count in (("top_k", top_k), ("tokens_per_request", tokens_per_request)):
            if count < 1:
                msg = f"`{name}` of the teacher at {self.pool.urls[0]} must be at least 1, got {count}."
                raise ConfigError(msg)
        self.model, self.top_k, self.tokens_per_request = model, top_k, tokens_per_request
        self._tokenizer, self.trust_remote_code = tokenizer, trust_remote_code
        self._begun: dict[tuple[tuple[int, ...], int], Request] = {}
        self.chat_template_kwargs = chat_template_kwargs

    @property
    @override
    def identity(self) -> Hashable:
        return type(self), self.pool.urls, self.model, self._tokenizer, self.top_k, str(self.chat_template_kwargs)

    @cached_property
    def served(self) -> ServedModel:
        """The model, as all the servers name it.

        Raises:
            ConfigError: A server does not answer, or serves other models.
        """
        found = [self._served_by(url) for url in self.pool.urls]
        shortest = min(found, key=lambda model: model.max_length)
        if len({model.name for model in found}) > 1:
            names = ", ".join(f"`{model.name}` at {url}" for model, url in zip(found, self.pool.urls, strict=True))
            msg = f"The servers of one teacher must serve one model, got {names}. Name it in `model`."
            raise ConfigError(msg)
        return shortest

    def _served_by(self, url: str) -> ServedModel:
        try:
            models = models_of(self.pool, url)
        except ServersDownError as error:
            msg = f"{error} Start it, or correct `urls`."
            raise ConfigError(msg) from None
        names = [model.name for model in models]
        chosen = [m for m in models if m.name == self.model] if self.model is not None else models
        if len(chosen) != 1:
            listed = ", ".join(f"`{name}`" for name in names)
            wanted = "one model" if self.model is None else f"`{self.model}`"
            msg = f"The server {url} should serve {wanted}, and serves {listed}. Name one of them in `model`."
            raise ConfigError(msg)
        return chosen[0]

    @override
    def tokenizer(self) -> PreTrainedTokenizerBase:
        path = self._tokenizer or self.served.root
        try:
            return load_tokenizer(
                path, trust_remote_code=self.trust_remote_code, chat_template_kwargs=self.chat_template_kwargs
            )
        except (ConfigError, OSError) as error:
            if self._tokenizer is not None:
                raise
            msg = (
                f"The tokenizer of the teacher at {self.pool.urls[0]} is not to be had from `{path}`, where its server "
                "has loaded it from. Name a folder or hub name of it in `tokenizer`."
            )
            raise ConfigError(msg) from error

    @override
    def declared_max_length(self) -> int:
        return self.served.max_length - 1  # a server generates at least one token

    @override
    def check_request(self, signals: frozenset[Signal], sampling: Sampling) -> None:
        if Signal.HIDDEN_STATES in signals:
            msg = (
                f"the server {self.pool.urls[0]} gives log-probs, no hidden states. Use the objective `PolicyGradient` "
                "with `Immediate`, or `DistributionMatching` with `teacher_signal: top_k`."
            )
            raise ConfigError(msg)
        if sampling.temperature not in {0.0, 1.0}:
            msg = (
                f"the server {self.pool.urls[0]} scores at temperature 1 only, and `data.sampling.temperature` is "
                f"{sampling.temperature:g}. Set it to 1, or use a teacher in this process (`LocalTeacher`)."
            )
            raise ConfigError(msg)

    @override
    def setup(self, device: torch.device, mesh: DeviceMesh | None = None) -> None:
        ids = list(self.tokenizer()(PROBE, add_special_tokens=False)["input_ids"])[: self.declared_max_length()]
        answers = [self._probe(url, ids) for url in self.pool.urls]
        first = torch.tensor(answers[0].logprobs)
        for url, answer in zip(self.pool.urls[1:], answers[1:], strict=True):
            gap = float((torch.tensor(answer.logprobs) - first).abs().mean())
            if not gap <= MAX_GAP:
                msg = (
                    f"The servers {self.pool.urls[0]} and {url} differ by {gap:.2g} nats a token on one text: they "
                    "serve different models under one name. Give each teacher its own `urls`."
                )
                raise ConfigError(msg)

    def _probe(self, url: str, token_ids: Sequence[int]) -> TokenScores:
        """Return what one server says about a short text, once it is plausible."""
        try:
            answer = self.pool.post(url, COMPLETIONS, scoring_request(self.served.name, [token_ids], self.top_k))
        except ServersDownError as error:
            msg = f"{error} Start it again, or remove it from `urls`."
            raise ConfigError(msg) from None
        [scores] = scores_of(answer, [token_ids], self.top_k)
        masses = [torch.tensor(top).double().exp().sum() for top in scores.top_logprobs]
        if not all(float(mass) < 1.01 for mass in masses) or max(scores.logprobs) > 1e-3:
            msg = (
                f"The server {url} answers with logits, not with log-probs. Start it without `--logprobs-mode`, or "
                "with `--logprobs-mode raw_logprobs`."
            )
            raise ConfigError(msg)
        return scores

    @override
    def score(self, tokens: SampledTokens, signals: frozenset[Signal]) -> TeacherScores:
        return self.submit(tokens, signals)()

    @override
    @torch.no_grad()
    def begin(self, token_ids: Sequence[Sequence[int]], signals: frozenset[Signal]) -> None:
        if not signals & {Signal.LOGPROBS, Signal.TOP_LOGPROBS}:
            return
        num_known = len(self._known_tokenizer)
        top_k, known = self._num_top(signals), [tuple(ids) for ids in token_ids if max(ids) < num_known]
        self._begun |= {(ids, top_k): request for ids, request in self._ask(known, top_k).items()}
        for oldest in list(self._begun)[: max(0, len(self._begun) - MAX_BEGUN)]:  # of rollouts that were given up
            del self._begun[oldest]

    @override
    def submit(self, tokens: SampledTokens, signals: frozenset[Signal]) -> Callable[[], TeacherScores]:
        self.check_request(signals, Sampling(temperature=tokens.temperature))
        top_k = self._num_top(signals)
        is_known = (tokens.token_ids < len(self._known_tokenizer)) | ~tokens.attention_mask
        aligned_mask = tokens.response_mask & is_known.long().cumprod(dim=1).bool()
        if not signals & {Signal.LOGPROBS, Signal.TOP_LOGPROBS}:
            unread = torch.zeros_like(tokens.rollout_logprobs).masked_fill(aligned_mask, torch.nan)
            return lambda: TeacherScores(unread, aligned_mask)
        rows = [Row(row, *until_last(tokens, aligned_mask, row)) for row in range(len(tokens))]
        rows = [row for row in rows if row.columns]
        begun = {row.ids: self._begun[row.ids, top_k] for row in rows if (row.ids, top_k) in self._begun}
        for ids in begun:
            del self._begun[ids, top_k]
        requests = begun | self._ask([row.ids for row in rows if row.ids not in begun], top_k)
        return lambda: collect(tokens, aligned_mask, rows, requests, top_k)

    def _num_top(self, signals: frozenset[Signal]) -> int:
        return self.top_k if Signal.TOP_LOGPROBS in signals else 0

    def _ask(self, token_ids: Iterable[tuple[int, ...]], top_k: int) -> dict[tuple[int, ...], Request]:
        """Send sequences, each once, and return the request that each is in."""
        requests = dict[tuple[int, ...], Request]()
        for batch in batches(dict.fromkeys(token_ids), self.tokens_per_request):
            answer = self.pool.submit(COMPLETIONS, scoring_request(self.served.name, batch, top_k))
            requests |= dict.fromkeys(batch, Request(answer, batch, top_k))
        return requests

    @cached_property
    def _known_tokenizer(self) -> PreTrainedTokenizerBase:
        return self.tokenizer()

    @override
    def close(self) -> None:
        self._begun.clear()
        self.pool.close()
