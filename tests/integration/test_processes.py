from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from lightning_opd.models import Lora
from tests.integration import run_processes
from tests.tiny import save_adapter, save_foreign
from tests.world import largest_difference

SCRIPT = Path(__file__).with_name("run_processes.py")
OF_EACH_PROCESS = ("time/", "train/top_token_fraction/", "train/score_padding/", "train/update_padding")
"""Beginnings of what depends on how many rows a process has."""
pytestmark = pytest.mark.integration

Results: TypeAlias = dict[str, Any]
"""What one run of `run_processes` saw, by name."""
Run: TypeAlias = Callable[..., dict[str, Results]]
"""Called with a strategy, an adapter and a mode; returns the results of each run."""


def load(path: Path) -> dict[str, Results]:
    results: dict[str, Results] = torch.load(path, weights_only=False)
    return results


@pytest.fixture(scope="module")
def run(double_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("processes")
    save_foreign(folder / "foreign", torch.float64)
    for seed, name in enumerate(("math", "code")):
        save_adapter(double_world / "student", folder / "experts" / name, seed, Lora(rank=2))

    @cache
    def results(strategy: str, adapter: str, mode: str = "whole") -> dict[str, Results]:
        out = folder / adapter / f"{strategy}_{mode}.pt"
        out.parent.mkdir(exist_ok=True)
        if strategy == "single":  # another process would only import everything once more
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PL_GLOBAL_SEED", "0")  # put back afterwards
                patch.setenv("PL_SEED_WORKERS", "0")
                run_processes.main(strategy, double_world, out, adapter, mode)
            return load(out)
        command = [sys.executable, str(SCRIPT), strategy, str(double_world), str(out), adapter, mode]
        port = str(find_free_network_port())
        plain = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": port, "NODE_RANK": "0"}
        ranks = [  # Lightning would start the second one only when the first has imported everything
            subprocess.Popen(
                command, env={**plain, "LOCAL_RANK": rank}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            for rank in ("0", "1")
        ]
        said = [rank.communicate(timeout=240)[0] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0] * len(ranks), "\n".join(text[-3000:] for text in said)
        return load(out)

    return results


def logged_alike(mine: dict[str, float], theirs: dict[str, float]) -> None:
    """Compare what was logged, but for what is taken within each micro-batch or each teacher's process."""
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        if not name.startswith(OF_EACH_PROCESS) and not name.endswith("explained_variance"):
            assert value == pytest.approx(theirs[name], rel=1e-6, abs=1e-6), name


@pytest.mark.parametrize(
    ("strategy", "adapter"),
    [
        pytest.param("ddp", "full", marks=pytest.mark.slow),
        pytest.param("fsdp", "lora", marks=pytest.mark.slow),
        pytest.param("ddp", "lora", marks=pytest.mark.slow),
        pytest.param("fsdp", "full", marks=pytest.mark.slow),
    ],
)
def test_two_processes_roll_out_and_learn_as_one(strategy: str, adapter: str, run: Run) -> None:
    single, double = run("single", adapter), run(strategy, adapter)
    for objective in single.keys() - {"several_updates", "several_updates_resumed", "supervised"}:
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
            logged_alike(mine, theirs)
        assert one["counts"] == two["counts"]
    several_updates(single["several_updates"], double["several_updates"], double["several_updates_resumed"])
    supervised(single["supervised"], double["supervised"])


def several_updates(one: Results, two: Results, resumed: Results) -> None:
    """Each rank deals its own rows out: not the same updates, but the same rollouts and right denominators."""
    assert len(two["rows"]) == 2, "three steps are one rollout batch and a half"
    assert one["rows"][0].keys() == two["rows"][0].keys()
    assert all(one["rows"][0][key][0] == row[0] for key, row in two["rows"][0].items())
    for counted in (one["counts"], two["counts"]):
        assert len(counted) == 3
        assert all(own == said for step in counted for own, said in step.values())
    assert sum(step["tokens"][0] for step in one["counts"][:2]) == sum(s["tokens"][0] for s in two["counts"][:2])
    # the rest of the rollout batch is another one on each rank
    assert largest_difference(two["weights"], resumed["weights"]) == 0


def supervised(one: Results, two: Results) -> None:
    for mine, theirs in zip(one["gradients"], two["gradients"], strict=True):
        assert largest_difference(mine, theirs) < 1e-10
        assert max(float(g.abs().max()) for g in mine.values()) > 1e-4
    for name in ("train/loss", "val/loss"):  # the mean over ranks, not the first one's part
        assert one["metrics"][name] == pytest.approx(two["metrics"][name], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_resume_where_they_stopped(strategy: str, run: Run) -> None:
    whole, resumed = run(strategy, "full"), run(strategy, "full", "resume")
    for objective in (whole.keys() & resumed.keys()) - {"several_updates"}:  # resumed in the launch of the test above
        assert largest_difference(whole[objective]["weights"], resumed[objective]["weights"]) == 0
