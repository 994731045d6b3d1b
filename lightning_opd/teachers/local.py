"""A teacher in this process that scores the student's own tokens."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.functional.length_groups import MAX_TOKENS_PER_FORWARD, budgeted_groups
from lightning_opd.interfaces import Generates, ReadsStudentTokens, ReadsTrees, TakesTurns, Teacher
from lightning_opd.models import (
    HostWeights,
    LanguageModel,
    LoadSettings,
    Quantization,
    context_length,
    frozen,
    is_quantized,
    load_config,
    load_sharded,
    load_tokenizer,
    max_over,
    root_unsharded,
    torch_dtype,
)
from lightning_opd.teachers.local_trees import TreeReader, check_length
from lightning_opd.teachers.scoring import RowScores
from lightning_opd.types import LinearHead, SampledTokens, Signal, TeacherScores, TokenTree

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedTokenizerBase

TREE_ATTENTION = ("sdpa", "eager")
"""Attention that takes any mask."""


class LocalTeacher(Teacher, ReadsStudentTokens, ReadsTrees, Generates, TakesTurns):
    """A frozen Hugging Face causal language model that shares the student's tokenizer.

    Args:
        path: Folder or hub name of the model (safetensors), or folder of a LoRA adapter, which lies on its base.
        temperature: Divides the teacher's logits; by default the sampling temperature. Another
            value moves the fixed point to z_student = (sampling temperature / this) · z_teacher.
        dtype: Precision of the weights, by default the checkpoint's; log-probs are computed in at least float32.
        batch_size: Most trajectories scored at once.
        top_k: Likeliest tokens per position for an objective that asks for them.
        attn_implementation: Attention of transformers: sdpa, eager, flash_attention_2 (whose forwards read no padding);
            by default the architecture's.
        trust_remote_code: Run code shipped with the model; only for models you trust.
        chat_template_kwargs: Settings of the teacher's own chat template, where it renders prompts itself.
        revision: Branch, tag or commit of `path`, where that is a hub name; by default the newest.
        max_tokens_per_forward: Most tokens, padding included, scored at once; a longer trajectory is scored alone.
        quantization: Keep the weights in 4 bits (`nf4`) or 8 (`int8`), by bitsandbytes; null for whole ones.
    """

    def __init__(  # noqa: PLR0913, PLR0917  # settings, each a key in YAML
        self,
        path: str,
        temperature: float | None = None,
        dtype: str | None = None,
        batch_size: int = 256,
        top_k: int = 64,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,  # a key in YAML
        chat_template_kwargs: dict[str, object] | None = None,
        revision: str | None = None,
        max_tokens_per_forward: int = MAX_TOKENS_PER_FORWARD,
        quantization: Quantization | None = None,
    ) -> None:
        """Remember the settings; `setup` loads the model."""
        if temperature is not None and not 0 < temperature < math.inf:
            msg = f"`temperature` of teacher `{path}` must be positive, got {temperature}."
            raise ConfigError(msg)
        counts = {"batch_size": batch_size, "top_k": top_k, "max_tokens_per_forward": max_tokens_per_forward}
        for name, count in counts.items():
            if count < 1:
                msg = f"`{name}` of teacher `{path}` must be at least 1, got {count}."
                raise ConfigError(msg)
        torch_dtype(dtype)
        self.path, self.temperature, self.dtype, self.batch_size = path, temperature, dtype, batch_size
        self.top_k, self.max_tokens_per_forward = top_k, max_tokens_per_forward
        self.attn_implementation, self.trust_remote_code = attn_implementation, trust_remote_code
        self.chat_template_kwargs, self.revision = chat_template_kwargs, revision
        self._settings = LoadSettings(path, revision, dtype, attn_implementation, trust_remote_code, quantization)
        self._model: LanguageModel | None = None
        self._mesh: DeviceMesh | None = None
        self._has_copied_head = False
        self._turns: HostWeights | None = None

    @property
    @override
    def identity(self) -> Hashable:
        template = json.dumps(self.chat_template_kwargs, sort_keys=True)
        return (
            type(self),
            self._settings,
            self.temperature,
            self.batch_size,
            self.top_k,
            template,
            self.max_tokens_per_forward,
        )

    @override
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(
            self.path,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            chat_template_kwargs=self.chat_template_kwargs,
        )

    @override
    def declared_max_length(self) -> int:
        return context_length(load_config(self.path, trust_remote_code=self.trust_remote_code))

    @override
    def setup(self, device: torch.device, mesh: DeviceMesh | None = None) -> None:
        if mesh is None:
            model = frozen(self._settings.load())
            if not is_quantized(model):  # bitsandbytes loads to the device
                model.to(device)  # type: ignore[arg-type]  # transformers annotates less than torch takes
        else:
            model = load_sharded(self._settings, mesh, frozen)
        if self.temperature is not None:
            rank_zero_info(
                f"Teacher `{self.path}` is scored at temperature {self.temperature}: the student that matches it has "
                f"z_student = (sampling temperature / {self.temperature}) · z_teacher + const."
            )
        with root_unsharded(model):  # the head is probed
            self._model, self._mesh = LanguageModel(model, len(self.tokenizer())), mesh

    def adopt(self, model: LanguageModel, mesh: DeviceMesh | None = None) -> None:
        """Score with a model that somebody else has loaded, and shards, instead of loading one.

        Args:
            model: Frozen; in eval mode whenever it scores.
            mesh: Ranks that its weights are sharded over, or None.
        """
        self._model, self._mesh = model, mesh

    @property
    def loaded_model(self) -> nn.Module:
        """The model; there from `setup` on."""
        return self._loaded().model

    def _loaded(self) -> LanguageModel:
        if self._model is None:
            msg = f"Teacher `{self.path}` is not loaded; call `setup(device)` first."
            raise RuntimeError(msg)
        return self._model

    @override
    @torch.no_grad()
    def score(self, tokens: SampledTokens, signals: frozenset[Signal]) -> TeacherScores:
        model = self._loaded()
        lengths: list[int] = tokens.attention_mask.sum(dim=1).tolist()
        check_length(f"teacher `{self.path}`", max(lengths, default=0), model.max_length)
        collected = RowScores(model, tokens, signals, self.temperature or tokens.temperature, self.top_k)
        groups = budgeted_groups(lengths, self.max_tokens_per_forward, self.batch_size)
        num_rounds = self._num_rounds(len(groups))  # asked before any rank runs the model: collectives have one order
        for group in groups:
            collected.add(torch.tensor(group, device=tokens.token_ids.device))
        for _ in range(num_rounds - len(groups)):  # another rank still has rows: join in
            model.states(tokens.token_ids.new_zeros(1, 2), tokens.attention_mask.new_ones(1, 2))
        self._gather_head(signals)
        heads = (self.output_head(),) if Signal.HIDDEN_STATES in signals else ()
        return collected.scores(heads)

    @override
    def check_reads_trees(self) -> None:
        attention = (
            self.attn_implementation or self._loaded().model.config._attn_implementation
        )  # transformers' only name for it
        if attention in TREE_ATTENTION:
            obstacle = self._loaded().obstacle_to_trees()
            self._gather_head(frozenset())
        else:
            obstacle = f"the attention `{attention}` cannot mask them; use `attn_implementation: sdpa`"
        if obstacle is not None:
            msg = (
                f"Teacher `{self.path}` has to read several continuations at once (credit `PrefixCredit`), but "
                f"{obstacle}. Use the credit `SpanCredit`: it takes plain forwards."
            )
            raise ConfigError(msg)

    @override
    def tree_hidden_states(
        self, trunks: Iterable[Sequence[int]], branches: Callable[[Float[Tensor, "trunk hidden"]], TokenTree]
    ) -> Iterator[Float[Tensor, "branches hidden"]]:
        model, path = self._loaded(), f"teacher `{self.path}`"
        reader = TreeReader(model, path, self._mesh, lambda: self._gather_head(frozenset({Signal.HIDDEN_STATES})))
        return reader.read(trunks, branches)

    def _num_rounds(self, num_groups: int) -> int:
        """Return how often this rank must run the model; under sharding all ranks run it equally often."""
        return num_groups if self._mesh is None else max_over(self._mesh, max(num_groups, 1))

    def _gather_head(self, signals: frozenset[Signal]) -> None:
        """Keep a whole copy of a sharded head for the objective, and free the gathered weights."""
        if self._mesh is None and self._turns is None:
            return
        model = self._loaded()
        if Signal.HIDDEN_STATES in signals:
            model.copied_head()
            self._has_copied_head = True
        if self._mesh is not None:
            model.model.reshard()  # type: ignore[operator]  # fully_shard made it an FSDPModule

    @override
    def output_head(self) -> LinearHead | None:
        if self._mesh is not None and not self._has_copied_head:
            return None
        if self._turns is not None and not self._has_copied_head:  # of a run that goes on inside a rollout batch
            self._turns.enter()
            self._gather_head(frozenset({Signal.HIDDEN_STATES}))
            self._turns.leave()
        head = self._loaded().copied_head() if self._has_copied_head else self._loaded().head()
        return dataclasses.replace(head, temperature=self.temperature)

    @override
    def enter_device(self) -> None:
        if self._turns is not None:
            self._turns.enter()

    @override
    def leave_device(self) -> None:
        if self._turns is None:
            self._turns = HostWeights(self.loaded_model)
        self._turns.leave()

    def generator(self) -> torch.nn.Module:
        """Return its causal language model."""
        return self._loaded().model

    @override
    def generating(self) -> AbstractContextManager[torch.nn.Module]:
        return nullcontext(self.generator())

    @override
    def close(self) -> None:
        self._model, self._turns, self._has_copied_head = None, None, False
