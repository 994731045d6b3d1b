from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_opd.models import Lora, StudentConfig, load_config, outline
from lightning_opd.models.estimates import estimate, flops, largest_micro_batch
from lightning_opd.models.memory import declared_weights
from lightning_opd.models.prepacking import can_prepack
from lightning_opd.models.shapes import ModelShape, RunShape
from lightning_opd.models.sizes import num_weights
from lightning_opd.models.slices import model_outline
from lightning_opd.objectives import DistributionMatching
from lightning_opd.preflight.estimate import run_shape
from lightning_opd.preflight.plan import RUN, STUDENT, TEACHER, operations, parts, table
from lightning_opd.types import Sampling
from tests.architectures import tiny_architecture
from tests.preflight.reports import Run, checks
from tests.world import STOPS, make_data, make_module, make_trainer

ROOT = Path(__file__).parents[2]


def test_the_plan_in_the_readme_is_what_the_function_says() -> None:
    text = (ROOT / "configs" / "trainer" / "README.md").read_text(encoding="utf-8")
    assert table() in text
    assert parts() in text
    assert operations() in text


@pytest.mark.parametrize("shape", [STUDENT, TEACHER])
def test_the_planned_models_have_as_many_weights_as_their_shape(shape: ModelShape) -> None:
    student = StudentConfig(
        random_init={
            "model_type": "qwen3",
            "vocab_size": shape.vocab_size,
            "hidden_size": shape.hidden_size,
            "num_hidden_layers": shape.num_layers,
            "num_attention_heads": shape.num_heads,
            "num_key_value_heads": shape.num_kv_heads,
            "head_dim": shape.head_dim,
            "intermediate_size": shape.mlp_size,
        },
        tokenizer="none",
    )
    assert ModelShape.of(student.declared, shape.num_weights, shape.bytes_per_weight) == shape
    assert num_weights(model_outline(student.declared)) == shape.num_weights


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "gemma3_text", "mixtral", "bloom"])
def test_any_architecture_has_a_shape_and_its_weights(name: str, tmp_path: Path) -> None:
    model = tiny_architecture(name)
    model.save_pretrained(tmp_path)
    declared = declared_weights(str(tmp_path))
    assert declared == sum(p.numel() for p in model.parameters())
    shape = ModelShape.of(load_config(str(tmp_path)), declared, 4)
    assert shape.num_layers >= 1
    assert shape.head_weights < declared


def test_weights_gradients_and_states_are_cut_by_the_number_of_devices() -> None:
    whole, half = (
        estimate(dataclasses.replace(RUN, num_devices=n, is_sharded=True)).resident["student: optimiser states"]
        for n in (1, 2)
    )
    assert whole == 2 * 4 * STUDENT.num_weights == 2 * half


def test_teachers_in_turn_take_the_memory_of_the_largest_while_they_score() -> None:
    small = dataclasses.replace(TEACHER, num_weights=10**9)
    together = dataclasses.replace(RUN, teachers=(TEACHER, small), keeps_states=False)
    in_turn = estimate(dataclasses.replace(together, teachers_in_turn=True))
    both = (TEACHER.num_weights + 10**9) * 2 // 8
    assert estimate(together).resident["teachers: weights"] == pytest.approx(both, abs=2)
    assert in_turn.resident["teachers: weights"] == 0
    assert in_turn.stages["score"]["one teacher"] == TEACHER.num_weights * 2 // 8


def test_autocast_copies_weights_of_all_layers_only_where_the_backward_pass_needs_them() -> None:
    alone = dataclasses.replace(RUN, is_sharded=False)
    one_layer = 2 * (STUDENT.num_weights - 35 * STUDENT.layer_weights)
    stages = estimate(alone).stages
    assert stages["rollout"]["gathered weights"] == stages["update"]["gathered weights"] == one_layer
    assert stages["score"]["gathered weights"] == 0, "the teacher is in bfloat16 already"
    kept = estimate(dataclasses.replace(alone, gradient_checkpointing=False)).stages
    assert kept["update"]["gathered weights"] == 2 * STUDENT.num_weights
    assert kept["rollout"]["gathered weights"] == one_layer


