"""Forty-odd real architectures as tiny random models, made from transformers' own classes without any download."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tests.tiny import sharpen

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VOCAB = 96
BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
}
DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_d_ssm": 64,
    "mamba_chunk_size": 8,
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 2,
    "head_dim": 8,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "bloom": {"n_layer": 2, "n_head": 2},
    "cohere": {"logit_scale": 0.5},
    "cohere2": {"logit_scale": 0.5},
    "deepseek_v3": {
        **LATENT,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "ernie4_5": {},
    "exaone4": {},
    "falcon": {},
    "falcon_h1": {**MAMBA, "lm_head_multiplier": 0.25},
    "falcon_mamba": {"state_size": 8},
    "gemma": {},
    "gemma2": {"final_logit_softcapping": 3.0},
    "gemma3_text": {},
    "glm4": {},
    "gpt2": GPT,
    "gpt_neox": {},
    "gpt_oss": EXPERTS,
    "granite": {"logits_scaling": 6.0},
    "granitemoehybrid": {
        **MAMBA,
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 48,
        "logits_scaling": 6.0,
    },
    "jamba": {
        **EXPERTS,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama": {},
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8, "expand": 2},
    "minicpm3": {**LATENT, "dim_model_base": 8},
    "mistral": {},
    "mixtral": EXPERTS,
    "mpt": {"d_model": 32, "n_heads": 2, "n_layers": 2, "max_seq_len": 128},
    "nemotron": {},
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "olmo2": {},
    "olmo3": {},
    "olmoe": EXPERTS,
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi3": {},
    "qwen2": {},
    "qwen2_moe": EXPERTS,
    "qwen3": {},
    "qwen3_5_text": DELTA,
    "qwen3_moe": EXPERTS,
    "qwen3_next": {**EXPERTS, **DELTA},
    "recurrent_gemma": {
        "lru_width": 32,
        "num_hidden_layers": 3,
        "block_types": ["recurrent", "recurrent", "attention"],
    },
    "rwkv": {"attention_hidden_size": 32},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
}
"""Entries of each architecture's configuration beside `BASE`, by transformers' `model_type`."""


def tiny_architecture(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """Return a random model of an architecture in eval mode, the same in every call.

    Args:
        name: A key of `ARCHITECTURES`.
        dtype: Of the weights.
        changes: Entries of the configuration that differ from these tables.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    base = {key: value for key, value in BASE.items() if (name, key) != ("falcon", "head_dim")}
    config = AutoConfig.for_model(name, **{**base, **ARCHITECTURES[name], **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    sharpen(model, 6.0)
    model.train(False)
    return model
