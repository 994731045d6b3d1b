from __future__ import annotations

import json
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from typing_extensions import override

from lightning_opd.data import SFTDataModule
from lightning_opd.data.supervised import ExampleBatches, pad_examples
from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import Split, Task
from lightning_opd.models import StudentConfig, load_tokenizer
from lightning_opd.modules import SFTModule
from lightning_opd.tasks import Arithmetic, Curriculum, Phase, Strings
from lightning_opd.tokenization.turns import render_demonstration
from lightning_opd.types import Messages, Prompt
from tests.world import make_trainer

examples = st.lists(
    st.lists(st.tuples(st.integers(1, 50), st.booleans()), min_size=1, max_size=9).map(
        lambda tokens: ([token for token, _ in tokens], [counts for _, counts in tokens])
    ),
    min_size=1,
    max_size=6,
)


class Seen(Callback):
    """Keeps the tokens of every training batch."""

    def __init__(self) -> None:
        self.batches: list[dict[str, torch.Tensor]] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: dict[str, torch.Tensor], batch_idx: int
    ) -> None:
        self.batches.append({name: value.clone() for name, value in batch.items()})


def make_sft(folder: Path) -> SFTModule:
    return SFTModule(StudentConfig(str(folder)), lambda parameters: torch.optim.AdamW(parameters, lr=1e-3))


def make_data(task: Task | None = None, **settings: Any) -> SFTDataModule:
    defaults: dict[str, Any] = {"batch_size": 4, "num_examples": 14, "max_length": 128, "seed": 0}
    return SFTDataModule(task or Arithmetic(), **{**defaults, **settings})


def numbered(count: int) -> list[tuple[list[int], list[bool]]]:
    return [([i + 1] * (1 + i % 3), [True] * (1 + i % 3)) for i in range(count)]


def drawn(loader: ExampleBatches) -> list[list[int]]:
    return [batch["token_ids"][:, 0].tolist() for batch in loader]


@given(examples)
def test_padding_is_on_the_right_and_counts_nowhere(rows: list[tuple[list[int], list[bool]]]) -> None:
    batch = pad_examples(rows, pad_token_id=0)
    for i, (token_ids, mask) in enumerate(rows):
        length = len(token_ids)
        assert batch["token_ids"][i].tolist() == token_ids + [0] * (batch["token_ids"].shape[1] - length)
        assert batch["attention_mask"][i].nonzero().flatten().tolist() == list(range(length))
        assert batch["response_mask"][i, :length].tolist() == mask
        assert not batch["response_mask"][i, length:].any()
    assert batch["attention_mask"].dtype == batch["response_mask"].dtype == torch.bool


def test_only_the_assistants_words_and_its_stop_token_count(tiny_model_dir: Path, tmp_path: Path) -> None:
    seen, tokenizer = Seen(), load_tokenizer(str(tiny_model_dir))
    make_trainer(tmp_path, seen).fit(make_sft(tiny_model_dir), make_data())
    for batch in seen.batches:
        for token_ids, mask in zip(batch["token_ids"], batch["response_mask"], strict=True):
            response = str(tokenizer.decode(token_ids[mask]))
            assert response.startswith("<think>")
            assert response.endswith("</tool_call><|im_end|>")
            prompt = str(tokenizer.decode(token_ids[: int(mask.nonzero()[0])]))
            assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_shows_each_example_once_and_the_next_is_shuffled_anew(shuffle: bool) -> None:
    loader = ExampleBatches(numbered(12), 4, pad_token_id=0, seed=3, shuffle=shuffle)
    first, second = drawn(loader), drawn(loader)
    assert len(loader) == len(first) == 3
    flat = list(chain.from_iterable(first))
    assert sorted(flat) == sorted(chain.from_iterable(second)) == list(range(1, 13))
    assert (first != second) == shuffle
    assert (flat == list(range(1, 13))) != shuffle


def test_a_last_incomplete_batch_is_dropped() -> None:
    assert len(ExampleBatches(numbered(11), 4, pad_token_id=0)) == 2


