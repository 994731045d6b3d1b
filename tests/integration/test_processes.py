from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.tiny import save_foreign
from tests.world import largest_difference

SCRIPT = Path(__file__).with_name("run_processes.py")
pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def run(double_world: Path, tmp_path_factory: pytest.TempPathFactory):  # noqa: ANN201  # a closure
    folder = tmp_path_factory.mktemp("processes")
    save_foreign(folder / "foreign", torch.float64)

    @cache
    def results(strategy: str, adapter: str, mode: str = "whole") -> dict[str, dict[str, object]]:
        out = folder / adapter / f"{strategy}_{mode}.pt"
        out.parent.mkdir(exist_ok=True)
        command = [sys.executable, str(SCRIPT), strategy, str(double_world), str(out), adapter, mode]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        return torch.load(out, weights_only=False)

    return results


@pytest.mark.parametrize(
    ("strategy", "adapter"),
    [
        ("ddp", "full"),
        pytest.param("fsdp", "lora", marks=pytest.mark.slow),
        pytest.param("ddp", "lora", marks=pytest.mark.slow),
        pytest.param("fsdp", "full", marks=pytest.mark.slow),
    ],
)
def test_two_processes_roll_out_and_learn_as_one(strategy: str, adapter: str, run) -> None:  # noqa: ANN001
    single, double = run("single", adapter), run(strategy, adapter)
    for objective in single:
        one, two = single[objective], double[objective]
        assert len(one["rows"]) == len(two["rows"]) == 3
        for batch_one, batch_two in zip(one["rows"], two["rows"], strict=True):
            assert batch_one.keys() == batch_two.keys()
            for key, (tokens, *token_scores) in batch_one.items():
                assert tokens == batch_two[key][0]
                for mine, theirs in zip(token_scores, batch_two[key][1:], strict=True):
                    assert mine == pytest.approx(theirs, abs=1e-10)
        lengths = {len(row[0]) for row in one["rows"][0].values()}
        assert len(lengths) > 1, "the test needs replies of uneven length"
        for mine, theirs in zip(one["gradients"], two["gradients"], strict=True):
            assert largest_difference(mine, theirs) < 1e-10
            assert max(float(g.abs().max()) for g in mine.values()) > 1e-4
        for mine, theirs in zip(one["logged"], two["logged"], strict=True):
            assert mine.keys() == theirs.keys()
            for name in mine:
                # the explained variance is taken within each micro-batch, the fraction by each teacher's process
                if not name.startswith(("time/", "train/top_token_fraction/")) and not name.endswith(
                    "explained_variance"
                ):
                    assert mine[name] == pytest.approx(theirs[name], rel=1e-6, abs=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_resume_where_they_stopped(strategy: str, run) -> None:  # noqa: ANN001
    whole, resumed = run(strategy, "full"), run(strategy, "full", "resume")
    for objective in whole:
        assert largest_difference(whole[objective]["weights"], resumed[objective]["weights"]) == 0
