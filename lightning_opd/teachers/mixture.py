"""A weighted mixture of teachers: one distribution per token, made of several."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.functional.logprobs import log_softmax
from lightning_opd.interfaces import HasOutputHead, ReadsStudentTokens, TakesTurns, Teacher
from lightning_opd.teachers.adapters import AdapterExpert, JoinsBase, teacher_of
from lightning_opd.types import LinearHead, Prompt, ResponseStates, SampledTokens, Sampling, Signal, TeacherScores

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedTokenizerBase

    from lightning_opd.models import StudentConfig
    from lightning_opd.models.shared_base import SharedBases


class MixtureTeacher(Teacher, ReadsStudentTokens, HasOutputHead, JoinsBase, TakesTurns):
    """Several teachers that score a prompt together: T(a|s) = Σ weight · T_k(a|s) at every token.

    A prompt whose row names this teacher learns from the mixture. All parts have the student's tokenizer. Objectives
    that read whole distributions get the mixture's own logits, 4 bytes times the vocabulary for each token of the
    rollouts; those that read the sampled tokens need no more memory than the parts do. Adapters share their base with
    all others; a whole model that is a teacher under another name, too, is loaded twice.

    Args:
        teachers: Name → teacher: a path, an adapter in short, or a teacher with settings such as its temperature.
        weights: Name → weight, adding up to 1; by default equal ones.
        top_k: Likeliest tokens per position for an objective that asks for them.
    """

    def __init__(
        self,
        teachers: Mapping[str, str | AdapterExpert | Teacher],
        weights: Mapping[str, float] | None = None,
        top_k: int = 64,
    ) -> None:
        """Check the weights; `setup` loads the models."""
        if not teachers:
            msg = "`teachers` of a MixtureTeacher is empty; name at least one."
            raise ConfigError(msg)
        given = dict.fromkeys(teachers, 1 / len(teachers)) if weights is None else weights
        if set(given) != set(teachers):
            msg = f"`weights` of a MixtureTeacher names {sorted(given)}, its teachers are {sorted(teachers)}."
            raise ConfigError(msg)
        if not all(0 < weight <= 1 for weight in given.values()) or not math.isclose(
            sum(given.values()), 1, abs_tol=1e-6
        ):
            msg = f"`weights` of a MixtureTeacher must be positive and add up to 1, got {dict(given)}."
            raise ConfigError(msg)
        if top_k < 1:
            msg = f"`top_k` of a MixtureTeacher must be at least 1, got {top_k}."
            raise ConfigError(msg)
        self.weights, self.top_k = {name: given[name] for name in sorted(given)}, top_k
        self.parts = {name: teacher_of(teachers[name]) for name in sorted(teachers)}
        self._owned = self.parts
        for name, part in self.parts.items():
            if not isinstance(part, ReadsStudentTokens):
                msg = (
                    f"Part `{name}` of a MixtureTeacher is a {type(part).__name__}, which does not read the student's "
                    "own tokens. Use local teachers or adapters."
                )
                raise ConfigError(msg)

    @classmethod
    def of_others(cls, teachers: Mapping[str, Teacher], weights: Mapping[str, float]) -> MixtureTeacher:
        """Return a mixture of teachers that a run has under their own names, too, and that are loaded there."""
        mixture = cls(teachers, weights)
        mixture._owned = {}
        return mixture

    @property
    @override
    def identity(self) -> Hashable:
        parts = tuple((self.weights[name], part.identity) for name, part in self.parts.items())
        return (type(self), parts, self.top_k)

    @override
    def tokenizer(self) -> PreTrainedTokenizerBase:
        found = {name: p.tokenizer() for name, p in self.parts.items() if isinstance(p, ReadsStudentTokens)}
        first, *others = found
        for other in others:
            if found[other].get_vocab() != found[first].get_vocab():
                msg = (
                    f"Parts `{first}` and `{other}` of a MixtureTeacher have different tokenizers. Use parts with one."
                )
                raise ConfigError(msg)
        return found[first]

    @override
    def declared_max_length(self) -> int:
        return min(p.declared_max_length() for p in self.parts.values() if isinstance(p, ReadsStudentTokens))

    @override
    def check_prompt(self, prompt: Prompt) -> None:
        for part in self.parts.values():
            part.check_prompt(prompt)

    @override
    def check_request(self, signals: frozenset[Signal], sampling: Sampling) -> None:
        for name, part in self.parts.items():
            try:
                part.check_request(_asked(signals), sampling)
            except ConfigError as error:
                msg = f"part `{name}`: {error}"
                raise ConfigError(msg) from None

    @override
    def set_student(self, student: StudentConfig) -> None:
        for part in self._owned.values():
            if isinstance(part, JoinsBase):
                part.set_student(student)

    @override
    def attach(self, bases: SharedBases) -> None:
        for part in self._owned.values():
            if isinstance(part, JoinsBase):
                part.attach(bases)

    @override
    def setup(self, device: torch.device, mesh: DeviceMesh | None = None) -> None:
        for part in self._owned.values():
            part.setup(device, mesh)

    @override
    @torch.no_grad()
    def score(self, tokens: SampledTokens, signals: frozenset[Signal]) -> TeacherScores:
        needs_all, asked = signals - {Signal.LOGPROBS}, _asked(signals)
        scores = {name: part.score(tokens, asked) for name, part in self.parts.items()}
        aligned_mask = torch.stack([own.aligned_mask for own in scores.values()]).all(dim=0)
        logprobs = torch.stack([own.logprobs + math.log(self.weights[name]) for name, own in scores.items()])
        mixed = torch.where(aligned_mask, logprobs.logsumexp(dim=0), 0.0)
        if not needs_all:
            return TeacherScores(mixed, aligned_mask)
        whole = self._distributions(tokens, scores, aligned_mask)
        top = whole.topk(min(self.top_k, whole.shape[-1])) if Signal.TOP_LOGPROBS in signals else None
        has_states = Signal.HIDDEN_STATES in signals

        def spread(values: Tensor) -> Tensor:
            placed = values.new_zeros(*aligned_mask.shape, values.shape[-1])
            placed[aligned_mask] = values
            return placed

        return TeacherScores(
            mixed,
            aligned_mask,
            None if top is None else spread(top.indices),
            None if top is None else spread(top.values),
            # divided by it again before the softmax
            ResponseStates.of(whole * tokens.temperature, aligned_mask) if has_states else None,
            (self.output_head(),) if has_states else (),
        )

    def _distributions(
        self, tokens: SampledTokens, scores: Mapping[str, TeacherScores], aligned_mask: Tensor
    ) -> Float[Tensor, "positions vocab"]:
        """Return the mixture's log-probs of every token where `aligned_mask` holds, row by row."""
        heads = {name: self._head(name) for name in self.parts}
        size = next(iter(heads.values())).vocab_size
        dtype, rows = tokens.rollout_logprobs.dtype, []
        for row, here in enumerate(aligned_mask):  # one row's distributions of every part are in memory at once
            parts, columns = [], here.nonzero().squeeze(-1)
            for name, head in heads.items():
                states = scores[name].hidden_states
                assert states is not None
                logits = head.logits(states.at(0, torch.full_like(columns, row), columns)).to(dtype)
                logprobs = log_softmax(logits / (head.temperature or tokens.temperature))
                parts.append(logprobs + math.log(self.weights[name]))
            rows.append(torch.stack(parts).logsumexp(dim=0))
        return torch.cat(rows) if rows else torch.zeros(0, size, dtype=dtype, device=aligned_mask.device)

    def _head(self, name: str) -> LinearHead:
        part = self.parts[name]
        head = part.output_head() if isinstance(part, HasOutputHead) else None
        if head is None:
            msg = (
                f"Part `{name}` of a MixtureTeacher gives log-probs of single tokens only, so the mixture has no whole "
                "distribution. Use the objective `PolicyGradient` with `Immediate`."
            )
            raise ConfigError(msg)
        return head

    @override
    def output_head(self) -> LinearHead:
        """Return a head without a matrix: the mixture's states are its logits."""
        return LinearHead(None, None, min(self._head(name).vocab_size for name in self.parts))

    @override
    def enter_device(self) -> None:
        for part in self.parts.values():
            if isinstance(part, TakesTurns):
                part.enter_device()

    @override
    def leave_device(self) -> None:
        for part in self.parts.values():
            if isinstance(part, TakesTurns):
                part.leave_device()

    @override
    def close(self) -> None:
        for part in self._owned.values():
            part.close()


def _asked(signals: frozenset[Signal]) -> frozenset[Signal]:
    """Return what the parts are asked for: their whole distributions where more than sampled tokens' log-probs is."""
    return frozenset({Signal.LOGPROBS} | ({Signal.HIDDEN_STATES} if signals - {Signal.LOGPROBS} else set()))
