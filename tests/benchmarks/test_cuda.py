"""The command for the GPU: its counts against those of torch, its one-line refusals, and a run on the CPU."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks import cuda
from tests.benchmarks.ceilings import measure
from tests.benchmarks.counts import attention_flops, counts, matrix_flops
from tests.benchmarks.processes import ROOT
from tests.benchmarks.worlds import QWEN3_VOCABULARY, Setting, Shape

SHAPE = Shape(layers=2, width=48, inner=80, heads=3, key_heads=1, head_width=16)


def counted(shape: Shape, length: int, vocabulary: int, *, with_gradient: bool) -> float:
    """Return what torch counts for one row, whole attention and head included."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**shape.config(vocabulary, 64), attn_implementation="eager")
    model = AutoModelForCausalLM.from_config(config)
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=torch.ones(1, length, dtype=torch.long), use_cache=False).logits
        if with_gradient:
            logits.sum().backward()
    return float(counter.get_total_flops())


@pytest.mark.parametrize("with_gradient", [False, True])
def test_counts_are_those_of_torch(with_gradient: bool) -> None:
    length, vocabulary, times = 24, 96, 3 if with_gradient else 1
    own = length * (matrix_flops(SHAPE) + 2 * SHAPE.width * vocabulary)
    own += attention_flops(SHAPE, length, is_causal=False)
    rotary = 2 * length * SHAPE.head_width // 2  # the angles of the positions, a product as well
    assert counted(SHAPE, length, vocabulary, with_gradient=with_gradient) == pytest.approx(times * own, abs=rotary)


def test_a_frozen_student_has_no_gradient_of_its_matrices_to_compute() -> None:
    full = Setting("", prompts=2, vocabulary=96)
    lora = dataclasses.replace(full, lora=True)
    saved = counts(full, SHAPE, SHAPE).update - counts(lora, SHAPE, SHAPE).update
    matrices = 2 * (32 + 64) * matrix_flops(SHAPE) + 2 * 64 * 2 * SHAPE.width * 96
    assert saved == pytest.approx(matrices)


def test_the_shapes_have_the_parameters_that_their_names_say() -> None:
    for name, shape in cuda.QWEN3.items():
        parameters = matrix_flops(shape) / 2 + QWEN3_VOCABULARY * shape.width
        assert parameters == pytest.approx(float(name.removesuffix("B")) * 1e9, rel=0.05)


def test_ceilings_are_positive_and_have_units() -> None:
    assert "TFLOP/s" in str(measure("cpu"))
    assert min(dataclasses.astuple(measure("cpu"))) > 0


def test_an_empty_folder_of_wheels_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"Expected wheels in .*pip download"):
        cuda.install(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_told_of_the_smoke_run() -> None:
    with pytest.raises(SystemExit, match=r"no CUDA GPU .*--smoke"):
        cuda.check_machine(is_smoke=False)


def test_a_missing_package_is_named_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "NEEDED", ("lightning", "no_such_package"))
    with pytest.raises(SystemExit, match="missing: no_such_package"):
        cuda.check_machine(is_smoke=True)


def test_on_the_cpu_no_function_of_logits_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "QWEN3_VOCABULARY", 50)
    assert cuda.used_forms("cpu") == "none is compiled on this kind of device"


@pytest.mark.slow
def test_the_smoke_run_goes_through_every_part() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.cuda", "--smoke", "--repeats", "1", "--budget", "1000"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for words in ("Tests marked gpu:", "Ceilings:", "Functions of logits:", "| 0.6B, ours |", "| 4B, ours |"):
        assert words in answer.stdout
