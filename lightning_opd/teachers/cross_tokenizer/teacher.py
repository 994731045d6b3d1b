"""A teacher with another tokenizer: it reads the student's text in its own tokens."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, cast

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.functional.alignment import Alignment
from lightning_opd.functional.credit import Credit, ExactMatchCredit, PrefixCredit
from lightning_opd.interfaces import HasOutputHead, ReadsOwnTokens, Teacher
from lightning_opd.models import load_tokenizer
from lightning_opd.teachers.cross_tokenizer.prefix_scores import prefix_scores, replies_of
from lightning_opd.teachers.cross_tokenizer.prefixes import PrefixScorer
from lightning_opd.teachers.cross_tokenizer.roles import ROLES
from lightning_opd.teachers.cross_tokenizer.token_bytes import TokenBytes
from lightning_opd.teachers.cross_tokenizer.translation import Translator
from lightning_opd.teachers.local import LocalTeacher
from lightning_opd.types import LinearHead, SampledTokens, Signal, TeacherScores

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedTokenizerBase

DOMINANT_FRACTION = 0.2
"""Fraction of Σ|r| above which one token id rules the gradient."""


@dataclass(frozen=True)
class View:
    """What the teacher reads of one reply.

    Args:
        row: Of the trajectory in the batch.
        columns: Where the student's tokens of the reply stand in it.
        token_ids: The chat before the reply by the teacher's template, and the reply in its tokens.
        response_mask: True on tokens that stand for something the student generated.
        alignment: Student tokens at `columns` ↔ teacher tokens where `response_mask` holds.
    """

    row: int
    columns: Tensor
    token_ids: list[int]
    response_mask: list[bool]
    alignment: Alignment


class CrossTokenizerTeacher(Teacher, ReadsOwnTokens, HasOutputHead):
    """Score the student's text in the teacher's own tokens, and bring the scores back to the student's.

    The chat before each reply, tool schemas and tools' answers included, is rendered by the teacher's own
    chat template; the reply is the student's text as the teacher's tokenizer cuts it, apart from the
    chat; control tokens become their counterparts. Scores of tokens that are cut differently are settled
    by `credit`, with the log-probs at which the student sampled: exact for the first update of a rollout batch,
    and off by the drift of the other tokens of a run in later ones. With the student's own tokenizer
    nothing is re-encoded and the scores are those of the scorer.

    Estimators that look ahead (log-ratio-to-go, full trajectory) want the credit `PrefixCredit`: under the others
    earlier teacher tokens depend on later bytes, so sums over positions count them twice. Not with objectives
    that need hidden states. `DistributionMatching` with `teacher_signal: top_k` compares, under `PrefixCredit`, the
    student's likeliest tokens by the teacher's text, and under `ExactMatchCredit` those that both vocabularies have, at
    the positions that both sides cut alike.

    Logged for each teacher: `kept_tokens` (fraction that gets a score), `dropped_logprob` (fraction of Σ|log π|
    that does not), `role_log_ratio_<role>` (mean log-ratio of control tokens, nats), `top_token_fraction` (of
    Σ|log-ratio| on a process, by the heaviest token id; said aloud once above a fifth). More, with examples:
    `cross_tokenizer_report`.

    Args:
        path: Folder or hub name of the tokenizer, with its chat template, and of the model.
        credit: Brings scores of the teacher's tokens onto the student's.
        roles: Student's control token → teacher's, or null for none; for what is not found by itself.
        scorer: Answers log-probs of the teacher's own tokens; by default the model at `path` in this
            process.
        trust_remote_code: Run code shipped with the tokenizer; only for models you trust.
        top_k: Likeliest tokens per position it reports to an objective that asks for them, where `scorer` is its own
            or the credit is `PrefixCredit`.
    """

    def __init__(
        self,
        path: str,
        credit: Credit = ExactMatchCredit(),  # frozen, hence safe to share
        roles: dict[str, str | None] | None = None,
        scorer: Teacher | None = None,
        trust_remote_code: bool = False,  # a key in YAML
        top_k: int = 64,
    ) -> None:
        """Remember the settings; tokenizers meet in `set_student_tokenizer`, the model loads in `setup`."""
        self.path, self.credit, self.roles = path, credit, roles or {}
        self.scorer = LocalTeacher(path, top_k=top_k, trust_remote_code=trust_remote_code) if scorer is None else scorer
        self.trust_remote_code, self.top_k = trust_remote_code, top_k
        self._translator: Translator | None = None
        self._known_prefix_scorer: PrefixScorer | None = None
        self._has_spoken = False

    @property
    @override
    def identity(self) -> Hashable:
        return type(self), self.path, self.credit, tuple(self.roles.items()), self.top_k, self.scorer.identity

    @override
    def set_student_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        own = load_tokenizer(self.path, trust_remote_code=self.trust_remote_code)
        self._translator = Translator(tokenizer, own, self.roles)

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
    def setup(self, device: torch.device, mesh: DeviceMesh | None = None) -> None:
        self.scorer.setup(device, mesh)

    @override
    def score(self, tokens: SampledTokens, signals: frozenset[Signal]) -> TeacherScores:
        if self.is_cross_tokenizer and Signal.HIDDEN_STATES in signals:
            msg = f"Teacher `{self.path}` has another tokenizer than the student: its hidden states say nothing here."
            raise ConfigError(msg)
        if self.is_cross_tokenizer and isinstance(self.credit, PrefixCredit):
            top_k = self.top_k if Signal.TOP_LOGPROBS in signals else 0
            scores = prefix_scores(
                tokens, self.translator, self.scorer, self._prefix_scorer(tokens.token_ids.device), top_k
            )
            return replace(scores, metrics=self._metrics(tokens, scores.logprobs, scores.aligned_mask))
        views = self.views(tokens, (lambda pieces: pieces) if self.credit.is_spliced else None)
        own = self._own_batch(views, tokens)
        scores = self.scorer.score(own, signals)
        logprobs, aligned_mask = self._credited(tokens, views, own, scores)
        top_ids, top_logprobs = scores.top_ids, scores.top_logprobs
        if top_ids is not None and top_logprobs is not None and self.is_cross_tokenizer:
            shared = self._shared.to(top_ids.device)[top_ids]
            top_ids, top_logprobs = shared.clamp(min=0), torch.where(shared >= 0, top_logprobs, -torch.inf)
        return TeacherScores(
            logprobs,
            aligned_mask,
            _strictly(top_ids, tokens, views, own),
            _strictly(top_logprobs, tokens, views, own),
            _strictly(scores.hidden_states, tokens, views, own),
            () if self.is_cross_tokenizer else scores.heads,
            self._metrics(tokens, logprobs, aligned_mask),
        )

    def _credited(
        self, batch: SampledTokens, views: Sequence[View], own: SampledTokens, scores: TeacherScores
    ) -> tuple[Tensor, Tensor]:
        """Return what each of the student's tokens is compared with, and which are, settled row by row."""
        logprobs = torch.zeros_like(batch.rollout_logprobs)
        aligned_mask = torch.zeros_like(batch.response_mask)
        for row, of_row in groupby(enumerate(views), lambda numbered: numbered[1].row):
            columns, token_scores, alignment = batch.token_ids.new_empty(0), scores.logprobs.new_empty(0), Alignment()
            for number, view in of_row:
                theirs = own.response_mask[number]
                num_known = int(scores.aligned_mask[number, theirs].sum())  # the scorer may not know all ids
                alignment = alignment.then(view.alignment.up_to(num_known), len(columns), len(token_scores))
                columns = torch.cat([columns, view.columns])
                token_scores = torch.cat([token_scores, scores.logprobs[number, theirs]])
            compared, is_aligned = self.credit(batch.rollout_logprobs[row, columns], token_scores, alignment)
            logprobs[row, columns] = compared.to(logprobs.dtype)
            aligned_mask[row, columns] = is_aligned
        return logprobs, aligned_mask

    def _prefix_scorer(self, device: torch.device) -> PrefixScorer:
        if self._known_prefix_scorer is not None:
            return self._known_prefix_scorer
        spellings = self.translator.student_spelling, self.translator.teacher_spelling
        sizes = len(self.translator.student), len(self.translator.teacher)
        ours, theirs = (TokenBytes([s.piece(i) for i in range(n)]) for s, n in zip(spellings, sizes, strict=True))
        self._known_prefix_scorer = PrefixScorer(ours, theirs, self.translator.roles.pairs, device)
        return self._known_prefix_scorer

    @cached_property
    def _shared(self) -> Tensor:
        """The student's id of every token of the teacher, -1 where the student has no such token."""
        pairs = self.translator.shared_tokens()
        return torch.tensor([pairs.get(token_id, -1) for token_id in range(len(self.translator.teacher))])

    def views(self, batch: SampledTokens, cut: Callable[[list[bytes]], list[bytes]] | None = None) -> list[View]:
        """Return what the teacher reads, one view per reply, row by row.

        Where both sides have the same tokens throughout, a whole episode is one view.

        Args:
            batch: Rollouts with their trajectories.
            cut: See `Translator.reply`.
        """
        views, translator = [], self.translator
        for row, trajectory in enumerate(batch.trajectories):
            columns = batch.response_mask[row].nonzero().squeeze(-1)
            if translator.is_verbatim:
                kept = batch.attention_mask[row]
                ids, mask = batch.token_ids[row, kept].tolist(), batch.response_mask[row, kept].tolist()
                views.append(View(row, columns, ids, mask, Alignment.identity(len(columns))))
                continue
            for turn, places in replies_of(trajectory, columns):
                prompt_ids = translator.prompt(turn.messages)
                reply = translator.reply(batch.token_ids[row, places].tolist(), cut)
                mask = [False] * len(prompt_ids) + reply.response_mask
                views.append(View(row, places, prompt_ids + reply.token_ids, mask, reply.alignment))
        return views

    def score_views(self, views: Sequence[View], batch: SampledTokens) -> list[Tensor]:
        """Return the scorer's log-probs (nats) of the teacher's response tokens, view by view."""
        own = self._own_batch(views, batch)
        scores = self.scorer.score(own, frozenset({Signal.LOGPROBS}))
        return [scores.logprobs[row][mask] for row, mask in enumerate(own.response_mask)]

    def _own_batch(self, views: Sequence[View], batch: SampledTokens) -> SampledTokens:
        """Return the views as sequences of the teacher's tokens."""
        pad = self.translator.teacher.pad_token_id
        return SampledTokens.from_sequences(
            [view.token_ids for view in views],
            [view.response_mask for view in views],
            0 if pad is None else int(cast("int", pad)),
            batch.rollout_logprobs.dtype,
            batch.token_ids.device,
            temperature=batch.temperature,
        )

    def _metrics(
        self, batch: SampledTokens, logprobs: Tensor, aligned_mask: Tensor
    ) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Return what re-encoding cost: fractions of tokens and of |log π|, and the mean r per role in nats."""
        mask, own = batch.response_mask, batch.rollout_logprobs.double()
        size = torch.where(mask, own.abs(), 0.0)
        dropped = torch.where(aligned_mask, 0.0, size)
        metrics = {
            "kept_tokens": (aligned_mask.sum(), mask.sum()),
            "dropped_logprob": (dropped.sum(), size.sum()),
        }
        log_ratio = torch.where(aligned_mask, logprobs - own, 0.0)
        weights = torch.bincount(batch.token_ids[aligned_mask], log_ratio[aligned_mask].abs())
        metrics["top_token_fraction"] = self._top_token(weights)
        for role in ROLES:
            ids = [token_id for token_id, name in self.translator.roles.names.items() if name == role]
            has_role = aligned_mask & torch.isin(batch.token_ids, batch.token_ids.new_tensor(ids))
            metrics[f"role_log_ratio_{role}"] = (torch.where(has_role, log_ratio, 0.0).sum(), has_role.sum())
        return metrics

    def _top_token(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the fraction of Σ|r| that one token id carries, and say it once if that is too much."""
        if not len(weights) or weights.sum() == 0:
            return weights.new_zeros(()), weights.new_zeros(())
        fraction = weights.max() / weights.sum()
        if fraction > DOMINANT_FRACTION and not self._has_spoken:
            self._has_spoken = True
            token = self.translator.student.convert_ids_to_tokens(int(weights.argmax()))
            rank_zero_info(
                f"One token carries {float(fraction):.0%} of all log-ratios of teacher `{self.path}`: {token!r}. If it "
                "is a control token, map it under `roles`; `cross_tokenizer_report` shows the worst tokens, as both "
                "sides cut them."
            )
        return fraction, torch.ones_like(fraction)

    @override
    def output_head(self) -> LinearHead | None:
        if self.is_cross_tokenizer or not isinstance(self.scorer, HasOutputHead):
            return None
        return self.scorer.output_head()

    @override
    def close(self) -> None:
        self.scorer.close()


def _strictly(x: Tensor | None, batch: SampledTokens, views: Sequence[View], own: SampledTokens) -> Tensor | None:
    """Bring what the scorer says about single tokens to the student's tokens of the same bytes; 0 elsewhere."""
    if x is None:
        return None
    out = x.new_zeros(*batch.token_ids.shape, x.shape[-1])
    for number, view in enumerate(views):
        if view.alignment.strict:
            ours, theirs = torch.tensor(view.alignment.strict, device=x.device).unbind(dim=1)
            out[view.row, view.columns[ours]] = x[number, own.response_mask[number].nonzero().squeeze(-1)[theirs]]
    return out
