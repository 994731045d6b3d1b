"""Records of an evaluation: one per response."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from lightning_opd.types import RolloutBatch, Trajectory


class EvaluationRecords(Metric):
    """Collects one record per response; the same on one rank and on many.

    A record is kept as a line of JSON, so that records travel between ranks as tensors of bytes.
    """

    full_state_update = False
    lines: list[Tensor]

    def __init__(self) -> None:
        """Start without records."""
        super().__init__()
        self.add_state("lines", [], dist_reduce_fx="cat")

    @override
    def update(self, batch: RolloutBatch) -> None:
        """Keep a batch's responses, but for those that only fill it up."""
        kept = zip(records_of(batch), batch.trajectories, strict=True)
        text = "".join(json.dumps(record) + "\n" for record, trajectory in kept if not trajectory.is_repeat)
        line_bytes = np.frombuffer(text.encode(), dtype=np.uint8).copy()
        self.lines.append(torch.from_numpy(line_bytes).to(batch.token_ids.device))

    @override
    def forward(self, batch: RolloutBatch) -> list[dict[str, object]]:
        """Keep a batch's responses and return all their records."""
        self.update(batch)
        return records_of(batch)

    @override
    def compute(self) -> Records:
        """Return the records of all ranks, on every rank, in one order."""
        parts = self.lines if isinstance(self.lines, list) else [self.lines]  # synchronised states are one tensor
        text = b"".join(part.cpu().numpy().tobytes() for part in parts).decode()
        records: list[dict[str, object]] = [json.loads(line) for line in text.splitlines()]
        order = ("split", "mode", "domain", "key")
        return Records(sorted(records, key=lambda record: [str(record[name]) for name in order]))


def records_of(batch: RolloutBatch) -> list[dict[str, object]]:
    """Return one record per response of a scored batch."""
    mask = batch.response_mask & batch.aligned_mask
    log_ratios = torch.where(mask, batch.teacher_logprobs - batch.rollout_logprobs, 0.0)
    kls, is_scored = (-log_ratios.sum(dim=1)).tolist(), (batch.teacher_ids >= 0).tolist()
    rows = zip(batch.trajectories, kls, is_scored, strict=True)
    return [_record(trajectory, kl, scored) for trajectory, kl, scored in rows]


class Records:
    """Records of an evaluation, in a fixed order."""

    def __init__(self, records: list[dict[str, object]]) -> None:
        """Hold the records."""
        self._records = records

    def __len__(self) -> int:
        """Return the number of responses."""
        return len(self._records)

    def means(self, *, by_mode: bool = False) -> dict[str, float]:
        """Return mean reward, format validity, length (tokens) and teacher KL (nats per token), also per domain."""
        groups: dict[str, list[dict[str, object]]] = {}
        for record in self._records:
            place = f"/{record['split']}/{record['mode']}" if by_mode else ""
            for group in (place, f"{place}/{record['domain']}"):
                groups.setdefault(group, []).append(record)
        means: dict[str, float] = {}
        for group, records in groups.items():
            num_tokens = sum(_number(r["num_tokens"]) for r in records)
            means[f"reward{group}"] = sum(_number(r["reward"]) for r in records) / len(records)
            means[f"format{group}"] = sum(_number(r["format"]) for r in records) / len(records)
            means[f"response_length{group}"] = num_tokens / len(records)
            if all(r["teacher_kl"] is not None for r in records):
                means[f"teacher_kl{group}"] = sum(_number(r["teacher_kl"]) for r in records) / max(1.0, num_tokens)
        return means

    def write_scores(self, path: Path, model: str) -> None:
        """Write `scores.json`: one row per response, without its text."""
        keys = ("key", "domain", "teacher", "split", "mode", "reward", "format", "num_tokens")
        rows = [{key: record[key] for key in keys} for record in self._records]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"model": model, "rows": rows}) + "\n")

    def write_predictions(self, path: Path) -> None:
        """Write `predictions.jsonl`: one response per line, with prompt and text."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            for record in self._records:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _record(trajectory: Trajectory, kl: float, is_scored: bool) -> dict[str, object]:
    """Return a response's record; `teacher_kl` is its sum of log-ratios in nats."""
    prompt = trajectory.prompt
    return {
        "key": prompt.key,
        "domain": prompt.domain,
        "teacher": prompt.teacher,
        "split": trajectory.split,
        "mode": trajectory.mode,
        "reward": trajectory.reward,
        "format": int(not trajectory.format_errors),
        "format_errors": list(trajectory.format_errors),
        "num_tokens": sum(trajectory.response_mask),
        "is_truncated": trajectory.is_truncated,
        "teacher_kl": kl if is_scored else None,
        "prompt": [dict(message) for message in prompt.messages],
        "text": trajectory.text,
    }


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)
