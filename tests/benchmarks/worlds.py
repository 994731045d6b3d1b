"""Random Qwen3 models, tokenizers of any size and prompts of equal length, for measurements of whole steps."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightning_opd.interfaces import Split, Task
from lightning_opd.tokenization.training import train_tokenizer
from lightning_opd.types import Prompt

PROMPTS = "prompts.json"
QWEN3_VOCABULARY = 151_936


@dataclass(frozen=True)
class Shape:
    """A Qwen3 model.

    Args:
        layers: Number of layers.
        width: Hidden units.
        inner: Units of the feed-forward layers.
        heads: Attention heads.
        key_heads: Of keys and values.
        head_width: Units of a head.
    """

    layers: int = 4
    width: int = 256
    inner: int = 768
    heads: int = 4
    key_heads: int = 2
    head_width: int = 64

    def config(self, vocabulary: int, max_length: int) -> dict[str, Any]:
        """Return it as transformers wants it."""
        return {
            "model_type": "qwen3",
            "vocab_size": vocabulary,
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "head_dim": self.head_width,
            "max_position_embeddings": max_length,
            "tie_word_embeddings": True,
        }


@dataclass(frozen=True)
class Setting:
    """What a step is measured on; the defaults are those of the comparison with TRL.

    Args:
        folder: Where models and prompts lie.
        steps: At most so many are taken.
        prompts: Of one rollout batch.
        prompt_tokens: Length of each, with its chat template.
        new_tokens: Of each response; no response ends earlier.
        vocabulary: Tokens.
        teachers: Number of routed teachers.
        lora: Whether the student trains an adapter on a frozen base.
        adapters: Whether the teachers, too, are adapters on that base.
        micro_batches: Of one optimiser step.
        measures_memory: Whether to measure memory; then with plain SGD, which keeps nothing from step to step.
        precision: Of the student's weights.
        teacher_precision: Of the teachers' weights.
        trainer_precision: Of the computation, as Lightning names it.
        device: Where to run.
    """

    folder: str
    steps: int = 6
    prompts: int = 16
    prompt_tokens: int = 32
    new_tokens: int = 64
    vocabulary: int = 4096
    teachers: int = 1
    lora: bool = False
    adapters: bool = False
    micro_batches: int = 1
    measures_memory: bool = False
    precision: str = "float32"
    teacher_precision: str = "float32"
    trainer_precision: str = "32-true"
    device: str = "cpu"

    def as_json(self) -> str:
        """Return it as an argument for another process."""
        return json.dumps(dataclasses.asdict(self))


class SamePrompts(Task):
    """Prompts of equal length, dealt out to the teachers in turn.

    Args:
        folder: Where they lie.
        num_teachers: They are `t0`, `t1` and so on.
    """

    def __init__(self, folder: str, num_teachers: int = 1) -> None:
        self._texts: list[str] = json.loads((Path(folder) / PROMPTS).read_text(encoding="utf-8"))
        self._num_teachers = num_teachers

    def prompts(self, split: Split) -> Sequence[Prompt]:
        names = [f"t{i % self._num_teachers}" for i in range(len(self._texts))]
        return [
            Prompt(({"role": "user", "content": text},), key=f"{split}{i}", teacher=name, domain=name)
            for i, (text, name) in enumerate(zip(self._texts, names, strict=True))
        ]

    def reward(self, prompt: Prompt, text: str) -> float:
        return 0.0


def save_tokenizer(folder: Path, vocabulary: int) -> Any:
    """Save a tokenizer with so many tokens, most of which no text has, and return it.

    A digit is one token, and the last token ends a response.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    small = train_tokenizer(["user assistant"], vocab_size=300)
    state = json.loads(small.backend_tokenizer.to_str())
    known = set(state["model"]["vocab"].values())
    state["model"]["vocab"] |= {f"unused{i}": i for i in range(vocabulary) if i not in known}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        pad_token=small.pad_token,
        eos_token=small.eos_token,
        chat_template=small.chat_template,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def save_model(folder: Path, tokenizer: Any, shape: Shape, seed: int, setting: Setting) -> None:
    """Save a random model with its tokenizer; the student has seed 0."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = shape.config(len(tokenizer), setting.prompt_tokens + setting.new_tokens + 8)
    settings |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(seed)
    dtype = getattr(torch, setting.teacher_precision if seed else setting.precision)
    with torch.device(setting.device):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_prompts(folder: Path, tokenizer: Any, number: int, length: int) -> None:
    """Save prompts that have exactly so many tokens once their chat template is around them.

    Raises:
        ValueError: The template alone is longer.
    """
    chosen = random.Random(0)

    def rendered(text: str) -> int:
        messages = [{"role": "user", "content": text}]
        return len(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))

    num_digits = length - rendered("1") + 1
    if num_digits < 8:
        msg = f"A prompt needs at least {length - num_digits + 8} tokens, got {length}."
        raise ValueError(msg)
    texts = ["".join(chosen.choices("0123456789", k=num_digits)) for _ in range(number)]
    assert {rendered(text) for text in texts[:8]} == {length}
    (folder / PROMPTS).write_text(json.dumps(texts), encoding="utf-8")


def save_world(setting: Setting, shape: Shape = Shape(), teacher: Shape | None = None) -> None:
    """Save everything that a setting needs: `student`, `t0`, `t1` and so on, and prompts for all steps."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = Path(setting.folder)
    tokenizer = save_tokenizer(folder / "student", setting.vocabulary)
    save_model(folder / "student", tokenizer, shape, 0, setting)
    for index in range(setting.teachers):
        name = folder / f"t{index}"
        if setting.adapters:
            save_adapter(folder / "student", name, index)
        else:
            save_model(name, tokenizer, teacher or shape, index + 1, setting)
    save_prompts(folder, tokenizer, setting.prompts * (setting.steps + 1), setting.prompt_tokens)


def save_adapter(base: Path, folder: Path, seed: int) -> None:
    """Save an adapter of rank 16 on all linear layers that changes what its base says."""
    from lightning_opd.models import Lora
    from tests import tiny

    tiny.save_adapter(base, folder, seed, Lora())
