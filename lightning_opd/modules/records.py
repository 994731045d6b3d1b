"""Records of an evaluation: one per response."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from lightning_opd.types import RolloutBatch, Trajectory


class EvaluationRecords:
    """Collects one record per rewarded response; the same on one rank and on many."""

    def __init__(self, records: list[dict[str, object]] | None = None) -> None:
        """Start empty, or with records."""
        self._records = records or []

    def __len__(self) -> int:
        """Return the number of responses."""
        return len(self._records)

    def clear(self) -> None:
        """Forget everything."""
        self._records = []

    def add(self, batch: RolloutBatch) -> list[dict[str, object]]:
        """Keep a batch's responses and return their records."""
        log_ratios = torch.where(
            batch.response_mask & batch.aligned_mask, batch.teacher_logprobs - batch.rollout_logprobs, 0.0
        )
        kls = (-log_ratios.sum(dim=1)).tolist()
        is_scored = (batch.teacher_ids >= 0).tolist()
        records = [
            _record(trajectory, kl, scored)
            for trajectory, kl, scored in zip(batch.trajectories, kls, is_scored, strict=True)
        ]
        self._records += [r for r, t in zip(records, batch.trajectories, strict=True) if not t.is_repeat]
        return records

    def gather(self) -> EvaluationRecords:
        """Return the records of all ranks, on every rank, in one order."""
        gathered = [self._records]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gathered = [[] for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather_object(gathered, self._records)
        records = [record for part in gathered for record in part]
        order = ("split", "mode", "domain", "key")
        return EvaluationRecords(sorted(records, key=lambda record: [str(record[name]) for name in order]))

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
