from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lightning_opd.errors import ConfigError
from lightning_opd.models import (
    Lora,
    StudentConfig,
    build_student,
    context_length,
    declared_stop_ids,
    export_student,
    load_config,
    load_tokenizer,
    outline,
)
from tests.architectures import ARCHITECTURES, tiny_architecture
from tests.tiny import model_config


def trained_and_frozen(student: StudentConfig) -> tuple[int, int]:
    """Return the number of trained and of all other weights of a loaded student."""
    parameters = list(build_student(student).parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return trained, sum(p.numel() for p in parameters) - trained


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_has_the_weights_of_its_outline(name: str, tmp_path: Path) -> None:
    model = tiny_architecture(name)
    model.save_pretrained(tmp_path)
    before = torch.get_rng_state()
    found = outline(StudentConfig(str(tmp_path)))
    assert torch.equal(before, torch.get_rng_state())
    assert found.num_trained == found.num_parameters == sum(p.numel() for p in model.parameters())
    assert all(parameter.is_meta for parameter in found.model.parameters())
    assert (found.num_targets, found.narrowest_target) == (0, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_export_has_the_precision_of_the_checkpoint(dtype: torch.dtype, tmp_path: Path) -> None:
    tiny_architecture("qwen3", dtype).save_pretrained(tmp_path)
    assert outline(StudentConfig(str(tmp_path))).export_bytes == dtype.itemsize


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
def test_an_adapter_is_counted_without_its_base(targets: str | list[str], tiny_model_dir: Path) -> None:
    student = StudentConfig(str(tiny_model_dir), lora=Lora(rank=3, targets=targets))
    found = outline(student)
    assert (found.num_trained, found.num_parameters) == trained_and_frozen(student)
    assert found.num_targets == 2 * (7 if targets == "all-linear" else 2)
    assert found.narrowest_target == 16
    with pytest.raises(ConfigError, match="the model has no module `q`"):
        outline(StudentConfig(str(tiny_model_dir), lora=Lora(targets=["q"])))


def test_an_adapters_folder_is_outlined_on_its_base(tiny_model_dir: Path, tmp_path: Path) -> None:
    student = StudentConfig(str(tiny_model_dir), lora=Lora(rank=3))
    export_student(build_student(student), load_tokenizer(str(tiny_model_dir)), tmp_path, merge=False)
    found, again = outline(student), outline(StudentConfig(str(tmp_path)))
    assert (again.num_trained, again.num_parameters) == (found.num_trained, found.num_parameters)


def test_a_new_model_is_outlined_with_its_tokenizers_vocabulary(tiny_tokenizer_dir: Path) -> None:
    config = {key: value for key, value in model_config(0).items() if key != "vocab_size"}
    student = StudentConfig(random_init=config, tokenizer=str(tiny_tokenizer_dir))
    assert (outline(student).num_trained, 0) == trained_and_frozen(student)


def test_the_context_of_a_new_model_is_its_own_or_its_architectures() -> None:
    def length(**config: object) -> int:
        return context_length(StudentConfig(random_init=config, tokenizer="none").declared)

    assert length(model_type="qwen3", max_position_embeddings=77) == 77
    assert length(model_type="gpt2", n_positions=55) == 55
    assert length(model_type="gemma3", text_config={"max_position_embeddings": 99}) == 99
    assert length(model_type="qwen3") < 2**31


def test_stops_of_a_nested_configuration_count(tmp_path: Path) -> None:
    text = {"model_type": "gemma3_text", "eos_token_id": [1, 106]}
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gemma3", "eos_token_id": None, "text_config": text})
    )
    assert declared_stop_ids(str(tmp_path), load_config(str(tmp_path))) == (1, 106)


def test_a_configuration_is_read_once(tiny_model_dir: Path, tmp_path: Path) -> None:
    for path in tiny_model_dir.iterdir():
        if path.suffix == ".json" and path.name != "generation_config.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    student = StudentConfig(str(tmp_path))
    expected = (context_length(student.declared), declared_stop_ids(str(tmp_path), student.declared))
    (tmp_path / "config.json").write_text(json.dumps({}))
    assert (context_length(student.declared), declared_stop_ids(str(tmp_path), student.declared)) == expected
