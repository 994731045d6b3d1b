"""Student and teachers sharded over two real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from tests.models import run_sharded
from tests.tiny import save_model

SCRIPT = Path(__file__).with_name("run_sharded.py")
pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 209 MB."""
    return save_model(
        tmp_path_factory.mktemp("large") / "model", hidden_size=256, num_hidden_layers=64, intermediate_size=1024
    )


@pytest.fixture(scope="module")
def results(world: Path, large: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sharded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")  # put back afterwards
        patch.setenv("PL_SEED_WORKERS", "0")
        run_sharded.main(world, large, folder / "alone.pt", "alone")
    command = [sys.executable, str(SCRIPT), str(world), str(large), str(folder / "together.pt"), "together"]
    plain = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(find_free_network_port()), "NODE_RANK": "0"}
    plain["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed goes back at once, so that the peak says what was in use
    ranks = [
        subprocess.Popen(
            command, env={**plain, "LOCAL_RANK": rank}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for rank in ("0", "1")
    ]
    said = [rank.communicate(timeout=240)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(text[-3000:] for text in said)
    return {name: torch.load(folder / f"{name}.pt", weights_only=False) for name in ("alone", "together")}


def test_no_process_holds_a_whole_model_while_it_loads(results: dict[str, dict[str, Any]], large: Path) -> None:
    size = (large / "model.safetensors").stat().st_size
    found = results["together"]["loaded"]
    assert size > 2e8
    assert found["is_same"] == [True, True]
    for in_slices, as_a_whole in found["growth"]:
        assert in_slices < 0.75 * size
        assert as_a_whole > size  # what is measured can see it


@pytest.mark.parametrize("kind", ["32-true", "packed"])
def test_a_sharded_float32_run_learns_as_one_process_does(results: dict[str, dict[str, Any]], kind: str) -> None:
    one, two = results["alone"]["runs"]["32-true"], results["together"]["runs"][kind]
    for mine, theirs in zip(one["gradients"], two["gradients"], strict=True):
        assert mine.keys() == theirs.keys()
        for name, gradient in mine.items():
            assert float((theirs[name] - gradient).norm()) < 1e-4 * float(gradient.norm()) + 1e-6, name


def test_a_sharded_mixed_run_is_as_near_to_float32_as_an_unsharded_one(results: dict[str, dict[str, Any]]) -> None:
    exact = results["alone"]["runs"]["32-true"]["gradients"][0]
    alone, together = (results[name]["runs"]["bf16-mixed"] for name in ("alone", "together"))
    assert {g.dtype for g in together["gradients"][0].values()} == {torch.float32}
    assert together["logged"][0]["train/teacher_kl"] == pytest.approx(alone["logged"][0]["train/teacher_kl"], rel=0.1)
    for name, gradient in exact.items():
        plain = float((alone["gradients"][0][name] - gradient).norm())
        assert float((together["gradients"][0][name] - gradient).norm()) < 1.2 * plain, name


def test_sharded_models_read_packed_rows_without_padding(results: dict[str, dict[str, Any]]) -> None:
    logged = results["together"]["runs"]["packed"]["logged"][0]
    assert logged["train/update_padding"] == logged["train/score_padding/math"] == 1


def test_an_adapter_on_a_sharded_bfloat16_base_learns(results: dict[str, dict[str, Any]]) -> None:
    one, two = (results[name]["runs"]["adapter"] for name in ("alone", "together"))
    kls = [run["logged"][0]["train/teacher_kl"] for run in (one, two)]
    assert kls[1] == pytest.approx(kls[0], rel=0.1)
    mine, theirs = one["gradients"][0], two["gradients"][0]
    assert {n: g.dtype for n, g in mine.items()} == {n: g.dtype for n, g in theirs.items()}
    for name, gradient in theirs.items():
        if "lora_B" in name:  # the other matrix's gradient is zero at first
            assert 0.2 < float(gradient.norm() / mine[name].norm()) < 5, name
