"""One frozen model in memory that several adapters lie on: the student's, the teachers', or none of them at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_opd.errors import ConfigError
from lightning_opd.models.adapters import adapter_base, add_adapter, check_switchable, put_adapter
from lightning_opd.models.language_model import LanguageModel
from lightning_opd.models.loading import load_causal_lm
from lightning_opd.models.modes import evaluating
from lightning_opd.models.sharding import shard
from lightning_opd.models.student import StudentConfig, causal_lm

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel


@dataclasses.dataclass(frozen=True)
class BaseSettings:
    """How a base is loaded; equal settings are one model in memory.

    Args:
        path: Folder or hub name; None for the student's own base.
        dtype: Precision of the weights; None for the checkpoint's.
        attn_implementation: Attention of transformers; None for the architecture's.
        trust_remote_code: Run code shipped with the model.
    """

    path: str | None
    dtype: str | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False


class SharedBase:
    """A frozen model with adapters on it, of which at most one is active.

    Args:
        model: The base, or the student with an adapter on it; changed in place by `add`.
        path: Folder or hub name, for messages.
        is_student: Whether the model is the student, which is moved and sharded by its own module.
    """

    def __init__(self, model: nn.Module, path: str, *, is_student: bool) -> None:
        """Begin without any adapter of a teacher."""
        self._model, self.path, self._is_student = model, path, is_student
        self._names: dict[str, str] = {}
        self._language_models: dict[int, LanguageModel] = {}
        self._is_set_up = False
        if not is_student:
            model.requires_grad_(False).eval()

    def add(self, path: str) -> str:
        """Put the adapter of a folder on the base and return its name there; a second time, the same name.

        Raises:
            ConfigError: The adapter does not fit, changes nothing, or changes more than what lies inside layers.
        """
        if path in self._names:
            return self._names[path]
        from peft import PeftModel

        check_switchable(path)
        name = f"teacher{len(self._names)}"
        before = {n for n, p in self._model.named_parameters() if p.requires_grad}
        if isinstance(self._model, PeftModel):
            add_adapter(self._model, path, name)
        else:
            self._model = put_adapter(self._model, path, name)  # type: ignore[arg-type]  # no adapter yet: the base
        for parameter_name, parameter in self._model.named_parameters():
            if parameter_name not in before:
                parameter.requires_grad_(False)
        self._names[path] = name
        self._check_effect(path, name)
        return name

    def _check_effect(self, path: str, name: str) -> None:
        """Refuse an adapter that leaves the logits as they are, or that lies on the output head."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        model = self.causal_lm
        if isinstance(model.get_output_embeddings(), BaseTunerLayer):
            msg = (
                f"The adapter `{path}` changes the output head, which teachers on one base have in common. Load it "
                f"with a model of its own: `class_path: LocalTeacher, init_args: {{path: {path}}}`."
            )
            raise ConfigError(msg)
        size = min(model.config.get_text_config().vocab_size, 1000)
        token_ids = torch.arange(1, 9, device=model.device)[None] * 97 % size
        if torch.equal(self._logits(token_ids, name), self._logits(token_ids, None)):
            msg = (
                f"The adapter `{path}` changes nothing: with it and without it `{self.path}` has the same logits. "
                "Is it a trained one? (The B matrices of a new adapter are zero.)"
            )
            raise ConfigError(msg)

    @torch.no_grad()
    def _logits(self, token_ids: Tensor, name: str | None) -> Tensor:
        with self.only(name):
            logits: Tensor = self.causal_lm(input_ids=token_ids, use_cache=False).logits
        return logits

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The language model itself; adapters are inside its layers."""
        return causal_lm(self._model)

    @contextlib.contextmanager
    def only(self, name: str | None) -> Iterator[None]:
        """Let one adapter act for everything inside, or none; in eval mode. Afterwards all is as before.

        peft's own switch would also freeze the student's adapter, and FSDP2 remembers what was frozen when it first
        gathered a weight; so nothing but the switch is touched.
        """
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [module for module in self._model.modules() if isinstance(module, BaseTunerLayer)]
        before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
        for layer in layers:
            layer._active_adapter, layer._disable_adapters = [name] if name else [], name is None
        try:
            with evaluating(self._model):
                yield
        finally:
            for layer, (active, is_off) in zip(layers, before, strict=True):
                layer._active_adapter, layer._disable_adapters = active, is_off

    def language_model(self, vocab_size: int) -> LanguageModel:
        """Return the base as states and a head, with whatever adapter acts; made once, before sharding."""
        if vocab_size not in self._language_models:
            with self.only(None):
                self._language_models[vocab_size] = LanguageModel(self.causal_lm, vocab_size)
        return self._language_models[vocab_size]

    def setup(self, device: torch.device, mesh: DeviceMesh | None) -> None:
        """Move and shard the base once, unless it is the student's."""
        if self._is_set_up or self._is_student:
            return
        self._is_set_up = True
        if mesh is not None:
            shard(self.causal_lm, mesh)  # moves what it shards, layer by layer
        else:
            self.causal_lm.to(device)  # type: ignore[arg-type]  # transformers annotates less than torch takes


class SharedBases:
    """All bases of a run: the student's own where it is frozen, and one for every other that an adapter belongs on.

    Args:
        student: The student with its adapter, not sharded yet.
        config: How it was built.
    """

    def __init__(self, student: nn.Module, config: StudentConfig) -> None:
        """Find out whether the student's base is frozen, and which one it is."""
        from peft import PeftModel

        path = None if config.path is None else adapter_base(config.path) or config.path
        self._bases: dict[BaseSettings, SharedBase] = {}
        self._config, self._path = config, path
        self._own = SharedBase(student, str(path), is_student=True) if isinstance(student, PeftModel) else None

    def of(self, settings: BaseSettings, teacher: str) -> SharedBase:
        """Return the base with these settings; loaded if nobody has it yet.

        Args:
            settings: Of the base.
            teacher: Who asks, for messages.

        Raises:
            ConfigError: The student's own base is asked for, and it has none.
        """
        if self._own is not None and self._is_own(settings):
            return self._own
        path = settings.path or self._path
        if path is None:
            msg = f"{teacher} needs a base: the student is new (`random_init`) and has none. Set the teacher's `base`."
            raise ConfigError(msg)
        settings = dataclasses.replace(settings, path=_place(path))
        if settings not in self._bases:
            model = load_causal_lm(
                path,
                dtype=settings.dtype,
                attn_implementation=settings.attn_implementation,
                trust_remote_code=settings.trust_remote_code,
            )
            self._bases[settings] = SharedBase(model, path, is_student=False)
        return self._bases[settings]

    def _is_own(self, settings: BaseSettings) -> bool:
        """Return whether the student's base has these settings."""
        own, path = self._config, settings.path
        return (
            (path is None or (self._path is not None and _place(path) == _place(self._path)))
            and settings.dtype in (None, own.dtype)
            and settings.attn_implementation in (None, own.attn_implementation)
        )


def _place(path: str) -> str:
    """Return a folder's one true path; a hub name as it is."""
    return os.path.realpath(path) if Path(path).is_dir() else path