def test_ranks_share_each_batch_without_overlap() -> None:
    whole = drawn(ExampleBatches(numbered(16), 4, pad_token_id=0, seed=1))
    parts = [drawn(ExampleBatches(numbered(16), 4, 0, 1, rank, 2)) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == [sorted(batch) for batch in whole]
    assert all(len(batch) == 2 for part in parts for batch in part)


@pytest.mark.parametrize("stopped_after", [1, 2, 3, 4, 7])
def test_a_loader_resumes_where_it_stopped(stopped_after: int) -> None:
    def endless(loader: ExampleBatches) -> list[list[int]]:
        return [batch for _ in range(4) for batch in drawn(loader)]

    def make() -> ExampleBatches:
        return ExampleBatches(numbered(12), 4, pad_token_id=0, seed=5)

    undisturbed, stopped, resumed = endless(make()), make(), make()
    batches = (batch for _ in range(4) for batch in stopped)
    for _ in range(stopped_after):
        next(batches)
    resumed.load_state_dict(stopped.state_dict())
    assert endless(resumed)[: 12 - stopped_after] == undisturbed[stopped_after:]


def test_a_resumed_run_equals_the_undisturbed_one_bit_for_bit(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Three batches an epoch: seven steps cross two epoch borders."""

    def train(ckpt_path: Path | None = None) -> tuple[SFTModule, Seen]:
        module, seen = make_sft(tiny_model_dir), Seen()
        saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = make_trainer(tmp_path, seen, saver, max_steps=7, enable_checkpointing=True)
        trainer.fit(module, make_data(), ckpt_path=ckpt_path)
        return module, seen

    whole, seen = train()
    for step in (1, 3, 5):
        torch.manual_seed(step)
        resumed, seen_again = train(tmp_path / f"step={step}.ckpt")
        assert len(seen_again.batches) == 7 - step
        assert torch.equal(seen.batches[-1]["token_ids"], seen_again.batches[-1]["token_ids"])
        for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(one, other)


def test_a_curriculum_keeps_its_order(tiny_model_dir: Path, tmp_path: Path) -> None:
    seen, tokenizer = Seen(), load_tokenizer(str(tiny_model_dir))
    task = Curriculum([Phase(Arithmetic(), 0.5), Phase(Strings(num_questions=100), 0.5)])
    data = make_data(task, num_examples=16, shuffle=False)
    make_trainer(tmp_path, seen, max_steps=4).fit(make_sft(tiny_model_dir), data)
    texts = [tokenizer.batch_decode(batch["token_ids"]) for batch in seen.batches]
    assert [all("What is" in text for text in batch) for batch in texts] == [True, True, False, False]
    assert not any("What is" in text for batch in texts[2:] for text in batch)


def test_the_loss_falls_on_a_task_it_has_seen(tiny_model_dir: Path, tmp_path: Path) -> None:
    losses = []

    class Losses(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
            losses.append(float(trainer.callback_metrics["train/loss"]))

    make_trainer(tmp_path, Losses(), max_steps=30).fit(make_sft(tiny_model_dir), make_data(num_examples=8))
    assert losses[-1] < 0.5 * losses[0]


def test_validation_examples_come_from_the_validation_split(tiny_model_dir: Path, tmp_path: Path) -> None:
    data = make_data(num_validation_examples=6)
    trainer = make_trainer(tmp_path, limit_val_batches=1.0, max_epochs=1, max_steps=-1)
    trainer.fit(make_sft(tiny_model_dir), data)
    assert float(trainer.callback_metrics["val/loss"]) > 0
    tokenizer = load_tokenizer(str(tiny_model_dir))
    asked = {str(prompt.messages[0]["content"]) for prompt in Arithmetic().prompts("validation")}
    batches = data.val_dataloader()
    assert isinstance(batches, ExampleBatches)
    for batch in batches:
        for text in tokenizer.batch_decode(batch["token_ids"]):
            assert text.split("user\n")[1].split("<|im_end|>")[0] in asked


def test_a_demonstration_that_is_too_long_is_an_error(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"14 of 14 .* has \d+ tokens, more than `data.max_length` 20.*`drop`"):
        make_trainer(tmp_path).fit(make_sft(tiny_model_dir), make_data(max_length=20))


class Growing(Task):
    """Demonstrations of which each is a letter longer than the one before."""

    @override
    def prompts(self, split: Split) -> list[Prompt]:
        return []

    @override
    def demonstrations(self, split: Split, num_examples: int, seed: int) -> list[Messages]:
        replies = ["a" * (i + 1) for i in range(num_examples)]
        return [({"role": "user", "content": "?"}, {"role": "assistant", "content": reply}) for reply in replies]


def median_length(folder: Path) -> int:
    tokenizer = load_tokenizer(str(folder))
    return len(render_demonstration(tokenizer, Growing().demonstrations("train", 14, 0)[6])[0])


@pytest.mark.parametrize("is_context", [False, True], ids=["max_length", "context"])
def test_too_long_demonstrations_are_left_out_and_counted_where_that_is_asked_for(
    is_context: bool, tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen, most = Seen(), median_length(tiny_model_dir)
    config = tmp_path / "model" / "config.json"
    shutil.copytree(tiny_model_dir, config.parent)
    if is_context:
        config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": most}))
    limits = {"max_length": 128 if is_context else most, "batch_size": 7, "num_validation_examples": 9}
    data = make_data(Growing(), long_examples="drop", **limits)
    with caplog.at_level("INFO"):
        make_trainer(tmp_path, seen, max_steps=1).fit(make_sft(config.parent), data)
    [batch] = seen.batches
    assert sorted(batch["attention_mask"].sum(dim=1).tolist()) == list(range(most - 6, most + 1))
    limit = "the student's context of" if is_context else "`data.max_length`"
    said = f"train: 14 demonstrations of {most - 6} to {most + 7} tokens (median {most + 1}); 7 longer than {limit}"
    assert f"{said} {most} left out." in caplog.text
    assert f"validation: 9 demonstrations of {most - 6} to {most + 2} tokens" in caplog.text
    with pytest.raises(ConfigError, match=rf"7 of 14 .*`train`.*more than {limit} {most}\."):
        make_trainer(tmp_path).fit(make_sft(config.parent), make_data(Growing(), **limits))


def test_fewer_demonstrations_than_a_batch_are_an_error(tiny_model_dir: Path, tmp_path: Path) -> None:
    most = median_length(tiny_model_dir)
    data = make_data(Growing(), long_examples="drop", max_length=most, batch_size=8)
    with pytest.raises(ConfigError, match=r"^7 demonstrations of `train`.*`data.batch_size` 8\. Raise"):
        make_trainer(tmp_path).fit(make_sft(tiny_model_dir), data)


def test_a_batch_larger_than_the_data_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"between 1 and `data.num_examples` \(14\), got 15"):
        make_data(batch_size=15)


def test_outside_a_trainer_the_error_says_how_to_use_it() -> None:
    with pytest.raises(RuntimeError, match=r"trainer\.fit\(module, datamodule\)"):
        make_data().setup("fit")
