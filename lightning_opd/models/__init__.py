"""Causal language models: loading, LoRA, sharding, and forwards without all logits in memory."""

from lightning_opd.models.language_model import LanguageModel
from lightning_opd.models.loading import load_causal_lm, load_tokenizer
from lightning_opd.models.sharding import any_rank, shard, shard_whole, unsharded
from lightning_opd.models.student import Lora, StudentConfig, build_student, causal_lm, export_student

__all__ = [
    "LanguageModel",
    "Lora",
    "StudentConfig",
    "any_rank",
    "build_student",
    "causal_lm",
    "export_student",
    "load_causal_lm",
    "load_tokenizer",
    "shard",
    "shard_whole",
    "unsharded",
]
