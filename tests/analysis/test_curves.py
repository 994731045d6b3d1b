from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from lightning_opd.analysis.curves import read_curves


def test_of_a_step_that_was_logged_twice_the_last_point_counts(tmp_path: Path) -> None:
    for value, step in ((1.0, 0), (2.0, 1), (3.0, 1), (4.0, 2)):
        writer = SummaryWriter(str(tmp_path))  # a file each, as after a restart
        writer.add_scalar("train/loss", value, step)
        writer.close()
    for path, name in zip(
        sorted(tmp_path.iterdir(), key=lambda path: int(path.name.rpartition(".")[2])), (8, 9, 10, 11), strict=True
    ):
        path.rename(tmp_path / f"events.out.tfevents.1.host.1.{name}")  # 10 comes before 9
    [curve] = read_curves(tmp_path)
    assert (curve.steps, curve.values) == ((0, 1, 2), (1.0, 3.0, 4.0))


def test_every_point_of_a_long_run_is_read(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path / "logs"))
    for step in range(200):
        writer.add_scalar("train/loss", float(step), step)
    writer.close()
    [curve] = read_curves(tmp_path)
    assert curve.values == tuple(map(float, range(200)))
