"""An adapter of the real model: exported, loaded by others, taught from, and refused on another base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lightning_opd.models import (
    Lora,
    StudentConfig,
    build_student,
    causal_lm,
    export_student,
    load_causal_lm,
    load_tokenizer,
)
from lightning_opd.models.adapters import WEIGHTS_FILE
from tests.models.test_adapters import talkative
from tests.real import fetch
from tests.tiny import save_model

TEXT = "The capital of France is Paris, and that of Italy is"


def logits(model: torch.nn.Module, token_ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = causal_lm(model).eval()(token_ids).logits
    return found


def test_a_real_models_adapter_loads_in_peft_and_transformers_and_merges_to_the_same(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = str(fetch.smollm2())
    tokenizer = load_tokenizer(folder)
    token_ids = tokenizer(TEXT, return_tensors="pt").input_ids
    student = talkative(build_student(StudentConfig(folder, lora=Lora(rank=4, targets=["q_proj", "down_proj"]))))
    for parameter in student.parameters():
        if parameter.requires_grad:
            parameter.data.mul_(0.1)
    expected = logits(student, token_ids)
    assert float((expected - logits(load_causal_lm(folder), token_ids)).abs().max()) > 0.1
    export_student(student, tokenizer, tmp_path / "adapter", merge=False)
    assert all(".student." not in key for key in load_file(tmp_path / "adapter" / WEIGHTS_FILE))
    export_student(student, tokenizer, tmp_path / "merged")
    for model in (
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter"),
        AutoModelForCausalLM.from_pretrained(tmp_path / "adapter"),
        load_causal_lm(str(tmp_path / "adapter")),
        load_causal_lm(str(tmp_path / "merged")),
        build_student(StudentConfig(str(tmp_path / "adapter"))),
    ):
        torch.testing.assert_close(logits(model, token_ids), expected, atol=1e-3, rtol=0)


def test_a_real_models_adapter_is_refused_on_another_base(tmp_path: Path) -> None:
    folder = str(fetch.smollm2())
    student = build_student(StudentConfig(folder, lora=Lora(rank=4)))
    export_student(student, load_tokenizer(folder), tmp_path / "adapter", merge=False)
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace(folder, str(save_model(tmp_path / "other"))))
    with pytest.raises(ValueError, match=r"does not fit its base .*no place for .* and \d+ more"):
        load_causal_lm(str(tmp_path / "adapter"))
