"""A whole run on flash attention, which reads packed rows, learns what it learns on padded ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_opd.interfaces import Objective
from lightning_opd.objectives import DistributionMatching, PolicyGradient
from tests.flash_attention import FlashStudent, FlashTeacher, flash_installed
from tests.world import Recorder, largest_difference, make_data, make_module, make_trainer


@pytest.mark.parametrize("objective", [PolicyGradient(), DistributionMatching()], ids=["policy", "distribution"])
def test_a_run_on_packed_rows_learns_as_one_on_padded_rows(
    objective: Objective, double_world: Path, tmp_path: Path
) -> None:
    teachers = {name: FlashTeacher(str(double_world / name), dtype="float64") for name in ("math", "code")}
    padded, packed = Recorder(), Recorder()
    make_trainer(tmp_path, padded).fit(make_module(double_world, objective, "float64"), make_data())
    with flash_installed():
        module = make_module(double_world, objective, "float64", teachers, FlashStudent)
        make_trainer(tmp_path, packed).fit(module, make_data())
    for one, other in zip(padded.gradients, packed.gradients, strict=True):
        assert largest_difference(one, other) < 1e-6  # layers normalise in float32
    for logged in packed.logged:
        sizes = {name: value for name, value in logged.items() if "_padding" in name}
        assert sizes == dict.fromkeys(sizes, 1.0)
        assert len(sizes) == 3
    assert packed.logged[0]["train/teacher_kl"] == pytest.approx(padded.logged[0]["train/teacher_kl"], rel=1e-9)
    assert padded.logged[0]["train/update_padding"] > 1
