from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_opd.models import LanguageModel, TreeReading
from lightning_opd.types import TokenTree
from tests.tiny import model_config, sharpen

VOCAB_SIZE, NUM_PROMPT, NUM_BRANCH = 64, 5, 8
BOTH = ["sliding_attention", "full_attention"]
SLIDING: list[dict[str, Any]] = [
    {"model_type": "mistral"},
    {"model_type": "qwen2", "use_sliding_window": True, "layer_types": BOTH},
    {"model_type": "qwen3", "use_sliding_window": True, "layer_types": BOTH[:1] * 2},
    {"model_type": "gemma2", "layer_types": BOTH, "pad_token_id": 0},
    {"model_type": "gemma3_text", "layer_types": BOTH},
    {"model_type": "phi3", "pad_token_id": 0},
    {"model_type": "cohere2", "layer_types": BOTH},
    {"model_type": "gpt_oss", "layer_types": BOTH, "num_local_experts": 2, "num_experts_per_tok": 1},
]
RECURRENT: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "mamba", "state_size": 4}, "layers of type `linear_attention`"),
    ({"model_type": "lfm2", "layer_types": ["conv", "full_attention"]}, "layers of type `conv`"),
    ({"model_type": "falcon_h1", "mamba_d_ssm": 32, "mamba_n_heads": 2, "mamba_d_head": 16}, "layers of type `hybrid`"),
    ({"model_type": "rwkv", "attention_hidden_size": 32}, "`rwkv` carries a state"),
    ({"model_type": "bloom"}, "`bloom` does not take a mask"),
]


def name(case: object) -> str:
    return str(case["model_type"]) if isinstance(case, dict) else ""


def language_model(changes: dict[str, Any]) -> LanguageModel:
    from transformers import AutoConfig, AutoModelForCausalLM

    attention = "eager" if changes["model_type"] in {"gemma2", "gpt_oss", "mamba", "rwkv", "bloom"} else "sdpa"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(**model_config(VOCAB_SIZE, **changes))
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
    sharpen(model)
    return LanguageModel(model.eval(), VOCAB_SIZE)


@torch.no_grad()
def branch_states(model: LanguageModel, at_once: int = 6) -> tuple[Tensor, Tensor]:
    """Return states of the second of two branches, and those of a plain forward over its tokens alone."""
    ids = torch.randint(3, VOCAB_SIZE, (1, NUM_PROMPT + 2 * NUM_BRANCH), generator=torch.Generator().manual_seed(1))
    prompt, branch = torch.arange(NUM_PROMPT), torch.arange(NUM_PROMPT, NUM_PROMPT + NUM_BRANCH)
    second = branch + NUM_BRANCH
    parents = [*range(-1, len(ids[0]) - 1)]
    parents[second[0]] = NUM_PROMPT - 1
    (states,) = model.read_trees(TreeReading([TokenTree(ids[0].tolist(), parents)], at_once))
    alone = torch.cat([ids[:, prompt], ids[:, second], ids[:, :1]], dim=1)
    return states[second], model.states(alone, torch.ones_like(alone, dtype=torch.bool))[0, NUM_PROMPT + 1 :]


@pytest.mark.parametrize("at_once", [6, 100])
@pytest.mark.parametrize("changes", SLIDING, ids=name)
def test_a_branch_longer_than_sliding_attention_reaches_is_read_exactly(changes: dict[str, Any], at_once: int) -> None:
    model = language_model({**changes, "sliding_window": 4})
    assert model.obstacle_to_trees() is None
    states, expected = branch_states(model, at_once)
    assert torch.allclose(states, expected, atol=2e-3, rtol=1e-3)
    whole, _ = branch_states(language_model({**changes, "sliding_window": 100}))
    assert not torch.allclose(whole, expected, atol=0.05)  # the reach matters here


@pytest.mark.parametrize(("changes", "words"), RECURRENT, ids=name)
def test_a_model_that_a_mask_cannot_keep_apart_says_why(changes: dict[str, Any], words: str) -> None:
    assert words in str(language_model(changes).obstacle_to_trees())


def test_sliding_attention_that_the_masks_miss_is_noticed_by_the_probe() -> None:
    model = language_model({"model_type": "mistral", "sliding_window": 4})
    assert model.obstacle_to_trees() is None
    model.model.config.layer_types = ["full_attention"] * 2  # the model itself does not read this
    assert "reads a branch differently" in str(model.obstacle_to_trees())
