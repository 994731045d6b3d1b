from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_opd.cli.main import main
from tests.preflight.reports import Spoil, checks, failed
from tests.test_user_errors import command

ROOT = Path(__file__).parents[2]
STRATEGIES = {
    "ddp": ("--trainer.strategy=ddp",),
    "fsdp": ("--config", str(ROOT / "configs" / "trainer" / "fsdp.yaml"), "--trainer.precision=32-true"),
}


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_find_what_one_finds(strategy: str, world: Path, tmp_path: Path, spoil: Spoil) -> None:
    teacher = spoil("math", lambda model: model.model.layers[1].mlp.down_proj.weight.fill_(float("nan")))
    _, *words = command(world, tmp_path, f"--model.teachers.math={teacher}")
    with pytest.raises(SystemExit, match="1"):
        main(["preflight", *words])
    alone, problems = checks(tmp_path), failed(tmp_path)
    together = (*words, *STRATEGIES[strategy], "--trainer.devices=2", "--trainer.accelerator=cpu")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-m", "lightning_opd", "preflight", *together]
    result = subprocess.run(run, capture_output=True, text=True, timeout=280, env=environment, check=False)
    assert result.returncode == 1, result.stderr[-3000:]
    assert failed(tmp_path) == problems
    assert problems[0][0] == "math: log-probs"
    copied = (
        {"memory: teachers: copied heads"} if strategy == "fsdp" else set()
    )  # heads that are left out of the shards
    assert checks(tmp_path).keys() == alone.keys() | copied
    assert checks(tmp_path)["code: log-probs"]["values"]["kl"] == pytest.approx(
        alone["code: log-probs"]["values"]["kl"], abs=1e-5
    )
