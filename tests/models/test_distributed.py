"""Collectives in two real processes, and the metric states that use them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_opd.models import any_rank, gather_objects, num_ranks, sum_over_ranks

SCRIPT = """
import dataclasses, json, sys
import torch
from lightning_opd.models.distributed import any_rank, gather_objects, num_ranks, sum_over_ranks
from lightning_opd.modules.quotients import Quotients
from lightning_opd.modules.records import EvaluationRecords
from lightning_opd.types import Prompt, RolloutBatch, Trajectory

rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/store", rank=rank, world_size=2)
own = torch.tensor([1.0, 10.0]) * (rank + 1)
total = sum_over_ranks(own)
quotients = Quotients()
quotients.update({"kl": (torch.tensor(30.0 if rank == 0 else 50.0), torch.tensor(30.0 if rank == 0 else 10.0))})
records = EvaluationRecords()
for number in range(1 + rank):  # uneven, and one row that only fills its batch up
    prompt = Prompt(({"role": "user", "content": "\\u00fc?"},), f"key{rank}{number}", "t", "d")
    kept = Trajectory(prompt, (1, 2), (False, True), (0.0, -1.0), "x", is_truncated=False, reward=0.5)
    filler = dataclasses.replace(kept, is_repeat=True)
    mask, ones = torch.tensor([[False, True]] * 2), torch.ones(2)
    records.update(RolloutBatch(
        token_ids=torch.tensor([[1, 2]] * 2), attention_mask=torch.ones_like(mask), response_mask=mask,
        rollout_logprobs=torch.tensor([[0.0, -1.0]] * 2), teacher_ids=torch.zeros(2, dtype=torch.long),
        trajectories=(kept, filler), teacher_logprobs=torch.tensor([[0.0, -3.0]] * 2), aligned_mask=mask,
        distill_mask=mask, distill_weights=ones, outcome_advantages=ones, rewards=ones, group_ids=torch.arange(2),
        is_truncated=mask[:, 0], has_format_error=mask[:, 0], num_active_tokens=ones.sum(), num_trajectories=ones.sum(),
    ))
means = records.compute().means()
print(json.dumps({
    "num_ranks": num_ranks(), "own": own.tolist(), "total": total.tolist(), "objects": gather_objects({"rank": rank}),
    "any": [any_rank(rank == 1), any_rank(False)], "quotients": float(quotients.compute()["kl"]),
    "records": len(records.compute()), "means": means,
}))
torch.distributed.destroy_process_group()
"""


def test_without_other_processes_nothing_changes() -> None:
    values = torch.tensor([1.0, 2.0])
    assert num_ranks() == 1
    assert sum_over_ranks(values) is values
    assert gather_objects("x") == ["x"]
    assert any_rank(flag=True)
    assert not any_rank(flag=False)


@pytest.mark.integration
def test_two_processes_sum_gather_and_count_as_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
        for rank in range(2)
    ]
    answers = [json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in processes]
    assert [answer["own"] for answer in answers] == [[1.0, 10.0], [2.0, 20.0]]
    for answer in answers:
        assert answer["num_ranks"] == 2
        assert answer["total"] == [3.0, 30.0]
        assert answer["objects"] == [{"rank": 0}, {"rank": 1}]
        assert answer["any"] == [True, False]
        assert answer["quotients"] == 2.0  # (30 + 50) / (30 + 10), not the mean of 1 and 5
        assert answer["records"] == 3
        assert answer["means"] == {
            **{
                f"{name}{group}": value
                for group in ("", "/d")
                for name, value in (("reward", 0.5), ("format", 1.0), ("response_length", 1.0), ("teacher_kl", 2.0))
            }
        }
