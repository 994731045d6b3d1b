"""The command `tokenizer`: a small BPE that fits a task."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

from lightning_opd.errors import ConfigError
from lightning_opd.options.messages import build_from_config
from lightning_opd.options.outputs import check_output
from lightning_opd.options.sources import ConfigSources, Source


def tokenizer(
    task: dict[str, object] | str,
    output: str,
    vocab_size: int = 512,
    num_examples: int = 4096,
    special_tokens: list[str] | None = None,
    max_merge: int | None = None,
    seed: int = 0,
) -> None:
    """Train a byte-level BPE tokenizer on a task's demonstrations and save it as a Hugging Face folder.

    Args:
        task: Class of the task, or a mapping with its class_path and init_args.
        output: Folder to write.
        vocab_size: Number of tokens, special ones and the 256 bytes included.
        num_examples: Demonstrations to read.
        special_tokens: Words that are always one token, for example <think>.
        max_merge: Let tokens run across digits, words and punctuation, up to so many bytes.
        seed: Seed of the demonstrations.
    """
    from lightning_opd.interfaces import Task
    from lightning_opd.tokenization.training import train_tokenizer

    check_output(Path(output), "output")
    if num_examples < 1:
        msg = f"`num_examples` must be at least 1, got {num_examples}."
        raise ConfigError(msg)
    sources = ConfigSources((), [Source("of the tokenizer", {"task": task})])
    built = cast("Task", build_from_config(Task, "task", task, sources))
    chats = built.demonstrations("train", num_examples, seed)
    texts = (f"{message['role']}\n{message['content']}" for chat in chats for message in chat)
    trained = train_tokenizer(texts, vocab_size, special_tokens or [], max_merge)
    Path(output).mkdir(parents=True, exist_ok=True)
    trained.save_pretrained(output)
    sys.stdout.write(f"tokenizer with {len(trained)} tokens written to {output}\n")
