from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import Cli
from tests.integration.chaos import command

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers, loggers and restored callbacks


def words(world: Path, folder: Path, *more: str) -> list[str]:
    return command(world, folder, "cpu", "lora", "--ckpt_path", "auto", *more)[3:]


def test_the_same_command_begins_and_goes_on(cli: Cli, world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    last = run / "checkpoints" / "last.ckpt"
    code, _, err = cli(*words(world, run, "--trainer.max_steps=1"))
    assert code == 0, err
    (last.parent / ".last.ckpt.partial").write_bytes(b"a killed save's")
    before = last.stat().st_ino
    code, _, err = cli(*words(world, run, "--trainer.max_steps=2"))
    assert code == 0, err
    assert last.stat().st_ino != before
    assert sorted(p.name for p in last.parent.iterdir()) == ["last.ckpt", "last.ckpt.previous"]
    assert [p.name for p in (run / "lightning_logs").iterdir()] == ["version_0"]  # a new run has a new one

    moved = tmp_path / "base"
    (world / "student").rename(moved)  # found before any weight is loaded
    try:
        code, _, err = cli(*words(world, run, "--model.optimizer.init_args.lr=0.5", "--model.student.lora.rank=4"))
    finally:
        moved.rename(world / "student")
    assert code == 2
    assert "`model.optimizer.lr` was `0.001`, is `0.5`" in err
    assert "`model.student.lora.rank` was `2`, is `4`" in err
    assert "--model.allow_changed=[model.optimizer.lr,model.student.lora.rank]" in err
