"""A teacher with another tokenizer: it reads the student's text in its own tokens."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from typing_extensions import override

from lightning_opd.errors import ConfigError, ConfigTypeError
from lightning_opd.functional.credit import AlignedCredit, Credit, ExactMatchCredit, PrefixCredit, SpanCredit
from lightning_opd.interfaces import HasOutputHead, ReadsOwnTokens, ReadsTrees, TakesTurns, Teacher
from lightning_opd.models import load_tokenizer
from lightning_opd.teachers.cross_tokenizer.aligned_scoring import AlignedScorer
from lightning_opd.teachers.cross_tokenizer.metrics import alignment_metrics, dominant_token
from lightning_opd.teachers.cross_tokenizer.translation import Translator
from lightning_opd.teachers.cross_tokenizer.tree_scoring import TreeScorer
from lightning_opd.teachers.local import LocalTeacher
from lightning_opd.types import TEMPLATE_SETTINGS, LinearHead, Prompt, SampledTokens, Signal, TeacherScores

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedTokenizerBase

MAX_TOKEN_FRACTION = 0.2
"""Fraction of Σ|log-ratio| of one token id above which the teacher warns: that token rules the gradient."""


class CrossTokenizerTeacher(Teacher, ReadsOwnTokens, HasOutputHead, TakesTurns):
    """Score the student's text in the teacher's own tokens, and bring the scores back to the student's.

    The teacher's own chat template renders the chat before each reply, tool schemas and tools' answers included.
    Its tokenizer splits the text of the reply, apart from the chat; control tokens become their counterparts.
    `credit` decides what a token is compared with where the two sides split the text differently. It takes the
    log-probs at which the student sampled: exact for the first update of a rollout batch, and off by the drift of a
    span's other tokens in later ones. With the student's own tokenizer nothing is re-encoded, and the scores are
    those of the scorer.

    Estimators that look ahead (log-ratio-to-go, full trajectory) need the credit `PrefixCredit`: under the others
    earlier teacher tokens depend on later bytes, so sums over positions count them twice. Objectives that need
    hidden states are refused. `DistributionMatching` with `teacher_signal: top_k` compares, under `PrefixCredit`, the
    student's likeliest tokens by the teacher's text, and under `ExactMatchCredit` the tokens that both vocabularies
    have, at the positions that both sides tokenise alike.

    Logged for each teacher: `kept_tokens` (fraction of tokens that get a score), `dropped_logprob` (fraction of
    Σ|log π| on those that do not), `role_log_ratio_<role>` (mean log-ratio of control tokens, nats),
    `top_token_fraction` (of Σ|log-ratio| on a process, by the heaviest token id; a notice appears once above a
    fifth). More, with examples: `cross_tokenizer_report`.

    Args:
        path: Folder or hub name of the tokenizer, with its chat template, and of the model.
        credit: Brings scores of the teacher's tokens onto the student's.
        roles: Student's control token → teacher's, or null for none; for what is not found by itself.
        scorer: Answers log-probs of the teacher's own tokens; by default the model at `path` in this
            process.
        trust_remote_code: Run code shipped with the tokenizer; only for models you trust.
        top_k: Likeliest tokens per position it reports to an objective that asks for them, where `scorer` is its own
            or the credit is `PrefixCredit`.
        chat_template_kwargs: Settings of the teacher's own chat template.
        revision: Branch, tag or commit of `path`, where that is a hub name; by default the newest.
    """

    def __init__(
        self,
        path: str,
        credit: Credit = SpanCredit(),  # frozen, hence safe to share
        roles: dict[str, str | None] | None = None,
        scorer: Teacher | None = None,
        trust_remote_code: bool = False,  # a key in YAML
        top_k: int = 64,
        chat_template_kwargs: dict[str, object] | None = None,
        revision: str | None = None,
    ) -> None:
        """Remember the settings; tokenizers meet in `set_student_tokenizer`, the model loads in `setup`."""
        self.path, self.credit, self.roles = path, credit, roles or {}
        own = LocalTeacher(path, top_k=top_k, trust_remote_code=trust_remote_code, revision=revision)
        self.scorer = own if scorer is None else scorer
        self.trust_remote_code, self.top_k = trust_remote_code, top_k
        self.chat_template_kwargs, self.revision = chat_template_kwargs, revision
        self._translator: Translator | None = None
        self._batch_scorer: AlignedScorer | TreeScorer | None = None
        self._has_warned = False

    @property
    @override
    def identity(self) -> Hashable:
        settings = json.dumps([self.chat_template_kwargs, self.revision], sort_keys=True)
        return type(self), self.path, self.credit, tuple(self.roles.items()), self.top_k, settings, self.scorer.identity

    @override
    def set_student_tokenizer(self, tokenizer: PreTrainedTokenizerBase, stop_token_ids: Sequence[int] = ()) -> None:
        self._translator = Translator(tokenizer, self.own_tokenizer(), self.roles, stop_token_ids)
        self._batch_scorer = self._scorer_of(self.credit)

    def own_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the teacher's tokenizer, with the chat template in which it reads chats."""
        return load_tokenizer(
            self.path,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            chat_template_kwargs=self.chat_template_kwargs,
        )

    def _scorer_of(self, credit: Credit) -> AlignedScorer | TreeScorer:
        """Return what scores batches under a credit."""
        if isinstance(credit, PrefixCredit) and not self.is_cross_tokenizer:
            credit = ExactMatchCredit()  # with one tokenizer a prefix probability is a product over the same tokens
        match credit:
            case AlignedCredit():
                return AlignedScorer(self.translator, self.scorer, credit)
            case PrefixCredit():
                return TreeScorer(self.translator, self.scorer, self.top_k, credit.tolerance)
            case _:
                msg = f"`credit` must be an `AlignedCredit` or a `PrefixCredit`, got {type(credit).__name__}."
                raise ConfigTypeError(msg)

    @property
    def translator(self) -> Translator:
        """From the student's tokens to the teacher's."""
        if self._translator is None:
            msg = f"Teacher `{self.path}` has no student tokenizer yet; call `set_student_tokenizer(tokenizer)`."
            raise RuntimeError(msg)
        return self._translator

    @property
    @override
    def is_cross_tokenizer(self) -> bool:
        return not self.translator.is_identity

    @override
    def check_prompt(self, prompt: Prompt) -> None:
        settings = prompt.messages[0].get(TEMPLATE_SETTINGS)
        if not isinstance(settings, Mapping) or not settings or not self.is_cross_tokenizer:
            return
        if self.translator.opening.depends_on(json.dumps(settings, sort_keys=True)):
            msg = (
                f"The prompt {prompt.place or prompt.key} has `{TEMPLATE_SETTINGS}` {dict(settings)}, with which its "
                f"reply begins otherwise; teacher `{self.path}` has another tokenizer and takes one beginning for all "
                "rows. Set them for the run: `model.student.chat_template_kwargs`, and those of the teacher."
            )
            raise ConfigError(msg)

    @override
    def setup(self, device: torch.device, mesh: DeviceMesh | None = None) -> None:
        self.scorer.setup(device, mesh)
        if isinstance(self._batch_scorer, TreeScorer) and isinstance(self.scorer, ReadsTrees):
            self.scorer.check_reads_trees()

    @override
    def score(self, tokens: SampledTokens, signals: frozenset[Signal]) -> TeacherScores:
        if self.is_cross_tokenizer and Signal.HIDDEN_STATES in signals:
            msg = f"Teacher `{self.path}` has another tokenizer than the student: its hidden states say nothing here."
            raise ConfigError(msg)
        assert self._batch_scorer is not None  # like the translator, made in `set_student_tokenizer`
        scores = self._batch_scorer.score(tokens, signals | {Signal.LOGPROBS})  # its metrics read them
        return replace(scores, metrics={**scores.metrics, **self._metrics(tokens, scores)})

    def _metrics(self, tokens: SampledTokens, scores: TeacherScores) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Return what re-encoding cost; warn once about a token id that carries too much of the signal."""
        log_ratio = scores.logprobs - tokens.rollout_logprobs.double()
        metrics = alignment_metrics(tokens, scores.logprobs, scores.aligned_mask, self.translator.roles)
        dominant = dominant_token(tokens.token_ids, log_ratio, scores.aligned_mask)
        if dominant is None:
            return {**metrics, "top_token_fraction": (log_ratio.new_zeros(()), log_ratio.new_zeros(()))}
        token_id, fraction = dominant
        if fraction > MAX_TOKEN_FRACTION and not self._has_warned:
            self._has_warned = True
            token = self.translator.student.convert_ids_to_tokens(token_id)
            rank_zero_info(
                f"One token carries {float(fraction):.0%} of all log-ratios of teacher `{self.path}`: {token!r}. If it "
                "is a control token, map it under `roles`; `cross_tokenizer_report` shows the worst tokens in both "
                "sides' tokenisation."
            )
        return {**metrics, "top_token_fraction": (fraction, torch.ones_like(fraction))}

    @override
    def output_head(self) -> LinearHead | None:
        if self.is_cross_tokenizer or not isinstance(self.scorer, HasOutputHead):
            return None
        return self.scorer.output_head()

    @override
    def enter_device(self) -> None:
        if isinstance(self.scorer, TakesTurns):
            self.scorer.enter_device()

    @override
    def leave_device(self) -> None:
        if isinstance(self.scorer, TakesTurns):
            self.scorer.leave_device()

    @override
    def close(self) -> None:
        self.scorer.close()
