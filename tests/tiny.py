"""Real tiny models: a byte-level BPE tokenizer and a two-layer Qwen3 as Hugging Face folders."""

from __future__ import annotations

import string
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lightning_opd.models import Lora

SPECIAL_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
TEXTS = (
    string.printable,
    "system user assistant What is 27 + 48? Sort the letters of dbca. Reverse the letters of xyz.",
    '<think>7+8=15 carry 1; 2+4+1=7</think><tool_call>{"name": "calc", "arguments": {"result": 75}}</tool_call>',
)


def save_tokenizer(folder: Path) -> Path:
    """Train a small tokenizer that can encode every printable character, save it and return the folder."""
    from lightning_opd.tokenization.training import train_tokenizer

    train_tokenizer(TEXTS, vocab_size=288, special_tokens=SPECIAL_TOKENS).save_pretrained(folder)
    return folder


def model_config(vocab_size: int, **changes: Any) -> dict[str, Any]:
    """Return a Qwen3 configuration that runs in milliseconds."""
    return {
        "model_type": "qwen3",
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 64,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        **changes,
    }


def save_model(
    folder: Path,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **changes: Any,
) -> Path:
    """Save a randomly initialised model with its tokenizer and return the folder.

    Args:
        folder: Where to write; made if missing.
        seed: Of the weights.
        dtype: Of the saved weights.
        tokenizer: Saved beside it; by default that of `save_tokenizer`.
        changes: Entries of the configuration that differ from `model_config`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    own: Any = AutoTokenizer.from_pretrained(save_tokenizer(folder)) if tokenizer is None else tokenizer
    own.save_pretrained(folder)
    settings = {**model_config(len(own)), **changes}
    settings |= {"eos_token_id": own.eos_token_id, "pad_token_id": own.pad_token_id}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=dtype)
    sharpen(model)
    model.save_pretrained(folder)
    return folder


def sharpen(model: torch.nn.Module, factor: float = 12.0) -> None:
    """Scale the matrices up: a fresh initialisation predicts all tokens alike, which hides mistakes."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(factor)


def save_foreign(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Save a teacher with a tokenizer of its own, which merges other letters and has its own ids."""
    from lightning_opd.tokenization.training import train_tokenizer

    texts = ("user assistant xyz calc", "name arguments result", '": "') * 3
    tokenizer = train_tokenizer(texts, vocab_size=320, special_tokens=("</tool_call>", "<think>", "</think>"))
    return save_model(folder, 7, dtype, tokenizer, max_position_embeddings=512)


def save_adapter(base: Path, folder: Path, seed: int, lora: Lora) -> Path:
    """Save a LoRA adapter that has something to say."""
    from lightning_opd.models import StudentConfig, build_student, export_student, load_tokenizer

    student = build_student(StudentConfig(str(base), lora=lora))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in student.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.2, generator=generator)
    export_student(student, load_tokenizer(str(base)), folder, merge=False)
    return folder
