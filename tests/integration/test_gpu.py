"""What a GPU must do like the CPU, and what it must spare; each test runs on both, the CPU as a check of the test."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from lightning_opd.functional.divergences import Divergence, ForwardKL, JensenShannon, ReverseKL
from lightning_opd.functional.fused import token_statistics
from lightning_opd.functional.heads import HeadStates
from lightning_opd.models import LanguageModel, load_causal_lm, load_tokenizer
from lightning_opd.rollouts import InProcessEngine
from lightning_opd.types import LinearHead, Sampling
from tests.benchmarks import step_ours
from tests.benchmarks.gate import Gate
from tests.benchmarks.worlds import Setting, Shape, save_world

if TYPE_CHECKING:
    from transformers import PreTrainedModel

no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU is here")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, no_gpu])]
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 3e-2}
"""Of gradients, as a fraction of the largest: rounding of the products, float32 sums in another order."""

on_each_device = pytest.mark.parametrize("device", DEVICES)
in_each_precision = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def heads(device: str, dtype: torch.dtype) -> tuple[HeadStates, HeadStates]:
    """Return student and teacher of different widths, with 300 positions and 4,000 tokens."""
    made = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=made).to(device, dtype)

    student = HeadStates(draw(300, 64).requires_grad_(), LinearHead(draw(4000, 64).div(4).requires_grad_(), None, 3990))
    return student, HeadStates(draw(300, 96), LinearHead(draw(4000, 96).div(4), None, 3990), 0.7)


def plain(divergence: Divergence, student: HeadStates, teacher: HeadStates) -> torch.Tensor:
    """Return the divergence of whole logits in float64."""

    def logits(side: HeadStates) -> torch.Tensor:
        assert side.head.weight is not None
        return (side.states.double() @ side.head.weight.double().T)[:, :3990] / side.temperature

    return divergence(logits(student), logits(teacher))


def gradients(loss: torch.Tensor, student: HeadStates) -> list[torch.Tensor]:
    assert student.head.weight is not None
    return [g.double() for g in torch.autograd.grad(loss, [student.states, student.head.weight])]


def load_model(folder: Path, device: str) -> PreTrainedModel:
    """Return a model in float32 on a device."""
    model = load_causal_lm(str(folder), dtype="float32")
    model.eval().to(device)
    return model


@on_each_device
@in_each_precision
@pytest.mark.parametrize("divergence", [ReverseKL(), ForwardKL(), JensenShannon()], ids=lambda d: type(d).__name__)
def test_a_divergence_from_states_is_the_plain_one(device: str, dtype: torch.dtype, divergence: Divergence) -> None:
    student, teacher = heads(device, dtype)
    weights = torch.linspace(0, 1, 300, device=device)
    found = divergence.from_states(student, [teacher], weights).values
    expected = plain(divergence, student, teacher)
    torch.testing.assert_close(found.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    ours = gradients((found * weights).sum(), student)
    for own, right in zip(ours, gradients((expected * weights).sum(), student), strict=True):
        assert float((own - right).abs().max() / right.abs().max()) < TOLERANCE[dtype]


@on_each_device
@in_each_precision
def test_token_logprobs_from_states_are_the_plain_ones(device: str, dtype: torch.dtype) -> None:
    student, _ = heads(device, dtype)
    assert student.head.weight is not None
    ids = torch.arange(300, device=device) * 13 % 3990
    weights = torch.linspace(-1, 1, 300, device=device)
    found, entropies = token_statistics(student, ids, weights, with_entropies=True)
    logits = (student.states.double() @ student.head.weight.double().T)[:, :3990]
    expected = logits.log_softmax(-1)
    chosen = expected.gather(-1, ids[:, None]).squeeze(-1)
    torch.testing.assert_close(found.double(), chosen, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert entropies is not None
    plain_entropies = -(expected.exp() * expected).sum(-1)
    torch.testing.assert_close(entropies.double(), plain_entropies, rtol=TOLERANCE[dtype], atol=5 * TOLERANCE[dtype])
    ours = gradients((found * weights).sum(), student)
    for own, right in zip(ours, gradients((chosen * weights).sum(), student), strict=True):
        assert float((own - right).abs().max() / right.abs().max()) < TOLERANCE[dtype]


@on_each_device
def test_the_states_of_padded_rows_are_those_of_the_row_alone(device: str, tiny_model_dir: Path) -> None:
    model = load_model(tiny_model_dir, device)
    language_model = LanguageModel(model, len(load_tokenizer(str(tiny_model_dir))))
    ids = torch.arange(3, 3 + 2 * 40, device=device).reshape(2, 40)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 25:] = False
    with torch.no_grad():
        together = language_model.states(ids, mask)
        alone = language_model.states(ids[1:, :25], mask[1:, :25])
    torch.testing.assert_close(together[1:, :25], alone, rtol=1e-4, atol=1e-4)


@on_each_device
def test_logprobs_of_a_rollout_are_those_of_a_plain_forward(device: str, tiny_model_dir: Path) -> None:
    model = load_model(tiny_model_dir, device)
    engine, prompts = InProcessEngine(), [[5, 6, 7], [9, 10, 11, 12, 13]]
    engine.sync(model, 0)
    sampling = Sampling(max_new_tokens=16, stop_token_ids=(2,), vocab_size=280)
    samples = engine.generate(prompts, 2, [1, 2, 3, 4], sampling)
    again = engine.generate(prompts[1:], 2, [3, 4], sampling)
    assert [s.token_ids for s in samples[2:]] == [s.token_ids for s in again]
    for row, sample in enumerate(samples):
        prompt = prompts[row // 2]
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *sample.token_ids]], device=device)).logits[0, :, :280]
        logprobs = logits.double().log_softmax(-1)[len(prompt) - 1 : -1].cpu()
        expected = logprobs.gather(-1, torch.tensor(sample.token_ids)[:, None]).squeeze(-1)
        found = torch.tensor(sample.logprobs, dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@on_each_device
def test_a_step_on_a_device_has_the_loss_of_the_cpu(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(str(tmp_path), steps=2, prompts=4, prompt_tokens=24, new_tokens=6, vocabulary=320)
    save_world(setting, Shape(layers=1, width=32, inner=64, heads=2, key_heads=1, head_width=16))
    losses = {}
    for where in dict.fromkeys(("cpu", device)):
        own = dataclasses.replace(setting, device=where)
        gate = Gate()
        monkeypatch.setattr(gate, "wait", lambda **more: None)
        trainer = step_ours.trainer(own, gate)
        trainer.fit(step_ours.module(own), step_ours.data(own))
        losses[where] = float(trainer.callback_metrics["train/loss"])
    assert losses[device] == pytest.approx(losses["cpu"], rel=0.05)  # a last digit may draw another token


@pytest.mark.gpu
@no_gpu
def test_a_divergence_from_states_never_holds_all_logits() -> None:
    made, num_positions = torch.Generator("cuda").manual_seed(0), 32_768
    states, weight = (torch.randn(n, 256, generator=made, device="cuda") for n in (num_positions, 65_536))
    student = HeadStates(states.requires_grad_(), LinearHead(weight.requires_grad_(), None, 65_536))
    teacher = HeadStates(states.detach(), LinearHead(weight.detach() * 0.9, None, 65_536))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ReverseKL().from_states(student, [teacher], torch.ones(num_positions, device="cuda")).values.sum().backward()
    logits = num_positions * 65_536 * 4
    assert torch.cuda.max_memory_allocated() - before < 0.5 * logits


@pytest.mark.gpu
@no_gpu
def test_right_padded_rows_take_no_memory_for_a_mask() -> None:
    from transformers import AutoModelForCausalLM, Qwen3Config

    shape = Shape(layers=1, width=128, inner=128, heads=2, key_heads=1, head_width=64)
    config = Qwen3Config(**{k: v for k, v in shape.config(512, 8192).items() if k != "model_type"})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).to("cuda").eval()
    language_model, rows, length = LanguageModel(model, 512), 4, 8192
    ids = torch.ones(rows, length, dtype=torch.long, device="cuda")
    mask = torch.arange(length, device="cuda")[None] < torch.tensor([[8192], [8000], [4000], [100]], device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.no_grad():
        language_model.states(ids, mask)
    assert torch.cuda.max_memory_allocated() - before < rows * length * length  # a byte for each pair
