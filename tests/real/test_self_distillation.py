"""A real model learns from itself with a hint: the whole path from prompts to a LoRA export."""

from __future__ import annotations

import json

import pytest
import torch

from lightning_opd import OPDDataModule, OPDModule, Sampling, StudentConfig
from lightning_opd.callbacks import ExportHuggingFace
from lightning_opd.models import Lora, load_tokenizer
from lightning_opd.tasks import Jsonl
from lightning_opd.teachers import LocalTeacher, PrivilegedTeacher
from tests.real import fetch
from tests.world import Recorder, make_trainer

CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo", "Peru": "Lima"}


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    folder, model = tmp_path_factory.mktemp("self"), str(fetch.smollm2())
    rows = [
        {
            "prompt": f"What is the capital of {country}? Answer in one short sentence.",
            "answer": city,
            "teacher": "self",
        }
        for country, city in CAPITALS.items()
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    module = OPDModule(
        StudentConfig(model, lora=Lora(rank=8)),
        teachers={"self": PrivilegedTeacher(LocalTeacher(model), "{content} The right answer is {answer}.")},
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=2e-4),
    )
    data = OPDDataModule(
        Jsonl(str(folder / "prompts.jsonl")), prompts_per_batch=3, sampling=Sampling(max_new_tokens=48), seed=0
    )
    recorder = Recorder()
    trainer = make_trainer(folder, recorder, ExportHuggingFace(merge=False), max_steps=2, gradient_clip_val=1.0)
    trainer.fit(module, data)
    assert sorted(p.name for p in (folder / "model").glob("adapter*")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    return recorder


def test_replies_end_at_the_real_stop(recorder: Recorder) -> None:
    stop = load_tokenizer(str(fetch.smollm2())).get_vocab()["<|im_end|>"]
    for batch in recorder.rollout_batches:
        for trajectory in batch.trajectories:
            replied = [i for i, own in zip(trajectory.token_ids, trajectory.response_mask, strict=True) if own]
            assert (replied[-1] == stop) != trajectory.is_truncated
            assert stop not in replied[:-1]
    assert not all(bool(batch.is_truncated.all()) for batch in recorder.rollout_batches)


def test_the_rollouts_are_exact(recorder: Recorder) -> None:
    from lightning_opd.functional.logprobs import token_logprobs
    from lightning_opd.models import load_causal_lm

    batch = recorder.rollout_batches[0]  # before any update the adapter says nothing
    model = load_causal_lm(str(fetch.smollm2()))
    with torch.no_grad():
        logits = model(input_ids=batch.token_ids, attention_mask=batch.attention_mask.long()).logits
    expected = token_logprobs(logits, batch.token_ids)
    difference = (batch.rollout_logprobs - expected).abs()[batch.response_mask]
    assert float(difference.max()) < 1e-4


def test_the_student_learns_and_the_teacher_knows_more(recorder: Recorder) -> None:
    assert all(metrics["train/teacher_kl"] > 0.01 for metrics in recorder.logged)  # the hint changes what it expects
    assert all(float(g.abs().max()) > 0 for name, g in recorder.gradients[0].items() if "lora_B" in name)
