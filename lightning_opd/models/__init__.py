"""Causal language models: loading, LoRA, sharding, and forwards without all logits in memory."""

from lightning_opd.models.checks import check_fits, check_rows
from lightning_opd.models.distributed import any_rank, gather_objects, max_over, num_ranks, sum_over_ranks
from lightning_opd.models.export import export_student
from lightning_opd.models.finite import NonFiniteWeightsError, are_finite, check_finite
from lightning_opd.models.forward_arguments import cache_argument, logits_to_keep
from lightning_opd.models.host_memory import HostWeights
from lightning_opd.models.language_model import LanguageModel, context_length
from lightning_opd.models.loading import (
    checkpoint_dtype,
    declared_stop_ids,
    load_causal_lm,
    load_config,
    load_tokenizer,
    torch_dtype,
)
from lightning_opd.models.modes import evaluating, remove_dropout
from lightning_opd.models.outline import Outline, outline
from lightning_opd.models.owner import StudentOwner, student_owner
from lightning_opd.models.prepacking import prepacked
from lightning_opd.models.quantization import Quantization, is_quantized
from lightning_opd.models.sharding import root_unsharded, shard, shard_whole, unsharded, whole_weights
from lightning_opd.models.sizes import ParameterCounts, parameter_counts
from lightning_opd.models.slices import LoadSettings, frozen, load_sharded
from lightning_opd.models.student import Lora, StudentConfig, build_student, causal_lm
from lightning_opd.models.tree_reading import READ_AT_ONCE, TreeReading

__all__ = [
    "READ_AT_ONCE",
    "HostWeights",
    "LanguageModel",
    "LoadSettings",
    "Lora",
    "NonFiniteWeightsError",
    "Outline",
    "ParameterCounts",
    "Quantization",
    "StudentConfig",
    "StudentOwner",
    "TreeReading",
    "any_rank",
    "are_finite",
    "build_student",
    "cache_argument",
    "causal_lm",
    "check_finite",
    "check_fits",
    "check_rows",
    "checkpoint_dtype",
    "context_length",
    "declared_stop_ids",
    "evaluating",
    "export_student",
    "frozen",
    "gather_objects",
    "is_quantized",
    "load_causal_lm",
    "load_config",
    "load_sharded",
    "load_tokenizer",
    "logits_to_keep",
    "max_over",
    "num_ranks",
    "outline",
    "parameter_counts",
    "prepacked",
    "remove_dropout",
    "root_unsharded",
    "shard",
    "shard_whole",
    "student_owner",
    "sum_over_ranks",
    "torch_dtype",
    "unsharded",
    "whole_weights",
]
