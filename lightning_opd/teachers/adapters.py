"""Teachers that are adapters on one frozen base: the base is in memory once, whatever their number."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from typing_extensions import override

from lightning_opd.errors import ConfigError, MissingFileError
from lightning_opd.functional.length_groups import MAX_TOKENS_PER_FORWARD
from lightning_opd.interfaces import Generates, HasOutputHead, ReadsStudentTokens, Teacher
from lightning_opd.models import LanguageModel, StudentConfig, context_length, load_config, load_tokenizer, torch_dtype
from lightning_opd.models.adapters import CONFIG_FILE, adapter_base
from lightning_opd.models.shared_base import BaseSettings, SharedBase, SharedBases
from lightning_opd.teachers.local import LocalTeacher
from lightning_opd.types import LinearHead, SampledTokens, Signal, TeacherScores

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedTokenizerBase


class JoinsBase(ABC):
    """A teacher that lies on a base which others use, too."""

    @abstractmethod
    def set_student(self, student: StudentConfig) -> None:
        """Take the student that the base may be that of; called before anything is loaded."""

    @abstractmethod
    def attach(self, bases: SharedBases) -> None:
        """Join a base; called once the student is built, before anything is sharded or moved."""


@dataclasses.dataclass(frozen=True)
class AdapterExpert:
    """An expert as a LoRA adapter, in short: `{adapter: loras/math}` is an `AdapterTeacher`.

    Args:
        adapter: Folder of the adapter; null for the base without any.
        base: Folder or hub name of its base; by default the one that the adapter's folder names.
    """

    adapter: str | None
    base: str | None = None


class AdapterTeacher(Teacher, ReadsStudentTokens, HasOutputHead, Generates, JoinsBase):
    """A LoRA adapter on a frozen base that all adapters of a run have in common, the student's among them.

    The base is in memory once: where a LoRA student lies on the same one, the student's own is used; otherwise one is
    loaded for all teachers of that base. One adapter acts at a time, and the student's is the active and trainable
    one again afterwards. No adapter of a teacher is in an optimiser, a checkpoint or an export.

    Args:
        adapter: Folder of the adapter, as peft writes it; null for the base without any.
        base: Folder or hub name of the base; by default the one that the adapter's folder names, or the student's.
        temperature: Divides the teacher's logits; by default the sampling temperature.
        dtype: Precision of the base; by default the student's, or the checkpoint's.
        batch_size: Most trajectories scored at once.
        top_k: Likeliest tokens per position for an objective that asks for them.
        attn_implementation: Attention of transformers; by default the student's, or the architecture's.
        trust_remote_code: Run code shipped with the base; only for models you trust.
        max_tokens_per_forward: Most tokens, padding included, scored at once; a longer trajectory is scored alone.

    Example:
        >>> AdapterTeacher(None, base="models/base").identity == AdapterTeacher(None, base="models/base").identity
        True
    """

    def __init__(
        self,
        adapter: str | None,
        base: str | None = None,
        temperature: float | None = None,
        dtype: str | None = None,
        batch_size: int = 256,
        top_k: int = 64,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,  # a key in YAML
        max_tokens_per_forward: int = MAX_TOKENS_PER_FORWARD,
    ) -> None:
        """Remember the settings; `attach` finds the base."""
        torch_dtype(dtype)
        self.adapter, self.base = adapter, base
        self._settings = BaseSettings(base, dtype, attn_implementation, trust_remote_code)
        self._scorer = LocalTeacher(
            adapter or base or "the student's base",
            temperature,
            dtype,
            batch_size,
            top_k,
            attn_implementation,
            max_tokens_per_forward=max_tokens_per_forward,
        )
        self._student: StudentConfig | None = None
        self._base: SharedBase | None = None
        self._model: LanguageModel | None = None
        self._name: str | None = None

    @property
    @override
    def identity(self) -> Hashable:
        return (type(self), self._settings, self._scorer.identity)

    @property
    def name(self) -> str:
        """What messages call it."""
        return "The base as a teacher" if self.adapter is None else f"The adapter `{self.adapter}`"

    def _base_path(self) -> str | None:
        """Return where its base lies; None where it is that of a student without one."""
        if self.base is not None:
            return self.base
        if self.adapter is None:
            student = None if self._student is None else self._student.path
            return None if student is None else adapter_base(student) or student
        base = adapter_base(self.adapter)
        if base is None:
            msg = (
                f"Expected the folder of a LoRA adapter at `{self.adapter}`, found no {CONFIG_FILE} there. Correct "
                "`adapter`; a whole model is a teacher by its path alone."
            )
            raise MissingFileError(msg)
        return base

    @override
    def tokenizer(self) -> PreTrainedTokenizerBase:
        path = self._base_path()
        if self.adapter is not None and (Path(self.adapter) / "tokenizer_config.json").is_file():
            path = self.adapter
        if path is None:
            msg = f"{self.name} needs a base: the student has none that is known. Set the teacher's `base`."
            raise ConfigError(msg)
        return load_tokenizer(path, trust_remote_code=self._settings.trust_remote_code)

    @override
    def declared_max_length(self) -> int:
        path = self._base_path()
        if path is None:
            return super().declared_max_length()
        return context_length(load_config(path, trust_remote_code=self._settings.trust_remote_code))

    @override
    def set_student(self, student: StudentConfig) -> None:
        self._student = student

    @override
    def attach(self, bases: SharedBases) -> None:
        self._base = bases.of(dataclasses.replace(self._settings, path=self._base_path()), self.name)
        self._name = None if self.adapter is None else self._base.add(self.adapter)
        self._model = self._base.language_model(len(self.tokenizer()))

    @override
    def setup(self, device: torch.device, mesh: DeviceMesh | None = None) -> None:
        base, model = self._joined(), self._model
        if model is not None:
            self._scorer.adopt(model, mesh)
        base.setup(device, mesh)

    def _joined(self) -> SharedBase:
        if self._base is None:
            msg = f"{self.name} lies on no base yet; call `attach(bases)` first, as `OPDModule` does."
            raise RuntimeError(msg)
        return self._base

    @override
    def score(self, tokens: SampledTokens, signals: frozenset[Signal]) -> TeacherScores:
        with self._joined().only(self._name):
            return self._scorer.score(tokens, signals)

    @override
    @contextmanager
    def generating(self) -> Iterator[torch.nn.Module]:
        base = self._joined()
        with base.only(self._name):
            yield base.causal_lm

    @override
    def output_head(self) -> LinearHead | None:
        return self._scorer.output_head()

    @override
    def close(self) -> None:
        self._scorer.close()
        self._base = self._model = None


def teacher_of(source: str | AdapterExpert | Teacher) -> Teacher:
    """Return a teacher as YAML may name it: a path of a model or of an adapter, an adapter in short, or a teacher."""
    if isinstance(source, Teacher):
        return source
    if isinstance(source, AdapterExpert):
        return AdapterTeacher(source.adapter, source.base)
    if (Path(source) / CONFIG_FILE).is_file():
        return AdapterTeacher(source)
    return LocalTeacher(source)


def tell_student(teachers: Iterable[Teacher], student: StudentConfig) -> None:
    """Tell every teacher that lies on a base which student there is."""
    for teacher in teachers:
        if isinstance(teacher, JoinsBase):
            teacher.set_student(student)


def attach(teachers: Iterable[Teacher], bases: SharedBases) -> None:
    """Let every teacher that lies on a base join it."""
    for teacher in teachers:
        if isinstance(teacher, JoinsBase):
            teacher.attach(bases)
