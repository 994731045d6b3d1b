"""What an export writes: the source's precision, tied weights once, generation settings; the student stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import GenerationConfig

from lightning_opd.models import (
    Lora,
    NonFiniteWeightsError,
    StudentConfig,
    build_student,
    causal_lm,
    export_student,
    load_causal_lm,
    load_tokenizer,
)
from lightning_opd.models.adapters import WEIGHTS_FILE
from tests.models.test_adapters import logits, talkative
from tests.tiny import save_model


def dtypes(file: Path) -> dict[str, torch.dtype]:
    with safe_open(file, "pt") as tensors:
        return {key: tensors.get_tensor(key).dtype for key in tensors.keys()}  # noqa: SIM118  # no mapping


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("source", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["full", "lora"])
def test_the_precision_is_the_sources_whatever_was_trained_in(
    lora: Lora | None, source: torch.dtype, dtype: str, tmp_path: Path
) -> None:
    folder = save_model(tmp_path / "base", dtype=source)
    student = talkative(build_student(StudentConfig(str(folder), lora=lora, dtype=dtype)))
    export_student(student, load_tokenizer(str(folder)), tmp_path / "out")
    assert set(dtypes(tmp_path / "out" / "model.safetensors").values()) == {source}
    assert load_causal_lm(str(tmp_path / "out")).config.to_dict()["architectures"] == ["Qwen3ForCausalLM"]
    stored = GenerationConfig.from_pretrained(tmp_path / "out")
    assert stored.eos_token_id == GenerationConfig.from_pretrained(folder).eos_token_id
    if lora is not None:
        export_student(student, load_tokenizer(str(folder)), tmp_path / "adapter", merge=False)
        assert set(dtypes(tmp_path / "adapter" / WEIGHTS_FILE).values()) == {source}


def test_a_new_model_is_written_in_its_own_precision(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    from tests.tiny import model_config

    config = model_config(288)
    student = build_student(
        StudentConfig(random_init=config, tokenizer=str(tiny_tokenizer_dir), lora=Lora(rank=2), dtype="bfloat16")
    )
    export_student(student, load_tokenizer(str(tiny_tokenizer_dir)), tmp_path)
    assert set(dtypes(tmp_path / "model.safetensors").values()) == {torch.bfloat16}


@pytest.mark.parametrize("tied", [True, False])
def test_merging_for_an_export_changes_nothing_in_the_student(tied: bool, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "base", tie_word_embeddings=tied)
    student = talkative(build_student(StudentConfig(str(folder), lora=Lora(rank=4))))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    expected = logits(student)
    student.train()
    export_student(student, load_tokenizer(str(folder)), tmp_path / "out")
    assert student.training
    after = student.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    names = dtypes(tmp_path / "out" / "model.safetensors").keys()
    assert ("lm_head.weight" in names) != tied
    assert not any("lora" in name or "base_layer" in name for name in names)
    assert torch.allclose(logits(load_causal_lm(str(tmp_path / "out"))), expected, atol=1e-4)


def test_weights_from_elsewhere_are_written_instead_of_the_students(tmp_path: Path) -> None:
    """Those gathered from shards, for a merged adapter, an adapter alone, and a whole model."""
    folder = save_model(tmp_path / "base", dtype=torch.bfloat16)
    tokenizer = load_tokenizer(str(folder))
    for lora, merge in ((Lora(rank=4), True), (Lora(rank=4), False), (None, True)):
        student = talkative(build_student(StudentConfig(str(folder), lora=lora, dtype="float32")))
        weights = {name: value.clone() for name, value in student.state_dict().items()}
        expected = logits(student)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.zero_()
        export_student(student, tokenizer, tmp_path / "out", merge=merge, weights=weights)
        got = logits(load_causal_lm(str(tmp_path / "out"), dtype="float32"))
        assert float((got - expected).abs().max()) < 0.1 * float(expected.abs().max()), "but for bfloat16"
        for file in (tmp_path / "out").iterdir():
            file.unlink()
    assert causal_lm(student) is student


def test_a_model_that_is_not_finite_is_not_exported(world: Path, tmp_path: Path) -> None:
    student = build_student(StudentConfig(str(world / "student")))
    with torch.no_grad():
        next(student.parameters())[0, 0] = float("nan")
    with pytest.raises(NonFiniteWeightsError, match=r"model `.*out` was not written: [12] tensors"):
        export_student(student, load_tokenizer(str(world / "student")), tmp_path / "out")
    assert not (tmp_path / "out").exists()
