from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_opd.errors import ConfigError, MissingFileError
from lightning_opd.models import NonFiniteWeightsError
from lightning_opd.modules.checkpoint_files import CheckpointFiles, damage, peek, previous_of, remove_partial_files


def content(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"state_dict": {"weight": torch.full((1000,), value)}}


def value_of(loaded: dict[str, dict[str, torch.Tensor]]) -> float:
    return float(loaded["state_dict"]["weight"][0])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of 2 whose predecessor is of 1."""
    files, path = CheckpointFiles(), tmp_path / "checkpoints" / "last.ckpt"
    for value in (0.0, 1.0, 2.0):
        files.save_checkpoint(content(value), path)
    return path


def test_the_last_checkpoint_and_the_one_before_are_kept(saved: Path) -> None:
    assert value_of(CheckpointFiles().load_checkpoint(saved)) == 2.0
    assert value_of(CheckpointFiles().load_checkpoint(previous_of(saved))) == 1.0
    assert sorted(p.name for p in saved.parent.iterdir()) == ["last.ckpt", "last.ckpt.previous"]


def flipped(path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:500]),
    "empty": lambda path: path.write_bytes(b""),
    "foreign": lambda path: path.write_text("no checkpoint"),
    "one bit": flipped,
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_an_unreadable_checkpoint_gives_way_to_the_one_before(saved: Path, kind: str) -> None:
    os.unlink(saved) if kind == "one bit" else None
    if kind == "one bit":
        CheckpointFiles().save_checkpoint(content(2.0), saved)
    DAMAGES[kind](saved)
    assert damage(saved) is not None
    files = CheckpointFiles()
    with pytest.warns(UserWarning, match=r"last.ckpt` cannot be read: .* Going on from `.*previous`"):
        assert value_of(files.load_checkpoint(saved)) == 1.0
    files.save_checkpoint(content(3.0), saved)
    assert value_of(files.load_checkpoint(saved)) == 3.0
    assert value_of(files.load_checkpoint(previous_of(saved))) == 1.0  # never the damaged one


def test_no_wrong_byte_comes_out_as_another_error_and_all_that_torch_finds_are_found(tmp_path: Path) -> None:
    path = tmp_path / "small.ckpt"
    CheckpointFiles().save_checkpoint({"state_dict": {"weight": torch.arange(4.0)}}, path)
    whole = path.read_bytes()
    assert damage(path) is None
    for place in range(0, len(whole), 3):
        for bit in (1, 64):
            wrong = bytearray(whole)
            wrong[place] ^= bit
            path.write_bytes(wrong)
            if damage(path) is None:
                assert torch.equal(torch.load(path)["state_dict"]["weight"], torch.arange(4.0)), place


def test_without_a_whole_one_the_file_is_named(saved: Path) -> None:
    previous_of(saved).unlink()
    saved.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"last.ckpt` cannot be read: it is empty. Start anew"):
        CheckpointFiles().load_checkpoint(saved)
    with pytest.raises(MissingFileError, match=r"none.ckpt` does not exist"):
        CheckpointFiles().load_checkpoint(saved.with_name("none.ckpt"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_never_written(saved: Path, value: float) -> None:
    with pytest.raises(NonFiniteWeightsError, match=r"last.ckpt` was not written: 1 tensors.*weight"):
        CheckpointFiles().save_checkpoint(content(value), saved)
    assert value_of(CheckpointFiles().load_checkpoint(saved)) == 2.0


def test_a_full_disk_leaves_the_last_checkpoint(saved: Path) -> None:
    script = (
        "import resource, signal, sys, torch\n"
        "from lightning_opd.modules.checkpoint_files import CheckpointFiles\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"  # as a disk that has 1,000 bytes left
        "CheckpointFiles().save_checkpoint({'state_dict': {'weight': torch.zeros(10**6)}}, sys.argv[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(saved)], capture_output=True, text=True, check=False, timeout=120
    )
    assert "could not be written" in done.stderr
    assert done.returncode == 1
    assert value_of(CheckpointFiles().load_checkpoint(saved)) == 2.0
    assert not list(saved.parent.glob(".*"))


def test_temporary_files_of_a_killed_save_are_removed_and_nothing_else(saved: Path) -> None:
    before = sorted(saved.parent.iterdir())
    for name in (".last.ckpt.partial", ".step=3.ckpt.partial"):
        (saved.parent / name).write_bytes(b"half")
    (saved.parent / "notes.partial").write_text("mine")
    remove_partial_files(saved.parent)
    remove_partial_files(saved.parent / "none")
    assert sorted(saved.parent.iterdir()) == sorted([*before, saved.parent / "notes.partial"])


def test_a_peek_reads_what_will_be_loaded(saved: Path) -> None:
    assert value_of(peek(saved)) == 2.0
    saved.write_bytes(b"torn")
    assert value_of(peek(saved)) == 1.0
    assert peek(saved.with_name("none.ckpt")) == {}
