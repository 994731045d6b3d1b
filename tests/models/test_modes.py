"""Dropout, wherever an architecture keeps it, and modules that keep their own modes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_opd.models import LanguageModel, Lora, evaluating, remove_dropout
from lightning_opd.models.student import with_lora
from lightning_opd.rollouts import InProcessEngine
from lightning_opd.types import Sampling

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64},
    "opt": {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.3, "layerdrop": 0.3},
    "falcon": {**SMALL, "hidden_dropout": 0.3, "attention_dropout": 0.3},
    "llama": {**SMALL, "intermediate_size": 64, "attention_dropout": 0.3},
    "mixtral": {**SMALL, "intermediate_size": 64, "num_key_value_heads": 1, "router_jitter_noise": 0.3},
}


def model_of(family: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **{"bos_token_id": 1, "eos_token_id": 2, **FAMILIES[family]})
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_dropout_computes_the_same_in_both_modes(family: str) -> None:
    """Whether it is a module, a number in a module, or read off the configuration."""
    model, ids = model_of(family), torch.randint(0, 64, (4, 9))
    expected = model.eval()(ids, use_cache=False).logits
    model.train()
    assert any(not torch.equal(model(ids, use_cache=False).logits, expected) for _ in range(5)), "it must show before"
    removed = remove_dropout(model)
    assert removed
    assert all(0 < rate < 1 for rate in removed.values())
    assert model.training
    for _ in range(5):
        torch.testing.assert_close(model(ids, use_cache=False).logits, expected, atol=1e-6, rtol=0)
    assert remove_dropout(model) == {}


def test_dropout_of_an_adapter_is_removed_too() -> None:
    student = with_lora(model_of("llama"), Lora(rank=2, dropout=0.5))
    assert 0.5 in remove_dropout(student).values()
    assert remove_dropout(student) == {}


def generate(model: Any) -> None:
    engine = InProcessEngine()
    engine.sync(model, 0)
    engine.generate([[5, 6]], 1, [0], Sampling(max_new_tokens=2, stop_token_ids=(1,), vocab_size=16))


@pytest.mark.parametrize("use", [generate, lambda model: LanguageModel(model, 16)], ids=["rollouts", "head"])
def test_rollouts_and_probes_leave_every_module_in_its_own_mode(use: Callable[[Any], object]) -> None:
    model = model_of("gpt2").train()
    model.transformer.h[0].eval()
    before = [module.training for module in model.modules()]
    use(model)
    assert [module.training for module in model.modules()] == before


def test_every_module_gets_its_own_mode_back() -> None:
    model = model_of("gpt2").train()
    model.transformer.h[0].eval()
    before = [module.training for module in model.modules()]
    assert True in before
    assert False in before
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
