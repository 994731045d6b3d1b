"""Updates that are not finite are skipped on all ranks together, counted, and end a run that has too many in a row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_opd.errors import ConfigError
from lightning_opd.models import are_finite, gather_objects
from lightning_opd.types import RolloutBatch

MAX_IN_A_ROW = 10


class NonFiniteUpdatesError(ConfigError, RuntimeError):
    """Too many updates in a row were not finite; the weights are those of the last finite one."""


class NonFiniteGuard:
    """Keeps NaN and infinite gradients away from the weights.

    Args:
        max_in_a_row: Skipped updates in a row that end the run.

    Attributes:
        num_skipped: Skipped updates since the training began.
    """

    def __init__(self, max_in_a_row: int = MAX_IN_A_ROW) -> None:
        """Start with none skipped."""
        self.max_in_a_row = max_in_a_row
        self.num_skipped = self._in_a_row = 0
        self._causes: list[dict[str, object]] = []

    def state_dict(self) -> dict[str, int]:
        """Return the counts, for a run that goes on."""
        return {"num_skipped": self.num_skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on counting from a saved state."""
        self.num_skipped, self._in_a_row = state.get("num_skipped", 0), state.get("in_a_row", 0)

    def note(self, loss: Tensor, batch: object) -> None:
        """Remember what a micro-batch with a loss that is not finite was made of."""
        if bool(loss.detach().isfinite()):
            return
        cause = _cause(batch) if isinstance(batch, RolloutBatch) else {"cause": "loss"}
        self._causes.append({**cause, "loss": float(loss.detach())})

    def skips(self, parameters: Iterable[nn.Parameter], folder: Path, loss_scale: float = 1.0) -> bool:
        """Return whether this update is skipped: gradients that are not finite on any rank are removed on all.

        An optimiser leaves a parameter without a gradient as it is, its own state and weight decay included.

        Args:
            parameters: All that the optimiser updates; its gradients are final.
            folder: Where the first process writes into `non_finite.json` what was found on every rank.
            loss_scale: What a loss scaler multiplied the loss by. Above 1, gradients alone that are not finite are
                the scaler's way to a smaller one; they do not bring the end of the run nearer.

        Raises:
            NonFiniteUpdatesError: As many as `max_in_a_row` have been skipped one after the other.
        """
        own = [p for p in parameters if p.grad is not None]
        noted, self._causes = self._causes, []
        found = gather_objects((noted, bool(noted) or not _all_finite(own)))
        if not any(is_broken for _, is_broken in found):
            self._in_a_row = 0
            return False
        for parameter in own:
            parameter.grad = None
        self.num_skipped += 1
        causes = [{"rank": rank, **cause} for rank, (of_rank, _) in enumerate(found) for cause in of_rank]
        if causes or loss_scale <= 1:
            self._in_a_row += 1
            causes = causes or [{"cause": "gradients"}]
            _write([{"skipped": self.num_skipped, **cause} for cause in causes], folder / "non_finite.json")
        if self._in_a_row >= self.max_in_a_row:
            wrong = sorted({str(cause["cause"]) for cause in causes})
            msg = (
                f"{self._in_a_row} updates in a row were not finite and were skipped; the weights are still finite. "
                f"Not finite: {', '.join(wrong)}. `{folder / 'non_finite.json'}` tells where. Look for a broken "
                "teacher or reward, use precision bf16-mixed instead of 16-mixed, or lower the learning rate."
            )
            raise NonFiniteUpdatesError(msg)
        return True


@rank_zero_only
def _write(causes: Iterable[Mapping[str, object]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(cause) + "\n" for cause in causes)


def _all_finite(parameters: Iterable[nn.Parameter]) -> bool:
    gradients = [p.grad for p in parameters if p.grad is not None]
    return are_finite([g.to_local() if isinstance(g, DTensor) else g for g in gradients])


def _cause(batch: RolloutBatch) -> Mapping[str, object]:
    """Return which quantity of a micro-batch is not finite, and in which rows."""
    wrong = {
        "teacher": _broken_scores(batch).any(dim=1),
        "rollout log-probs": (~batch.rollout_logprobs.isfinite() & batch.response_mask).any(dim=1),
        "reward": ~batch.rewards.isfinite() | ~batch.outcome_advantages.isfinite(),
    }
    for name, rows in wrong.items():
        if bool(rows.any()):
            teachers = sorted({batch.teacher_names[int(i)] for i in batch.teacher_ids[rows]})
            keys = [batch.trajectories[i].prompt.key for i in rows.nonzero().flatten().tolist()][:8]
            what = f"log-probs of teacher {', '.join(f'`{t}`' for t in teachers)}" if name == "teacher" else name
            return {"cause": what, "teachers": teachers, "rows": keys}
    keys = [trajectory.prompt.key for trajectory in batch.trajectories][:8]
    return {"cause": "the student's log-probs or the loss", "teachers": [], "rows": keys}


def _broken_scores(batch: RolloutBatch) -> Tensor:
    """Return where what a teacher was asked for is not finite; log-probs that nothing asked for are NaN by design."""
    scored, scores = batch.response_mask & batch.aligned_mask, batch.teacher_scores
    if scores is not None and scores.hidden_states is not None:
        is_broken = scores.hidden_states.marked(lambda states: ~states.isfinite().all(dim=-1))
        return (is_broken | batch.teacher_logprobs.isinf()) & scored
    if scores is not None and scores.top_logprobs is not None:
        return (scores.top_logprobs.isnan().any(dim=-1) | batch.teacher_logprobs.isinf()) & scored
    return ~batch.teacher_logprobs.isfinite() & scored
