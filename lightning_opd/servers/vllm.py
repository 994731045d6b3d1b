"""What vLLM's server is asked for, and how its answers are read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_opd.errors import ConfigError
from lightning_opd.servers.pool import ServerPool
from lightning_opd.types import Sampling

COMPLETIONS = "/v1/completions"


@dataclass(frozen=True)
class ServedModel:
    """A model behind a server.

    Args:
        name: To ask for it by.
        root: Folder or hub name that the server loaded it from.
        max_length: Most tokens of a prompt and its reply.
    """

    name: str
    root: str
    max_length: int


@dataclass(frozen=True)
class TokenScores:
    """What a server says about the tokens of one sequence; nothing is said about the first.

    Args:
        logprobs: Log-prob (nats) of each token but the first.
        top_ids: The likeliest token ids at the place of each, likeliest first.
        top_logprobs: Their log-probs (nats).
    """

    logprobs: list[float]
    top_ids: list[list[int]]
    top_logprobs: list[list[float]]


def models_of(pool: ServerPool, url: str) -> list[ServedModel]:
    """Return the models behind one server; adapters that it has loaded among them.

    Raises:
        ConfigError: It is no such server.
        ServersDownError: It does not answer.
    """
    answer = pool.get(url, "/v1/models")
    models = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(models, list) or not models:
        msg = f"{url} is no server of models: `/v1/models` names none. Give the address of a vLLM server."
        raise ConfigError(msg)
    longest = max((int(m.get("max_model_len") or 0) for m in models), default=0)  # adapters do not say theirs
    return [ServedModel(m["id"], m.get("root") or m["id"], int(m.get("max_model_len") or longest)) for m in models]


def scoring_request(model: str, token_ids: Sequence[Sequence[int]], top_k: int) -> dict[str, Any]:
    """Return the body that asks for the log-probs of given tokens, and of the `top_k` likeliest beside each."""
    return {
        "model": model,
        "prompt": [list(ids) for ids in token_ids],
        "max_tokens": 1,  # none cannot be asked for
        "temperature": 0,
        "prompt_logprobs": top_k,
    }


def sampling_request(model: str, token_ids: Sequence[int], seed: int, sampling: Sampling) -> dict[str, Any]:
    """Return the body that asks for one response to one prompt; nothing is left to the server's own defaults."""
    return {
        "model": model,
        "prompt": [list(token_ids)],
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k if sampling.top_k is not None else -1,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "seed": seed,
        "logprobs": 0,
        "return_token_ids": True,
        "ignore_eos": True,  # what ends a response is said here
        "stop_token_ids": list(sampling.stop_token_ids),
        "stop": list(sampling.stop_strings),
        "include_stop_str_in_output": True,
    }


def load_weights(pool: ServerPool, url: str, folder: str, *, has_extension: bool) -> None:
    """Let one server replace its model's weights by those of a folder, and forget what it has cached.

    Args:
        pool: The servers.
        url: Of one of them.
        folder: Hugging Face folder that the server can read.
        has_extension: Whether it was started with `worker_extension.Weights`.

    Raises:
        ConfigError: It refuses, or answers while it generates.
        ServersDownError: It does not answer.
    """
    if has_extension:
        pool.post(url, "/collective_rpc", {"method": "load_student", "args": [folder]})
    else:
        pool.post(url, "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": folder}})
    if pool.post(url, "/reset_prefix_cache", {}).get("success") is False:
        msg = f"The server {url} still generates for somebody else, and keeps what it has cached. Let it serve one run."
        raise ConfigError(msg)


def load_adapter(pool: ServerPool, url: str, name: str, folder: str) -> None:
    """Let one server load an adapter under a new name.

    Raises:
        ConfigError: It refuses.
        ServersDownError: It does not answer.
    """
    pool.post(url, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder})


def unload_adapter(pool: ServerPool, url: str, name: str) -> None:
    """Let one server forget an adapter.

    Raises:
        ConfigError: It does not know it.
        ServersDownError: It does not answer.
    """
    pool.post(url, "/v1/unload_lora_adapter", {"lora_name": name})


def scores_of(answer: Mapping[str, Any], token_ids: Sequence[Sequence[int]], top_k: int) -> list[TokenScores]:
    """Return what a server said about each sequence of a request.

    Raises:
        ConfigError: It answered something else.
    """
    choices = sorted(answer.get("choices", ()), key=lambda choice: int(choice["index"]))
    if len(choices) != len(token_ids):
        msg = f"A server answered {len(choices)} of {len(token_ids)} sequences; it is no vLLM server, or too old a one."
        raise ConfigError(msg)
    return [_scores(choice.get("prompt_logprobs"), ids, top_k) for choice, ids in zip(choices, token_ids, strict=True)]


def _scores(places: Sequence[Mapping[str, Any] | None] | None, token_ids: Sequence[int], top_k: int) -> TokenScores:
    if places is None or len(places) != len(token_ids):
        msg = "A server answered without `prompt_logprobs`. Teachers need a vLLM server, which returns them."
        raise ConfigError(msg)
    logprobs, top_ids, top_logprobs = [], [], []
    for token_id, place in zip(token_ids[1:], places[1:], strict=True):
        own = None if place is None else place.get(str(token_id))
        if place is None or own is None:
            msg = f"A server answered about other tokens than it was asked about (no log-prob of {token_id})."
            raise ConfigError(msg)
        logprobs.append(_number(own["logprob"]))
        if top_k:
            likeliest = sorted((int(p["rank"]), int(i), _number(p["logprob"])) for i, p in place.items())[:top_k]
            top_ids.append([i for _, i, _ in likeliest])
            top_logprobs.append([logprob for _, _, logprob in likeliest])
    return TokenScores(logprobs, top_ids, top_logprobs)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
