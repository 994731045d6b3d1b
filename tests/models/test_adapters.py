"""An adapter's folder as a student to go on with and as a teacher, and the refusal of one that does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lightning_opd.models import (
    Lora,
    StudentConfig,
    build_student,
    causal_lm,
    declared_stop_ids,
    export_student,
    load_causal_lm,
    load_config,
    load_tokenizer,
)
from lightning_opd.models.adapters import CONFIG_FILE, WEIGHTS_FILE
from lightning_opd.teachers import LocalTeacher
from lightning_opd.types import SampledTokens, Signal
from tests.tiny import save_model

IDS = torch.arange(20, 48).reshape(2, 14)


def talkative(student: nn.Module) -> nn.Module:
    """Give an adapter something to say, the same each time: a fresh one's B is zero."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in student.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.2, generator=generator)
    return student


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = causal_lm(model).eval()(IDS).logits
    return found


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_model(tmp_path / "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    student = talkative(build_student(StudentConfig(str(base), lora=Lora(rank=4))))
    export_student(student, load_tokenizer(str(base)), tmp_path / "adapter", merge=False)
    return tmp_path / "adapter"


def test_an_adapter_lies_at_the_root_of_its_folder_under_the_usual_names(adapter: Path, base: Path) -> None:
    assert {CONFIG_FILE, WEIGHTS_FILE, "tokenizer.json"} <= {path.name for path in adapter.iterdir()}
    config = json.loads((adapter / CONFIG_FILE).read_text())
    assert (config["base_model_name_or_path"], config["peft_type"], config["r"]) == (str(base), "LORA", 4)
    for key in load_file(adapter / WEIGHTS_FILE):
        assert key.startswith("base_model.model.model.layers.")
        assert key.endswith((".lora_A.weight", ".lora_B.weight"))


def test_an_exported_adapter_loads_in_peft_and_in_transformers(adapter: Path, base: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    expected = logits(talkative(build_student(StudentConfig(str(base), lora=Lora(rank=4)))))
    assert float((logits(load_causal_lm(str(base))) - expected).abs().max()) > 0.1
    in_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    assert torch.allclose(logits(in_peft), expected, atol=1e-5)
    in_transformers = AutoModelForCausalLM.from_pretrained(adapter)
    assert torch.allclose(logits(in_transformers), expected, atol=1e-5)


@pytest.mark.parametrize("merge", [True, False])
def test_an_adapter_is_trained_further_and_exported_again(
    merge: bool, adapter: Path, base: Path, tmp_path: Path
) -> None:
    student = build_student(StudentConfig(str(adapter)))
    assert torch.allclose(logits(student), logits(load_causal_lm(str(adapter))), atol=1e-5)
    assert student.training
    trained = {name for name, p in student.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_" in name and ".student." in name for name in trained)
    with torch.no_grad():
        for name in trained:
            student.get_parameter(name).mul_(1.5)
    expected = logits(student)
    assert float((expected - logits(load_causal_lm(str(adapter)))).abs().max()) > 0.01
    export_student(student, load_tokenizer(str(adapter)), tmp_path / "again", merge=merge)
    assert torch.allclose(logits(load_causal_lm(str(tmp_path / "again"))), expected, atol=1e-4)
    assert (tmp_path / "again" / CONFIG_FILE).exists() != merge


def test_an_adapter_teaches_as_its_merged_model_does(adapter: Path, tmp_path: Path) -> None:
    student = build_student(StudentConfig(str(adapter)))
    export_student(student, load_tokenizer(str(adapter)), tmp_path / "merged")
    mask = [[False] + [True] * 13] * 2
    tokens = SampledTokens.from_sequences(IDS.tolist(), mask, 0, torch.float32, torch.device("cpu"))
    scores = []
    for folder in (adapter, tmp_path / "merged"):
        teacher = LocalTeacher(str(folder))
        teacher.setup(torch.device("cpu"))
        assert not any(p.requires_grad for p in teacher.generator().parameters())
        scores.append(teacher.score(tokens, frozenset({Signal.LOGPROBS})).logprobs)
    assert torch.allclose(scores[0], scores[1], atol=1e-4)
    assert float(scores[0].abs().max()) > 0.1


def test_an_adapter_without_a_tokenizer_has_its_bases_tokenizer_and_stops(adapter: Path, base: Path) -> None:
    for path in adapter.iterdir():
        if path.name not in (CONFIG_FILE, WEIGHTS_FILE):
            path.unlink()
    assert load_tokenizer(str(adapter)).get_vocab() == load_tokenizer(str(base)).get_vocab()
    stops = [declared_stop_ids(str(path), load_config(str(path))) for path in (adapter, base)]
    assert stops[0] == stops[1]


def renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.replace("layers.1.", "layers.7."): value for key, value in weights.items()}


def halved(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value[:, : value.shape[1] // 2].contiguous() for key, value in weights.items()}


def lacking(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in weights.items() if "lora_B" not in key}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (renamed, r"no place for base_model\.model\.model\.layers\.7\..* and \d+ more; no weights for"),
        (halved, "another shape of"),
        (lacking, r"no weights for .*lora_B\.weight"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_weights_that_do_not_fit_are_named(change: Any, words: str, adapter: Path) -> None:
    """Peft itself leaves them out without a word: a teacher that is the bare base."""
    save_file(change(load_file(adapter / WEIGHTS_FILE)), adapter / WEIGHTS_FILE)
    for load in (load_causal_lm, lambda path: build_student(StudentConfig(path))):
        with pytest.raises(ValueError, match=rf"does not fit its base .*{words}"):
            load(str(adapter))


def edit(adapter: Path, **changes: object) -> None:
    file = adapter / CONFIG_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_an_adapter_of_layers_that_the_base_lacks_is_refused(adapter: Path) -> None:
    edit(adapter, target_modules=["query_key_value"])
    with pytest.raises(ValueError, match=r"does not fit its base .*query_key_value"):
        load_causal_lm(str(adapter))


@pytest.mark.parametrize("gone", ["/nowhere/base", "runs/base"])
def test_a_base_that_is_not_there_is_one_line(gone: str, adapter: Path) -> None:
    edit(adapter, base_model_name_or_path=gone)
    for load in (load_causal_lm, lambda path: build_student(StudentConfig(path))):
        with pytest.raises(FileNotFoundError, match=rf"adapter `.*` belongs on the model `{gone}`, which is not there"):
            load(str(adapter))


def test_an_adapter_on_an_adapter_or_without_a_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    edit(adapter, base_model_name_or_path=None)
    with pytest.raises(ValueError, match="names no base model"):
        load_tokenizer(str(adapter))
    edit(adapter, base_model_name_or_path=str(adapter))
    with pytest.raises(ValueError, match="an adapter itself"):
        load_causal_lm(str(adapter))


def test_an_adapter_and_a_new_one_on_top_are_refused(adapter: Path) -> None:
    with pytest.raises(ValueError, match=r"Remove `student\.lora`"):
        build_student(StudentConfig(str(adapter), lora=Lora()))


def test_other_kinds_and_missing_weights_are_refused(adapter: Path, base: Path) -> None:
    (adapter / WEIGHTS_FILE).unlink()
    with pytest.raises(FileNotFoundError, match="Save them as safetensors"):
        load_causal_lm(str(adapter))
    kind = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "base_model_name_or_path": str(base)}
    (adapter / CONFIG_FILE).write_text(json.dumps(kind))
    with pytest.raises(ValueError, match="PROMPT_TUNING"):
        load_causal_lm(str(adapter))