def test_prepacked_weights_are_a_copy_of_the_students_while_it_generates(world: Path, tmp_path: Path) -> None:
    module, trainer = make_module(world), make_trainer(tmp_path)
    found = {}
    for num_tokens in (8, 32):
        data = make_data(sampling=Sampling(max_new_tokens=num_tokens, stop_token_ids=STOPS[:1]))
        run = run_shape(trainer, module, data, outline(module.student_config))
        found[num_tokens] = {name: parts.get("prepacked weights") for name, parts in estimate(run).stages.items()}
    assert found[8] == {"rollout": 0, "score": None, "update": None}
    assert found[32] == {"rollout": run.student.weight_bytes if can_prepack(32) else 0, "score": None, "update": None}


def test_what_does_not_fit_alone_has_no_micro_batch() -> None:
    available = 80 * 10**9
    rows = largest_micro_batch(RUN, available)
    assert 1 <= rows <= RUN.rollout_rows
    assert estimate(dataclasses.replace(RUN, micro_rows=rows)).peak <= available
    assert largest_micro_batch(RUN, 10**9) == 0
    assert largest_micro_batch(RUN, 10**15) == RUN.rollout_rows


def test_operations_count_forward_backward_and_what_is_computed_again() -> None:
    shape = ModelShape(10**6, 100, 10, 2, 1, 1, 10, 40)
    run = RunShape(shape, (shape,), 10**6, 0, 50, 4, 2)
    once = 4 * 50 * (2 * 10**6 + 2 * 2 * 10 * 50)
    assert flops(run) == {"rollout": once, "score": once, "update": 3 * once}
    assert flops(dataclasses.replace(run, gradient_checkpointing=True))["update"] == 4 * once
    assert flops(dataclasses.replace(run, num_trained=100))["update"] == 2 * once


def test_a_run_has_the_shape_of_its_settings(world: Path, tmp_path: Path) -> None:
    module = make_module(world, DistributionMatching(), lora=Lora(rank=2))
    data = make_data(updates_per_batch=2)
    trainer = make_trainer(tmp_path, accumulate_grad_batches=2, precision="bf16-mixed")
    run = run_shape(trainer, module, data, outline(module.student_config))
    assert (run.rollout_rows, run.micro_rows, run.response_tokens) == (8, 2, 12)
    assert run.num_trained < run.student.num_weights
    assert (run.forward_bytes, run.student.bytes_per_weight, len(run.teachers)) == (2, 4, 2)
    assert run.keeps_states
    assert not run.is_sharded
    assert 19 <= run.prompt_tokens <= 27


@pytest.mark.parametrize(("max_tokens", "rows"), [(1, 1), (79, 2), (10**6, 8)])
def test_a_micro_batch_is_estimated_with_the_rows_that_its_budget_holds(
    max_tokens: int, rows: int, world: Path, tmp_path: Path
) -> None:
    module, data = make_module(world), make_data(max_tokens_per_micro_batch=max_tokens)
    run = run_shape(make_trainer(tmp_path), module, data, outline(module.student_config))
    assert run.prompt_tokens + run.response_tokens == 39
    assert run.micro_rows == rows
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.fit(module, data)
    assert trainer.accumulate_grad_batches == 8 // rows, "as the run itself takes them"


def test_a_preflight_says_what_each_part_takes(run: Run, tmp_path: Path) -> None:
    assert run("preflight")[0] == 0
    found = checks(tmp_path)
    assert {"memory: student: weights", "memory: teachers: weights", "memory: rollout", "memory: update"} <= set(found)
    assert found["memory"]["values"]["bytes"] < found["memory"]["values"]["available"]
    assert "largest micro-batch that fits" in found["memory"]["text"]
    assert found["time"]["values"]["seconds"].keys() == {"rollout", "score", "update"}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "num_ranks", "num_runs"), [("single", 1, 10), ("sharded", 2, 2)])
def test_the_estimate_is_within_15_percent_of_the_measured_peak(
    kind: str, num_ranks: int, num_runs: int, tmp_path: Path
) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}  # frees go back at once
    command = [sys.executable, str(Path(__file__).with_name("run_memory.py")), str(tmp_path), kind]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    for rank in range(num_ranks):
        peaks = json.loads((tmp_path / f"peaks_{rank}.json").read_text(encoding="utf-8"))
        assert len(peaks) == num_runs
        for name, peak in peaks.items():
            assert peak["estimated"] == pytest.approx(peak["measured"], rel=0.15), (rank, name, peak)
