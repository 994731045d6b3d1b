from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lightning_opd.errors import ConfigError
from lightning_opd.functional.logprobs import shift_right, token_logprobs
from lightning_opd.models import (
    LanguageModel,
    Lora,
    StudentConfig,
    build_student,
    causal_lm,
    export_student,
    load_causal_lm,
    load_tokenizer,
)
from tests.architectures import tiny_architecture
from tests.tiny import model_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "llama": {"tie_word_embeddings": False},
    "gemma2": {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 16},
    "cohere": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 6.0},
    "gpt2": {},
}
PLAIN: tuple[float, float | None] = (1.0, None)
FINISHES: dict[str, tuple[float, float | None]] = {
    "gemma2": (1.0, 3.0),
    "cohere": (0.3, None),
    "granite": (1 / 6, None),
}


def tiny_family(family: str, dtype: torch.dtype, **changes: Any) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {**model_config(64, **FAMILIES[family]), "model_type": family, **changes}
    settings |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if family == "gpt2":
        settings = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64, "model_type": "gpt2"}
        settings |= {"bos_token_id": 1, "eos_token_id": 2}
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=dtype)
    model.train(False)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_head_reproduce_any_models_own_logits(family: str) -> None:
    """Also for models that cap or scale their logits after the output matrix."""
    model = tiny_family(family, torch.float64)
    wrapped = LanguageModel(model, vocab_size=60)
    token_ids = torch.randint(0, 60, (3, 9))
    attention_mask = torch.ones_like(token_ids, dtype=torch.bool)
    expected = shift_right(model(token_ids).logits[..., :60])
    got = wrapped.head().logits(wrapped.states(token_ids, attention_mask))
    assert got.shape[-1] == 60
    assert torch.allclose(got[:, 1:], expected[:, 1:], atol=1e-10)
    assert (wrapped.head().scale, wrapped.head().soft_cap) == FINISHES.get(family, PLAIN)
    assert wrapped.width == 32, "the states are hidden states, not whole logits"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_models_factor_and_soft_cap_are_found_in_bfloat16(family: str) -> None:
    """Where its own logits are too small for the cap to show."""
    changes = {"final_logit_softcapping": 30.0} if family == "gemma2" else {}
    model = tiny_family(family, torch.bfloat16, **changes)
    wrapped, token_ids = LanguageModel(model, 64), torch.randint(0, 64, (3, 9))
    expected = (1.0, 30.0) if family == "gemma2" else FINISHES.get(family, PLAIN)
    assert (wrapped.head().scale, wrapped.head().soft_cap) == expected
    got = wrapped.head().logits(wrapped.states(token_ids, torch.ones_like(token_ids, dtype=torch.bool)))
    largest = (got[:, 1:] - model(token_ids).logits[:, :-1]).abs().max()
    assert largest <= 2 * torch.finfo(torch.bfloat16).eps * got.abs().max()


def test_states_of_a_higher_precision_than_the_head_give_the_models_own_logits() -> None:
    """Mamba keeps its residual stream in float32."""
    model = tiny_architecture("mamba", torch.bfloat16)
    wrapped, token_ids = LanguageModel(model, 64), torch.randint(0, 64, (3, 9))
    states = wrapped.states(token_ids, torch.ones_like(token_ids, dtype=torch.bool))
    assert states.dtype == torch.float32
    assert torch.equal(wrapped.head().logits(states)[:, 1:].float(), model(token_ids).logits[:, :-1, :64])


def test_logits_made_in_an_unknown_way_are_kept_whole() -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    class Bent(Qwen3ForCausalLM):
        def forward(self, **arguments: Any) -> Any:
            output = super().forward(**arguments)
            output.logits = output.logits + 0.1 * output.logits.sin()
            return output

    model: PreTrainedModel = Bent(Qwen3Config(**model_config(64))).double()
    model.train(False)
    wrapped, token_ids = LanguageModel(model, 64), torch.randint(0, 64, (3, 9))
    assert wrapped.head().weight is None
    got = wrapped.head().logits(wrapped.states(token_ids, torch.ones_like(token_ids, dtype=torch.bool)))
    assert torch.equal(got[:, 1:], model(input_ids=token_ids).logits[:, :-1])


def test_the_probe_leaves_mode_and_random_state_alone() -> None:
    model = tiny_family("gemma2", torch.float32).train()
    before = torch.get_rng_state()
    LanguageModel(model, 64)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_lora_trains_the_adapter_only_and_starts_as_the_base(tiny_model_dir: Path) -> None:
    base = build_student(StudentConfig(str(tiny_model_dir)))
    adapted = build_student(StudentConfig(str(tiny_model_dir), lora=Lora(rank=4, targets=["q_proj", "v_proj"])))
    trainable = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in name and "student" in name for name in trainable)
    ids = torch.randint(0, 200, (2, 7))
    assert torch.allclose(causal_lm(base)(ids).logits, causal_lm(adapted)(ids).logits)


@pytest.mark.parametrize("merge", [True, False])
def test_an_exported_student_is_a_hugging_face_folder(merge: bool, tiny_model_dir: Path, tmp_path: Path) -> None:
    student = build_student(StudentConfig(str(tiny_model_dir), lora=Lora(rank=4)))
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    export_student(student, load_tokenizer(str(tiny_model_dir)), tmp_path, merge=merge)
    ids = torch.randint(0, 200, (2, 7))
    expected = causal_lm(student.eval())(ids).logits
    names = {path.name for path in tmp_path.rglob("*")}
    assert "tokenizer.json" in names
    if merge:
        assert torch.allclose(load_causal_lm(str(tmp_path))(ids).logits, expected, atol=1e-4)
    else:
        assert "adapter_config.json" in names
        assert "model.safetensors" not in names


def test_random_init_takes_vocabulary_and_stop_token_from_the_tokenizer(tiny_tokenizer_dir: Path) -> None:
    config = model_config(0)
    del config["vocab_size"]
    torch.manual_seed(5)
    model = causal_lm(build_student(StudentConfig(random_init=config, tokenizer=str(tiny_tokenizer_dir))))
    tokenizer = load_tokenizer(str(tiny_tokenizer_dir))
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id


def test_gradient_checkpointing_changes_memory_not_gradients(tiny_model_dir: Path) -> None:
    ids = torch.randint(0, 200, (2, 9))
    gradients = []
    for checkpointing in (False, True):
        student = build_student(StudentConfig(str(tiny_model_dir), gradient_checkpointing=checkpointing))
        assert causal_lm(student).is_gradient_checkpointing == checkpointing
        token_logprobs(causal_lm(student)(ids, use_cache=False).logits, ids).sum().backward()
        gradients.append(student.get_parameter("model.embed_tokens.weight").grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "either `path` or `random_init`"),
        ({"path": "x", "random_init": {}}, "either `path` or `random_init`"),
        ({"random_init": {"hidden_size": 4}}, "needs `student.tokenizer`"),
        ({"path": "x", "dtype": "float33"}, "float33"),
    ],
)
def test_wrong_settings_of_a_student_are_refused_at_once(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        StudentConfig(**settings)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    for load in (load_causal_lm, load_tokenizer):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            load(str(tmp_path / "nowhere"))


def test_only_safetensors_are_loaded(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = load_causal_lm(str(tiny_model_dir))
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        load_causal_lm(str(tmp_path))
