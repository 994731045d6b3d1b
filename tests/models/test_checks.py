"""Models that would load and be wrong, and what is loaded by default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lightning_opd.errors import ConfigError
from lightning_opd.models import (
    Lora,
    StudentConfig,
    build_student,
    causal_lm,
    context_length,
    load_causal_lm,
    load_tokenizer,
)
from lightning_opd.teachers import LocalTeacher
from tests.replay import fit
from tests.tiny import save_model
from tests.world import make_module

BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 288}


def with_layers(folder: Path, target: Path, num_layers: int) -> str:
    """Copy a model with another number of layers in its configuration."""
    load_causal_lm(str(folder)).save_pretrained(target)
    file = target / "config.json"
    config = json.loads(file.read_text()) | {"num_hidden_layers": num_layers}
    config.pop("layer_types", None)
    file.write_text(json.dumps(config))
    return str(target)


@pytest.mark.parametrize(
    ("num_layers", "words"),
    [(3, r"no weights for \d+ tensors.*layers\.2.*would be random"), (1, r"layers\.1.*would be left out")],
)
def test_a_configuration_with_other_layers_than_the_weights_is_refused(
    num_layers: int, words: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        load_causal_lm(with_layers(tiny_model_dir, tmp_path, num_layers))


def test_an_encoder_is_refused_as_a_language_model(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("bert", **BERT))
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"Expected a causal language model.*`bert`.*later tokens"):
        load_causal_lm(str(tmp_path))
    config: dict[str, object] = {"model_type": "bert", **BERT}
    with pytest.raises(ConfigError, match="Expected a causal language model"):
        build_student(StudentConfig(random_init=config, tokenizer=str(tiny_tokenizer_dir)))


@pytest.mark.parametrize("targets", [["q_proj", "query"], ["query"], "query", []])
def test_an_adapters_targets_that_no_module_has_are_refused(targets: Any, tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"`student.lora.targets`.*k_proj, o_proj, q_proj.*all-linear"):
        build_student(StudentConfig(str(tiny_model_dir), lora=Lora(targets=targets)))


@pytest.mark.parametrize(("settings", "words"), [({"rank": 0}, "rank` must be"), ({"dropout": 1.0}, "dropout` must")])
def test_an_adapters_wrong_numbers_are_refused_at_once(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Lora(**settings)


def test_a_regular_expression_may_name_an_adapters_targets(tiny_model_dir: Path) -> None:
    student = build_student(StudentConfig(str(tiny_model_dir), lora=Lora(rank=2, targets=r".*layers\.0\..*q_proj")))
    trained = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2


def test_weights_and_attention_are_the_checkpoints_own_by_default(tmp_path: Path) -> None:
    """But for a student whose every weight is trained: a small update of a bfloat16 weight is lost in rounding."""
    folder = str(save_model(tmp_path, dtype=torch.bfloat16))
    assert load_causal_lm(folder).dtype == torch.bfloat16
    assert load_causal_lm(folder).config._attn_implementation == "sdpa"
    assert causal_lm(build_student(StudentConfig(folder))).dtype == torch.float32
    adapted = build_student(StudentConfig(folder, lora=Lora(rank=2)))
    assert causal_lm(adapted).get_input_embeddings().weight.dtype == torch.bfloat16
    assert {p.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}
    assert causal_lm(build_student(StudentConfig(folder, dtype="bfloat16"))).dtype == torch.bfloat16
    teacher = LocalTeacher(folder)
    teacher.setup(torch.device("cpu"))
    assert teacher.generator().dtype == torch.bfloat16


def test_an_attention_that_the_architecture_does_not_have_is_refused(tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"`attn_implementation: flash_attention_2` does not work here; leave it out"):
        load_causal_lm(str(tiny_model_dir), attn_implementation="flash_attention_2")


def test_a_teachers_unknown_precision_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="float33"):
        LocalTeacher("x", dtype="float33")


@pytest.mark.parametrize(
    ("family", "settings", "length"),
    [
        ("qwen3", {"max_position_embeddings": 128}, 128),
        ("gpt2", {"n_positions": 96}, 96),
        ("gemma3", {"text_config": {"max_position_embeddings": 160}}, 160),
        ("mpt", {"max_seq_len": 64}, 64),
        ("mamba", {}, 2**31),
    ],
)
def test_the_context_length_is_found_wherever_a_configuration_keeps_it(
    family: str, settings: dict[str, Any], length: int
) -> None:
    assert context_length(AutoConfig.for_model(family, **settings)) == length


def test_a_student_with_fewer_embeddings_than_its_tokenizer_is_refused(world: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(world / "student"))
    folder = save_model(tmp_path / "student", tokenizer=tokenizer, vocab_size=len(tokenizer) - 1)
    module = make_module(world)
    object.__setattr__(module.student_config, "path", str(folder))
    with pytest.raises(ConfigError, match=r"has 287 rows, fewer than the 288 tokens"):
        fit(tmp_path, module)
