from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from lightning_opd.errors import ConfigError
from lightning_opd.models import (
    Lora,
    Quantization,
    StudentConfig,
    build_student,
    export_student,
    load_causal_lm,
    load_tokenizer,
)
from lightning_opd.teachers import LocalTeacher
from lightning_opd.types import Signal
from tests.teachers.test_teachers import rollouts
from tests.tiny import save_model

HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
needs_bitsandbytes = pytest.mark.skipif(not HAS_BITSANDBYTES, reason="bitsandbytes is not installed")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose matrices are wide enough for blocks of 64 weights."""
    return save_model(tmp_path_factory.mktemp("wide") / "model", hidden_size=64, head_dim=32, intermediate_size=128)


@pytest.mark.skipif(HAS_BITSANDBYTES, reason="bitsandbytes is installed")
def test_without_bitsandbytes_a_line_says_what_to_install(model_dir: Path) -> None:
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        load_causal_lm(str(model_dir), quantization="nf4")


def test_only_frozen_weights_are_kept_in_fewer_bits(model_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"Set `student\.lora`"):
        StudentConfig(str(model_dir), quantization="nf4")
    with pytest.raises(ConfigError, match="must be one of nf4, int8"):
        load_causal_lm(str(model_dir), quantization="int3")


def test_a_teacher_in_fewer_bits_is_another_model(model_dir: Path) -> None:
    one, other = (LocalTeacher(str(model_dir), quantization=kind) for kind in (None, "nf4"))
    assert one.identity != other.identity
    assert one.identity == LocalTeacher(str(model_dir)).identity


@needs_bitsandbytes
@pytest.mark.filterwarnings("ignore")  # of bitsandbytes
@pytest.mark.parametrize(("kind", "most"), [("nf4", 1.0), ("int8", 0.1)])
def test_a_teacher_in_fewer_bits_scores_nearly_as_a_whole_one(kind: Quantization, most: float, model_dir: Path) -> None:
    batch, scores = rollouts([0, 0, 0], ("t",)), []
    for quantization in (None, kind):
        teacher = LocalTeacher(str(model_dir), quantization=quantization)
        teacher.setup(torch.device("cpu"))
        scores.append(teacher.score(batch, frozenset({Signal.LOGPROBS})).logprobs)
    difference = (scores[0] - scores[1]).abs()[batch.response_mask]
    assert 0 < float(difference.mean()) < most


@needs_bitsandbytes
@pytest.mark.filterwarnings("ignore")  # of bitsandbytes
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_an_adapter_on_fewer_bits_learns_and_is_exported_with_the_weights_it_learned_on(
    kind: Quantization, model_dir: Path, tmp_path: Path
) -> None:
    student = build_student(StudentConfig(str(model_dir), lora=Lora(rank=2), quantization=kind))
    token_ids = torch.arange(1, 9)[None]
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # B is zero before the first step
        student(input_ids=token_ids).logits.log_softmax(-1)[..., 5].sum().backward()
        optimizer.step()
    student.eval()
    expected = student(input_ids=token_ids).logits
    export_student(student, load_tokenizer(str(model_dir)), tmp_path / "export")
    exported = load_causal_lm(str(tmp_path / "export"))
    assert not hasattr(exported.config, "quantization_config")
    rounding = 1e-3 if kind == "nf4" else 0.05  # int8 rounds its inputs, too
    logits = exported(input_ids=token_ids).logits
    assert float((logits - expected).detach().abs().max()) < rounding * float(expected.detach().abs().max())
