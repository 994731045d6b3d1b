"""Small tokenizers in the styles of five model families: how they split text, their control tokens, their templates."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tests.tiny import TEXTS

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

THINK = ("<think>", "</think>")
TEMPLATES = {
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "llama3": (
        "{{ '<|begin_of_text|>' }}{% for m in messages %}"
        "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ '<s>' }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + '</s>' }}{% endif %}{% endfor %}"
    ),
    "gemma": (
        "{{ '<bos>' }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}"
        "{% endif %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' }}"
        "{{ m['content'] + '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
    ),
    "deepseek": (
        "{{ '<|bos|>' }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}"
        "{% else %}{{ '<|Assistant|>' + m['content'] + '<|eos|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}"
    ),
}
CONTROL = {
    "chatml": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *THINK, "<tool_call>", "</tool_call>"),
    "llama3": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"),
    "mistral": ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]"),
    "gemma": ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<unk>"),
    "deepseek": ("<|bos|>", "<|eos|>", "<|User|>", "<|Assistant|>", *THINK),
}
STOP = {
    "chatml": "<|im_end|>",
    "llama3": "<|end_of_text|>",
    "mistral": "</s>",
    "gemma": "<eos>",
    "deepseek": "<|eos|>",
}
"""The stop token; Llama 3 and Gemma close a turn with another one."""

END_OF_TURN = STOP | {"llama3": "<|eot_id|>", "gemma": "<end_of_turn>"}
FAMILIES = tuple(TEMPLATES)


@functools.cache
def family(name: str) -> PreTrainedTokenizerFast:
    """Return a family's tokenizer, trained on a few lines."""
    from transformers import PreTrainedTokenizerFast

    make = sentencepiece if name in ("mistral", "gemma") else byte_level
    return PreTrainedTokenizerFast(
        tokenizer_object=make(name, CONTROL[name]),
        eos_token=STOP[name],
        pad_token=CONTROL[name][0],
        chat_template=TEMPLATES[name],
        clean_up_tokenization_spaces=False,
    )


def normalising(name: str) -> PreTrainedTokenizerFast:
    """Return a family's tokenizer that composes characters first (NFC), as Qwen's does."""
    from tokenizers import Tokenizer, normalizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(family(name).backend_tokenizer.to_str())
    own = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), *own])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=family(name).eos_token, chat_template=TEMPLATES[name]
    )


def byte_level(name: str, control: Sequence[str]) -> Tokenizer:
    """Return a byte-level BPE; only ChatML's splits numbers into digits."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    levels = [pre_tokenizers.Digits(individual_digits=True)] if name == "chatml" else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*levels, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=list(control),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text + " 27 75 2026 15" for text in TEXTS] * 2, trainer)
    return tokenizer


def sentencepiece(name: str, control: Sequence[str]) -> Tokenizer:
    """Return a BPE over characters with bytes to fall back on; Mistral's puts a space before a text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trained.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    vocabulary = {token: i for i, token in enumerate([*control, *bytes_, *learned["vocab"]])}
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if name == "mistral":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(list(control))
    return tokenizer
